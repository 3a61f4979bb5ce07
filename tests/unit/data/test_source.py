from __future__ import annotations

import numpy as np
import pytest

from foveal.data.source import ArraySource, Batch, DataSet, Source, keys
from foveal.errors import DataError

CLASSES = ("cat", "dog", "owl")


def images(count=4, height=2, width=3, channels=1):
    return np.arange(count * height * width * channels, dtype=np.uint8).reshape(
        count, height, width, channels
    )


def targets(*values):
    return np.array(values or (0, 1, 2, 1), np.int64)


def source(**changes):
    return ArraySource(**{"images": images(), "targets": targets(), "classes": CLASSES} | changes)


def test_an_array_source_is_a_source():
    assert isinstance(source(), Source)
    assert len(source()) == 4
    assert source().image_shape == (2, 3, 1)


def test_examples_are_read_in_the_order_asked_for_and_as_often():
    batch = source().read(np.array([2, 0, 2]))
    assert isinstance(batch, Batch)
    assert np.array_equal(batch.images, images()[[2, 0, 2]])
    assert batch.targets.tolist() == [2, 0, 2]
    assert batch.features == {}


def test_what_is_read_is_a_copy():
    whole = source()
    batch = whole.read(np.arange(4))
    batch.images[:] = 0
    batch.targets[:] = 0
    assert np.array_equal(whole.images, images())
    assert whole.targets.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": images().astype(np.float32)},
            r"mine: images must be uint8 .*, not float32 \[4, 2, 3, 1\]",
        ),
        ({"images": images()[..., 0]}, r"mine: images must be uint8 .*, not uint8 \[4, 2, 3\]"),
        ({"targets": targets().astype(np.int32)}, r"mine: targets must be int64 \[N\], not int32 \[4\]"),
        ({"targets": targets()[:, None]}, r"mine: targets must be int64 \[N\], not int64 \[4, 1\]"),
        ({"targets": targets(0, 1, 2)}, "mine: 4 images but 3 labels"),
        ({"targets": targets(0, 1, 3, 1)}, "mine record 2: label 3 is out of range: .*3 classes, 0 to 2"),
        ({"targets": targets(0, -1, 3, 1)}, "mine record 1: label -1 is out of range"),
        ({"targets": targets(0, 1, 3, 1), "offset": 100}, "mine record 102: label 3"),
        ({"classes": CLASSES[:2]}, "mine record 2: label 2 is out of range: there are 2 classes, 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        source(name="mine", **changes)


def test_keys_name_the_file_and_the_record():
    part = source(name="file.bin", offset=50)
    assert part.key(3) == "file.bin record 53"
    assert keys(part, np.array([2, 0])) == ["file.bin record 52", "file.bin record 50"]


def test_a_slice_is_a_source_of_its_own_that_keeps_the_keys():
    part = source(name="file", offset=10).slice(1, 3)
    assert len(part) == 2
    assert np.array_equal(part.images, images()[1:3])
    assert part.targets.tolist() == [1, 2]
    assert part.classes == CLASSES
    assert part.key(0) == "file record 11"
    assert part.slice(1, 2).key(0) == "file record 12"


def test_a_slice_shares_the_memory():
    whole = source()
    assert np.shares_memory(whole.slice(1, 3).images, whole.images)


class TestFingerprint:
    def test_is_equal_for_equal_data_wherever_they_are_stored(self):
        spread = np.zeros((8, 2, 3, 2), np.uint8)
        spread[::2, ..., :1] = images()
        elsewhere = source(images=spread[::2, ..., :1], name="other", offset=7)
        assert not elsewhere.images.flags.c_contiguous
        assert elsewhere.fingerprint() == source().fingerprint()
        assert len(source().fingerprint()) == 16

    def test_of_a_slice_is_that_of_the_same_examples(self):
        alone = ArraySource(images()[1:3].copy(), targets()[1:3].copy(), CLASSES)
        assert source().slice(1, 3).fingerprint() == alone.fingerprint()

    @pytest.mark.parametrize(
        "changes",
        [
            {"images": images() ^ 1},
            {"images": images()[::-1]},
            {"images": images().reshape(4, 3, 2, 1)},
            {"images": images().reshape(4, 2, 1, 3)},
            {"targets": targets(0, 1, 2, 2)},
            {"classes": ("cat", "dog", "emu")},
            {"classes": (*CLASSES, "emu")},
            {"images": images()[:3], "targets": targets()[:3]},
        ],
    )
    def test_differs_when_anything_does(self, changes):
        assert source(**changes).fingerprint() != source().fingerprint()

    def test_of_one_changed_pixel_differs(self):
        changed = images()
        changed[3, 1, 2, 0] ^= 1
        assert source(images=changed).fingerprint() != source().fingerprint()


class TestDataSet:
    def test_parts_are_found_by_name(self):
        train, test = source(), source(name="test")
        data = DataSet(train, test=test)
        assert data.parts() == {"train": train, "test": test}
        assert data.part("train") is train
        assert data.part("test") is test

    def test_a_part_that_is_not_there_is_an_error_that_lists_the_others(self):
        with pytest.raises(DataError, match="no validation part; they have: train, test"):
            DataSet(source(), test=source()).part("validation")

    @pytest.mark.parametrize("name", ["validation", "test"])
    def test_parts_with_other_classes_are_refused(self, name):
        other = source(classes=("cat", "dog", "emu"))
        with pytest.raises(DataError, match=f"the {name} part has other classes than the train part"):
            DataSet(source(), **{name: other})

    @pytest.mark.parametrize("name", ["validation", "test"])
    def test_parts_with_other_image_shapes_are_refused(self, name):
        other = source(images=images(height=3))
        with pytest.raises(DataError, match=rf"the {name} part has images of \(3, 3, 1\), .*\(2, 3, 1\)"):
            DataSet(source(), **{name: other})

    @pytest.mark.parametrize("name", ["train", "validation", "test"])
    def test_parts_without_examples_are_refused(self, name):
        parts = {"train": source(), "validation": source(), "test": source()}
        parts[name] = source().slice(2, 2)
        with pytest.raises(DataError, match=f"the {name} part of the data has no examples"):
            DataSet(**parts)
