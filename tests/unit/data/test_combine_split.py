from __future__ import annotations

import numpy as np
import pytest

from foveal.data.combine import split
from foveal.data.source import ArraySource, Batch, DataSet, Encoded, digests_of, labels_of
from foveal.errors import UnknownNameError, UsageError

CLASSES = ("cat", "dog")


def array(numbers):
    """Examples that show these numbers."""
    images = np.asarray(numbers, np.int32).view(np.uint8).reshape(-1, 2, 2, 1)
    return ArraySource(images, np.asarray(numbers, np.int64) % 2, CLASSES)


def numbers_in(source):
    images = source.read(np.arange(len(source))).images
    return images.reshape(len(source), 4).view(np.int32)[:, 0].tolist()


def sides(numbers, shares, seed=0):
    return {name: numbers_in(part) for name, part in split(array(numbers), shares, seed).items()}


BOTH = {"validation": 0.2, "test": 0.1}


def test_the_parts_cover_the_examples_once_and_in_order():
    found = sides(range(2000), BOTH)
    assert list(found) == ["train", "validation", "test"]
    assert sorted(number for part in found.values() for number in part) == list(range(2000))
    assert all(part == sorted(part) for part in found.values())


def test_the_parts_have_about_the_shares_asked_for():
    found = sides(range(10_000), BOTH)
    for name, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
        deviation = (share * (1 - share) * 10_000) ** 0.5
        assert abs(len(found[name]) - share * 10_000) < 4 * deviation


def test_a_share_of_nothing_makes_no_part():
    assert list(sides(range(50), {"validation": 0.5, "test": 0})) == ["train", "validation"]
    assert list(sides(range(50), {"test": 0.5})) == ["train", "test"]
    assert sides(range(50), {}) == {"train": list(range(50))}


def test_equal_images_come_to_one_side():
    found = sides([number // 10 for number in range(2000)], BOTH)
    seen = [set(part) for part in found.values()]
    assert sum(map(len, seen)) == 200
    assert all(part.count(number) == 10 for part in found.values() for number in part)


def test_examples_stay_where_they_are_when_others_come_and_go():
    some, more = sides(range(0, 1000, 2), BOTH), sides(range(999, -500, -1), BOTH)
    for name, part in some.items():
        assert set(part) == set(more[name]) & set(range(0, 1000, 2))


def test_a_larger_share_only_takes_from_the_training_part():
    small, large = sides(range(1000), BOTH), sides(range(1000), BOTH | {"validation": 0.6})
    assert small["test"] == large["test"]
    assert set(small["validation"]) < set(large["validation"])
    assert sides(range(1000), {"validation": 0.2})["validation"] == small["validation"]


def test_another_seed_gives_another_split():
    first, again, other = (sides(range(1000), BOTH, seed) for seed in (1, 1, 2))
    assert first == again
    overlap = set(first["validation"]) & set(other["validation"])
    assert 0 < len(overlap) < 100


def test_it_is_the_same_in_all_versions():
    assert sides(range(24), {"validation": 0.25, "test": 0.25}) == {
        "train": [0, 1, 2, 4, 5, 7, 8, 14, 16, 18, 20, 21, 22, 23],
        "validation": [3, 6, 9, 10, 12, 13, 19],
        "test": [11, 15, 17],
    }


def test_the_parts_make_a_data_set_that_keeps_labels_and_keys():
    data = DataSet(**split(array(range(100)), BOTH))
    assert data.train.classes == CLASSES
    for part in data.parts().values():
        assert labels_of(part).tolist() == [number % 2 for number in numbers_in(part)]
        assert [part.key(place) for place in range(len(part))] == [
            f"array record {n}" for n in numbers_in(part)
        ]


def test_it_goes_by_the_digests_that_the_source_knows():
    class Known:
        classes, image_shape = CLASSES, None

        def __len__(self):
            return 300

        def read(self, _indices):
            raise AssertionError("was read")

        def digests(self):
            return np.arange(300, dtype=np.uint64) // 3

    parts = split(Known(), BOTH)
    for part in parts.values():
        assert len(part) % 3 == 0
        assert np.all(np.bincount(digests_of(part).astype(np.int64)) % 3 == 0)
    assert sum(map(len, parts.values())) == 300


def test_encoded_images_are_told_apart_by_their_bytes():
    class Files:
        classes, image_shape = CLASSES, None

        def __len__(self):
            return 400

        def read(self, indices):
            return Batch(Encoded(tuple(f"file {index % 200}".encode() for index in indices)), indices % 2)

        def key(self, index):
            return str(index)

    parts = split(Files(), {"test": 0.3})
    test = [int(parts["test"].key(place)) for place in range(len(parts["test"]))]
    assert 0 < len(test) < 400
    assert sorted(test) == sorted((number + 200) % 400 for number in test)


@pytest.mark.parametrize(
    "shares",
    [
        {"test": 1},
        {"test": -0.1},
        {"test": 0.5, "validation": 0.5},
        {"test": float("nan")},
        {"validation": 1.5, "test": -1},
    ],
)
def test_shares_that_leave_nothing_to_train_on_are_refused(shares):
    with pytest.raises(UsageError, match="each is at least 0, and together they are less than 1"):
        split(array(range(9)), shares)


def test_a_share_of_another_part_is_refused():
    with pytest.raises(UnknownNameError, match="'validate': did you mean 'validation'"):
        split(array(range(9)), {"validate": 0.1})
