from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from foveal.data.combine import balanced, concat, take
from foveal.data.expand import expand
from foveal.data.source import ArraySource, Batch, Encoded, Source, labels_of
from foveal.errors import DataError

CLASSES = ("cat", "dog", "owl")


def array(*targets, classes=CLASSES):
    """Record ``n`` shows ``n`` in all its eight pixels."""
    images = np.repeat(np.arange(len(targets), dtype=np.uint8), 8).reshape(-1, 4, 2, 1)
    return ArraySource(images, np.array(targets, np.int64), classes, "file")


def as_often_as_its_label(batch):
    """Record ``n`` with label ``k``: ``k`` examples of two pixels: ``10 n`` and ``10 n + place``."""
    count = int(batch.targets[0])
    number = int(batch.images[0, 0, 0, 0])
    images = np.full((count, 1, 2, 1), 10 * (number % 20), np.uint8)
    images[:, 0, 1, 0] += np.arange(count, dtype=np.uint8)
    return Batch(images, np.arange(count), {"record": np.full(count, number)})


def encoded(batch):
    made = as_often_as_its_label(batch)
    return replace(made, images=Encoded(tuple(bytes(image) for image in made.images)), features={})


RECORDS = (2, 0, 1, 2, 0)
SHOWN = [0, 1, 20, 30, 31]


def shown(source, indices=None):
    batch = source.read(np.arange(len(source)) if indices is None else np.array(indices, np.int64))
    if isinstance(batch.images, Encoded):
        return [image[1] for image in batch.images.contents]
    return batch.images[:, 0, 1, 0].tolist()


class TestReading:
    @pytest.mark.parametrize(("function", "shape"), [(as_often_as_its_label, (1, 2, 1)), (encoded, None)])
    def test_gives_the_examples_of_each_record_in_turn(self, function, shape):
        many = expand(array(*RECORDS), function)
        assert isinstance(many, Source)
        assert len(many) == 5
        assert many.classes == CLASSES
        assert many.image_shape == shape
        assert shown(many) == SHOWN
        assert labels_of(many).tolist() == [0, 1, 0, 0, 1]

    @pytest.mark.parametrize("function", [as_often_as_its_label, encoded])
    @pytest.mark.parametrize("order", [[4, 0, 4, 2, 1], [3], [2, 2, 2], []])
    def test_gives_them_in_any_order(self, function, order):
        assert shown(expand(array(*RECORDS), function), order) == [SHOWN[place] for place in order]

    def test_tells_which_records_were_no_images(self):
        records = take(array(*RECORDS), 5)
        assert expand(records, encoded).rejected == ()
        records.rejected = (("file record 5", "is empty"),)
        assert expand(records, encoded).rejected == records.rejected

    def test_gives_their_features(self):
        many = expand(array(*RECORDS), as_often_as_its_label)
        assert many.read(np.array([4, 2, 1])).features["record"].tolist() == [3, 2, 0]

    def test_calls_the_function_for_the_records_that_are_read_and_once_for_each(self):
        seen = []

        def function(batch):
            seen.append(int(batch.images[0, 0, 0, 0]))
            return as_often_as_its_label(batch)

        many = expand(array(*RECORDS), function)
        seen.clear()
        many.read(np.array([4, 0, 3, 1]))
        assert sorted(seen) == [0, 3]

    @pytest.mark.parametrize("wrong", [-1, 5])
    def test_does_not_reach_beyond_the_end(self, wrong):
        many = expand(array(*RECORDS), encoded)
        with pytest.raises(IndexError, match="of 5 examples"):
            many.read(np.array([wrong]))
        with pytest.raises(IndexError, match="of 5 examples"):
            many.key(wrong)

    def test_gives_the_same_to_many_threads(self):
        many = expand(array(*RECORDS * 20), as_often_as_its_label)
        expected = shown(many)

        def check(seed):
            order = np.random.default_rng(seed).integers(0, len(many), 30)
            return shown(many, order) == [expected[place] for place in order]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, range(50)))

    def test_gives_what_other_sources_can_be_made_of(self):
        many = expand(array(*RECORDS), as_often_as_its_label)
        assert shown(concat([many, take(many, 2)])) == [*SHOWN, 0, 1]
        assert np.bincount(labels_of(balanced(many))).tolist() == [3, 3]


def test_keys_name_the_record_and_the_example_in_it():
    many = expand(array(*RECORDS), encoded)
    assert [many.key(index) for index in (1, 2, 4)] == [
        "file record 0 example 1",
        "file record 2 example 0",
        "file record 3 example 1",
    ]


def test_records_may_all_have_no_examples():
    none = expand(array(0, 0), as_often_as_its_label)
    assert len(none) == 0
    assert shown(none) == []


class TestFingerprints:
    def test_depend_on_what_was_made_and_not_on_where_from(self):
        once = expand(array(2, 1), as_often_as_its_label).fingerprint()
        assert once == expand(array(2, 1), as_often_as_its_label).fingerprint()
        others = [
            expand(array(2, 2), as_often_as_its_label),
            expand(array(1, 2), as_often_as_its_label),
            expand(array(2, 1), encoded),
            expand(array(2, 1, classes=("cat", "dog", "fox")), as_often_as_its_label),
            expand(
                array(2, 1),
                lambda batch: replace(as_often_as_its_label(batch), targets=np.zeros(batch.targets[0], int)),
            ),
        ]
        assert len({once, *(other.fingerprint() for other in others)}) == 6


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"targets": np.zeros(1, np.int64)}, "2 images but 1 labels were made of it"),
            ({"targets": np.array([0, 3])}, r"labels \[0, 3\] were made of it, for 3 classes"),
            ({"targets": np.array([-1, 0])}, r"labels \[-1, 0\] were made of it, for 3 classes"),
            ({"targets": np.zeros(2, np.int32)}, "labels of int32 were made of it, not int64"),
            (
                {"images": np.zeros((2, 3, 3, 1), np.uint8)},
                "uint8 images of 3 x 3 x 1 with record were made of it, uint8",
            ),
            ({"images": Encoded((b"", b""))}, "encoded images with record were made of it, uint8 images"),
            ({"features": {}}, "1 x 2 x 1 were made of it, uint8 images of 1 x 2 x 1 with record of another"),
        ],
    )
    def test_is_what_does_not_fit_the_rest_by_its_record(self, changes, problem):
        def function(batch):
            made = as_often_as_its_label(batch)
            return replace(made, **changes) if batch.images[0, 0, 0, 0] == 3 else made

        with pytest.raises(DataError, match=rf"^file record 3: .*{problem}"):
            expand(array(*RECORDS), function)

    def test_is_a_function_that_makes_another_number_of_examples_later(self):
        more = 0

        def function(batch):
            return as_often_as_its_label(replace(batch, targets=batch.targets + more))

        many = expand(array(2, 1, 2), function)
        more = 1
        with pytest.raises(
            DataError, match=r"^file record 1: 2 examples were made of it, 1 when they were counted"
        ):
            many.read(np.array([2]))

    def test_are_no_records(self):
        with pytest.raises(DataError, match="no records to expand"):
            expand(take(array(1), 0), as_often_as_its_label)
