from __future__ import annotations

import numpy as np
import pytest

from foveal.data.source import (
    CLASS_LIMIT,
    ArraySource,
    Batch,
    DataSet,
    Encoded,
    Source,
    blocks,
    channels_of,
    class_names,
    digests_of,
    keys,
    labels_of,
)
from foveal.errors import DataError, RecipeError

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
            {"images": images().astype(np.float64)},
            r"mine: images must be uint8 or float32 .*, not float64 \[4, 2, 3, 1\]",
        ),
        ({"images": images()[..., 0]}, r"mine: images must be uint8 .*, not uint8 \[4, 2, 3\]"),
        ({"targets": targets().astype(np.int32)}, r"mine: targets must be int64 \[N\], not int32 \[4\]"),
        ({"targets": targets()[:, None]}, r"mine: targets must be int64 \[N\], not int64 \[4, 1\]"),
        ({"targets": targets(0, 1, 2)}, "mine: 4 images but 3 labels"),
        ({"targets": targets(0, 1, 3, 1)}, "mine record 2: label 3 is out of range: .*3 classes, 0 to 2"),
        ({"targets": targets(0, -1, 3, 1)}, "mine record 1: label -1 is out of range"),
        ({"classes": CLASSES[:2]}, "mine record 2: label 2 is out of range: there are 2 classes, 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        source(name="mine", **changes)


def test_keys_name_the_file_and_the_record():
    named = source(name="file.bin")
    assert named.key(3) == "file.bin record 3"
    assert keys(named, np.array([2, 0])) == ["file.bin record 2", "file.bin record 0"]


def test_images_may_be_float32():
    rows = ArraySource(images().astype(np.float32) / 7, targets(), CLASSES)
    assert rows.read(np.array([1])).images.dtype == np.float32
    assert rows.fingerprint() != source().fingerprint()


class TestFingerprint:
    def test_is_equal_for_equal_data_wherever_they_are_stored(self):
        spread = np.zeros((8, 2, 3, 2), np.uint8)
        spread[::2, ..., :1] = images()
        elsewhere = source(images=spread[::2, ..., :1], name="other")
        assert not elsewhere.images.flags.c_contiguous
        assert elsewhere.fingerprint() == source().fingerprint()
        assert len(source().fingerprint()) == 16

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

    @pytest.mark.parametrize("name", ["train", "validation", "test"])
    def test_parts_without_examples_are_refused(self, name):
        parts = {"train": source(), "validation": source(), "test": source()}
        parts[name] = source(images=images(0), targets=np.empty(0, np.int64))
        with pytest.raises(DataError, match=f"the {name} part of the data has no examples"):
            DataSet(**parts)


class Reading:
    """A source of which only reading tells anything: labels 0, 1, 2, 0, ..., and five images in turn."""

    classes, image_shape = CLASSES, None

    def __init__(self, size, *, encoded):
        self.size, self.encoded, self.asked = size, encoded, []

    def __len__(self):
        return self.size

    def read(self, indices):
        self.asked.append(len(indices))
        pixels = np.zeros((len(indices), 2, 2, 1), np.uint8)
        pixels[:, 0, 0, 0] = indices % 5
        found = Encoded(tuple(image.tobytes() for image in pixels)) if self.encoded else pixels
        return Batch(found, indices % 3)


class TestLabels:
    def test_are_those_that_the_source_holds(self):
        held = source()
        assert labels_of(held) is held.targets

    @pytest.mark.parametrize("size", [0, 1, 1024, 2500])
    def test_are_read_in_blocks_where_it_holds_none(self, size):
        read = Reading(size, encoded=False)
        assert labels_of(read).tolist() == [number % 3 for number in range(size)]
        assert labels_of(read).dtype == np.int64
        assert max(read.asked, default=0) <= 1024

    def test_that_are_none_are_read(self):
        read = Reading(4, encoded=False)
        read.targets = None
        assert labels_of(read).tolist() == [0, 1, 2, 0]


class TestDigests:
    @pytest.mark.parametrize("encoded", [True, False])
    @pytest.mark.parametrize("size", [0, 12, 1500])
    def test_are_equal_for_equal_images_and_no_others(self, encoded, size):
        found = digests_of(Reading(size, encoded=encoded))
        assert found.dtype == np.uint64
        assert found.shape == (size,)
        assert np.array_equal(found[5:], found[:-5])
        assert len(set(found.tolist())) == min(size, 5)

    def test_are_those_that_the_source_knows(self):
        read = Reading(2, encoded=True)
        read.digests = lambda: [7, 2**64 - 1]
        assert digests_of(read).tolist() == [7, 2**64 - 1]
        assert read.asked == []

    def test_that_it_does_not_know_are_read(self):
        read = Reading(2, encoded=True)
        read.digests = lambda: None
        assert len(set(digests_of(read).tolist())) == 2


def test_channels_are_known_of_images_of_several_sizes_too():
    assert channels_of(source(images=images(channels=2))) == 2
    several = Reading(3, encoded=True)
    assert channels_of(several) == 3
    several.channels = 1
    assert channels_of(several) == 1


def test_blocks_cover_all_indices_once():
    assert [each.tolist() for each in blocks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(blocks(0)) == []


class TestClassNames:
    def test_are_a_list_or_a_number_of_them(self):
        assert class_names(["猫", "dog"]) == ("猫", "dog")
        assert class_names(3) == ("0", "1", "2")
        assert len(class_names(CLASS_LIMIT)) == CLASS_LIMIT

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (0, "classes = 0: from 1 to"),
            (-1, "classes = -1: from 1 to"),
            (CLASS_LIMIT + 1, "from 1 to"),
            (True, "a list of names, or how many"),
            ("cat", "classes = 'cat': a list of names, or how many"),
            ([1, 2], "a list of names, or how many"),
            ([], "at least one name"),
            (["a", "b", "a"], "'a' is named 2 times"),
        ],
    )
    def test_that_cannot_be_are_refused(self, given, message):
        with pytest.raises(RecipeError, match=message):
            class_names(given)
