"""TensorFlow's time for a training step of its CIFAR-10 tutorial; run by its own Python, prints JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()

BATCH = 128


def main() -> None:
    """Build the tutorial's graph, train, print seconds a step."""
    steps, threads = int(sys.argv[1]), int(sys.argv[2])
    images = tf.get_variable("images", initializer=tf.random_normal([BATCH, 24, 24, 3]), trainable=False)
    labels = tf.get_variable(
        "labels", initializer=tf.random_uniform([BATCH], 0, 10, tf.int32), trainable=False
    )
    hidden = tf.nn.max_pool(convolution("conv1", images, 3, 0.0), 3, 2, "SAME")
    hidden = convolution("conv2", response_norm(hidden), 64, 0.1)
    hidden = tf.nn.max_pool(response_norm(hidden), 3, 2, "SAME")
    hidden = tf.reshape(hidden, [BATCH, -1])
    hidden, first = dense("local3", hidden, 384, 0.04, 0.1)
    hidden, second = dense("local4", tf.nn.relu(hidden), 192, 0.04, 0.1)
    logits, _ = dense("softmax_linear", tf.nn.relu(hidden), 10, 1 / 192, 0.0)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    loss += 0.004 * (tf.nn.l2_loss(first) + tf.nn.l2_loss(second))
    train = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
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


def convolution(name: str, images: Any, channels: int, bias: float) -> Any:
    """5x5, 64 filters, ReLU."""
    start = tf.truncated_normal([5, 5, channels, 64], stddev=5e-2)
    made = tf.nn.conv2d(images, tf.get_variable(f"{name}/weights", initializer=start), 1, "SAME")
    return tf.nn.relu(made + tf.get_variable(f"{name}/biases", initializer=tf.fill([64], bias)))


def response_norm(images: Any) -> Any:
    """The tutorial's."""
    return tf.nn.lrn(images, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)


def dense(name: str, values: Any, units: int, deviation: float, bias: float) -> tuple[Any, Any]:
    """The layer's values before ReLU, and its weights."""
    start = tf.truncated_normal([int(values.shape[1]), units], stddev=deviation)
    weights = tf.get_variable(f"{name}/weights", initializer=start)
    return values @ weights + tf.get_variable(f"{name}/biases", initializer=tf.fill([units], bias)), weights


if __name__ == "__main__":
    main()
