"""tf.data on the work of ``benchmarks/input_pipeline.py``; run by TensorFlow's own Python, prints JSON."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import measurement
import numpy as np
import tensorflow as tf

THREADS = 2
BATCH = 128
PHOTOS = 25
SHUFFLE_BUFFER = 20_000  # the tutorial's: 0.4 of the examples of an epoch


def cifar_files(folder: str) -> list[str]:
    """The training part."""
    return [str(Path(folder) / f"data_batch_{number}.bin") for number in range(1, 6)]


def distort(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The tutorial's distorted_inputs: a record to float32 ``[24, 24, 3]`` and its label."""
    values = tf.io.decode_raw(record, tf.uint8)
    image = tf.transpose(tf.reshape(values[1:], [3, 32, 32]), [1, 2, 0])
    image = tf.image.random_crop(tf.cast(image, tf.float32), [24, 24, 3])
    image = tf.image.random_flip_left_right(image)
    image = tf.image.random_brightness(image, max_delta=63)
    image = tf.image.random_contrast(image, lower=0.2, upper=1.8)
    return tf.image.per_image_standardization(image), tf.cast(values[0], tf.int64)


def cifar(folder: str) -> tf.data.Dataset:
    """An example at a time, as the guides write it."""
    records = tf.data.FixedLengthRecordDataset(cifar_files(folder), 1 + 32 * 32 * 3)
    distorted = records.shuffle(SHUFFLE_BUFFER).repeat().map(distort, num_parallel_calls=THREADS)
    return distorted.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def cifar_vectorised(folder: str) -> tf.data.Dataset:
    """A batch at a time out of memory, with all that by hand can win.

    Rows are cropped while they are gathered, as uint8. Columns are cropped and mirrored by one product with a
    selection matrix, which is faster than gathering them. Contrast and standardisation of a channel are one
    multiplication and one addition; brightness drops out of them.
    """
    stored = np.concatenate([np.fromfile(path, np.uint8) for path in cifar_files(folder)]).reshape(-1, 3073)
    labels, rows = tf.constant(stored[:, 0].astype(np.int64)), tf.constant(stored[:, 1:].reshape(-1, 32))
    span, planes = tf.range(24), tf.range(3)[:, None] * 32

    def distort_batch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        top, left = (tf.random.uniform([BATCH], maxval=9, dtype=tf.int32) for _ in range(2))
        mirrored = tf.random.uniform([BATCH]) < 0.5
        contrast = tf.random.uniform([BATCH, 1, 1], 0.2, 1.8)
        wanted = (tf.cast(indices, tf.int32) * 96 + top)[:, None, None] + planes + span
        columns = left[:, None] + tf.where(mirrored[:, None], 23 - span, span)
        images = tf.cast(tf.gather(rows, tf.reshape(wanted, [BATCH, 72])), tf.float32)
        images = tf.matmul(images, tf.one_hot(columns, 32), transpose_b=True)
        images = standardise(tf.reshape(images, [BATCH, 3, 24 * 24]), contrast)
        images = tf.transpose(tf.reshape(images, [BATCH, 3, 24, 24]), [0, 2, 3, 1])
        return images, tf.gather(labels, indices)

    order = tf.data.Dataset.range(len(stored)).shuffle(len(stored)).repeat()
    batches = order.batch(BATCH, drop_remainder=True).map(distort_batch, num_parallel_calls=THREADS)
    return batches.prefetch(tf.data.AUTOTUNE)


def standardise(images: tf.Tensor, contrast: tf.Tensor) -> tf.Tensor:
    """Contrast about each channel's mean, then per-image standardisation, of ``[B, channels, pixels]``."""
    means = tf.reduce_mean(images, 2, keepdims=True)
    variances = tf.reduce_mean(tf.square(images), 2, keepdims=True) - tf.square(means)
    within = tf.square(contrast) * tf.reduce_mean(variances, 1, keepdims=True)
    between = tf.math.reduce_variance(means, 1, keepdims=True)
    deviation = tf.maximum(tf.sqrt(within + between), 1 / np.sqrt(images.shape[1] * images.shape[2]))
    shift = means * (1 - contrast) - tf.reduce_mean(means, 1, keepdims=True)
    return images * (contrast / deviation) + shift / deviation


def photos(folder: str, *, antialias: bool) -> tf.data.Dataset:
    """JPEG files to uint8 ``[299, 299, 3]``."""

    def decode(path: tf.Tensor) -> tuple[tf.Tensor]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return (tf.cast(tf.image.resize(image, [299, 299], antialias=antialias), tf.uint8),)

    files = tf.data.Dataset.from_tensor_slices(sorted(str(path) for path in Path(folder).glob("*/*")))
    decoded = files.shuffle(len(files)).repeat().map(decode, num_parallel_calls=THREADS)
    return decoded.batch(PHOTOS).prefetch(tf.data.AUTOTUNE)


DIGITS = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
NUMBERS = {"values": tf.io.FixedLenFeature([4], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}


def records(
    path: str, specification: dict[str, tf.io.FixedLenFeature], *, vectorised: bool
) -> tf.data.Dataset:
    """Examples of a TFRecord file to columns; both CRCs are checked by TFRecordDataset itself."""

    def columns(parsed: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        if "image" in parsed:
            return tf.io.decode_raw(parsed["image"], tf.uint8, fixed_length=28 * 28), parsed["label"]
        return parsed["values"], parsed["label"]

    def one(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return columns(tf.io.parse_single_example(record, specification))

    def several(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return columns(tf.io.parse_example(batch, specification))

    stored = tf.data.TFRecordDataset(path).repeat()
    if vectorised:
        batches = stored.batch(BATCH).map(several, num_parallel_calls=THREADS)
    else:
        batches = stored.map(one, num_parallel_calls=THREADS).batch(BATCH)
    return batches.prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    measurement.run(
        {
            "cifar": cifar,
            "cifar-vectorised": cifar_vectorised,
            "photos": partial(photos, antialias=True),
            "photos-aliased": partial(photos, antialias=False),
            "digits": partial(records, specification=DIGITS, vectorised=False),
            "digits-vectorised": partial(records, specification=DIGITS, vectorised=True),
            "numbers": partial(records, specification=NUMBERS, vectorised=False),
            "numbers-vectorised": partial(records, specification=NUMBERS, vectorised=True),
        },
        f"TensorFlow {tf.__version__}",
    )
