"""Images kept on the device where torch computes: nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.data.pipeline import Pipeline
from foveal.data.resident import make_resident, resident_limit
from foveal.data.sampler import Sampler
from foveal.data.source import ArraySource
from foveal.data.stream import StreamSource
from foveal.recipe import Brightness, Flip, Normalization, RandomCrop


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 9, 3), np.uint8)
    return ArraySource(images, np.arange(50) % 3, ("a", "b", "c"))


def test_batches_are_those_of_images_that_are_not_kept_there(source):
    transforms = (RandomCrop(size=(6, 6)), Flip(), Brightness(delta=10))
    plain, kept = (
        Pipeline(source, transforms, Normalization(per_image=True), 0, backend="torch", resident_bytes=limit)
        for limit in (0, 1 << 20)
    )
    sample = Sampler(50, 32, 0).sample(1)
    np.testing.assert_array_equal(plain(sample).images, kept(sample).images)
    np.testing.assert_array_equal(plain(sample).targets, kept(sample).targets)
    np.testing.assert_array_equal(plain.distort(sample), kept.distort(sample))


def test_every_image_is_there(source):
    resident = make_resident(source, "cpu", 1 << 20)
    images, targets = resident.read(np.arange(49, -1, -1))
    np.testing.assert_array_equal(images, source.images[::-1])
    np.testing.assert_array_equal(targets, source.targets[::-1])


def test_what_does_not_fit_is_left_where_it_is(source):
    size = source.images.nbytes
    assert make_resident(source, "cpu", size) is not None
    assert make_resident(source, "cpu", size - 1) is None


def test_plain_numbers_and_streams_are_left_where_they_are(source):
    rows = ArraySource(np.zeros((4, 1, 1, 2), np.float32), np.zeros(4, np.int64), ("a",))
    assert make_resident(rows, "cpu", 1 << 20) is None
    stream = StreamSource(lambda: zip(source.images, source.targets, strict=True), "abc", (8, 9, 3))
    assert make_resident(stream, "cpu", 1 << 62) is None


def test_nothing_is_kept_twice_in_the_memory_of_a_processor():
    assert resident_limit("cpu") == 0
