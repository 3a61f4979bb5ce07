"""TensorFlow's time for a training step of its MNIST tutorial network; run by its own Python, prints JSON."""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()


def main() -> None:
    """Build the tutorial's graph, train, print seconds a step."""
    steps, threads = int(sys.argv[1]), int(sys.argv[2])
    images = tf.random_uniform([100, 28, 28, 1])
    images = tf.get_variable("images", initializer=images, trainable=False)
    labels = tf.get_variable("labels", initializer=tf.random_uniform([100], 0, 10, tf.int32), trainable=False)
    hidden = images
    for filters in (32, 64):
        hidden = tf.layers.conv2d(hidden, filters, 5, padding="same", activation=tf.nn.relu)
        hidden = tf.layers.max_pooling2d(hidden, 2, 2)
    hidden = tf.layers.dense(tf.reshape(hidden, [-1, 7 * 7 * 64]), 1024, activation=tf.nn.relu)
    logits = tf.layers.dense(tf.layers.dropout(hidden, 0.4, training=True), 10)
    loss = tf.losses.softmax_cross_entropy(tf.one_hot(labels, 10), logits)
    train = tf.train.GradientDescentOptimizer(0.001).minimize(loss)
    config = tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    with tf.Session(config=config) as session:
        session.run(tf.global_variables_initializer())
        for _ in range(20):
            session.run(train)
        start = time.perf_counter()
        for _ in range(steps):
            session.run(train)
        seconds = (time.perf_counter() - start) / steps
    print(json.dumps({"seconds_per_step": seconds, "version": tf.__version__}))


if __name__ == "__main__":
    main()
