from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foveal.data.combine import balanced, concat, filtered, mix, relabel, skip, split, subset, take
from foveal.data.source import (
    ArraySource,
    Batch,
    DataSet,
    Encoded,
    Source,
    channels_of,
    digests_of,
    labels_of,
)
from foveal.errors import DataError, UnknownNameError, UsageError

CLASSES = ("cat", "dog", "owl")
KINDS = ["uint8", "float32", "encoded"]


class Read:
    """A source of which only reading tells anything: example ``n`` shows ``first + n`` and has its label."""

    classes = CLASSES

    def __init__(self, count, first=0, kind="uint8", shape=(2, 3, 1)):
        self.count, self.first, self.kind, self.image_shape = count, first, kind, shape

    def __len__(self):
        return self.count

    def read(self, indices):
        if indices.size and not 0 <= indices.min() <= indices.max() < self.count:
            raise AssertionError(f"asked for {indices}")
        shown = self.first + indices
        if self.kind == "encoded":
            images = Encoded(tuple(f"image {each}".encode() for each in shown))
        else:
            images = np.zeros((len(indices), *self.image_shape), self.kind)
            images += shown.astype(self.kind)[:, None, None, None]
        return Batch(images, shown % 3, {"shown": shown})

    def key(self, index):
        return f"file {self.first} record {index}"

    def fingerprint(self):
        return f"{self.first} {self.count}"


def every_combination(source):
    return [
        subset(source, np.array([1, 0, 1])),
        *split(source, {"test": 0.5}).values(),
        concat([source, source]),
        mix([source, source], [1, 2]),
        balanced(source),
        relabel(source, {}),
    ]


def array(*targets, first=0, classes=CLASSES, name="file"):
    images = np.zeros((len(targets), 2, 3, 1), np.uint8)
    images[:, 0, 0, 0] = first + np.arange(len(targets))
    return ArraySource(images, np.array(targets, np.int64), classes, name)


def shown(source, indices=None):
    """Which examples a source gives."""
    return (
        source.read(np.arange(len(source)) if indices is None else np.array(indices))
        .features["shown"]
        .tolist()
    )


def counts(source, size):
    return np.bincount(shown(source), minlength=size).tolist()


class TestSubset:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "indices", [range(2, 7), range(9, -1, -3), np.array([3, 0, 3]), [4], range(0), []]
    )
    def test_has_the_examples_named_in_that_order(self, kind, indices):
        part = subset(Read(10, kind=kind), indices)
        assert isinstance(part, Source)
        assert shown(part) == list(indices)
        assert len(part) == len(indices)
        assert part.classes == CLASSES
        assert part.image_shape == (2, 3, 1)
        assert [part.key(place) for place in range(len(part))] == [
            f"file 0 record {index}" for index in indices
        ]

    def test_of_a_subset_is_one_of_the_original(self):
        part = subset(subset(Read(20), range(3, 18, 2)), np.array([5, 1]))
        assert shown(part) == [13, 5]
        assert part.key(1) == "file 0 record 5"

    @pytest.mark.parametrize("wrong", [[-1], [3], [0, 1, 3]])
    def test_does_not_reach_beyond_itself(self, wrong):
        for part in (subset(Read(10), range(3, 6)), subset(Read(10), np.array([3, 4, 5]))):
            with pytest.raises(IndexError, match="of 3 examples"):
                part.read(np.array(wrong))
            with pytest.raises(IndexError, match="of 3 examples"):
                part.key(max(wrong, key=abs))

    @pytest.mark.parametrize(
        "wrong", [range(11), range(-1, 3), [10], np.array([0, -1]), range(10, -1, -1), range(5, 50, 44)]
    )
    def test_of_examples_that_are_not_there_is_refused(self, wrong):
        with pytest.raises(UsageError, match="of 10 examples"):
            subset(Read(10), wrong)

    @pytest.mark.parametrize("wrong", [[0.0, 1.0], np.ones(10, bool), [[0, 1]], ["a"]])
    def test_of_what_are_no_indices_is_refused(self, wrong):
        with pytest.raises(UsageError, match=r"indices must be integers \[N\], not"):
            subset(Read(10), wrong)

    def test_keeps_its_indices_when_the_caller_changes_his(self):
        indices = np.array([1, 2])
        part = subset(Read(10), indices)
        indices[:] = 9
        assert shown(part) == [1, 2]

    def test_knows_labels_without_reading_where_the_original_does(self):
        original = array(0, 1, 2, 1)
        assert subset(original, [3, 2]).targets.tolist() == [1, 2]
        assert labels_of(subset(original, range(1, 3))).tolist() == [1, 2]
        assert subset(Read(4), [3, 2]).targets is None
        assert labels_of(subset(Read(4), [3, 2])).tolist() == [0, 2]

    def test_knows_digests_where_the_original_does_and_else_reads_only_its_own(self):
        original = Read(4)
        whole = digests_of(original)
        assert digests_of(subset(original, [3, 1])).tolist() == whole[[3, 1]].tolist()
        original.digests = lambda: np.arange(4, dtype=np.uint64)
        assert digests_of(subset(original, [3, 1])).tolist() == [3, 1]

    def test_of_a_range_takes_no_memory_for_it(self):
        huge = subset(Read(10**15), range(0, 10**15, 7))
        assert shown(huge, [10**14]) == [7 * 10**14]


class TestTakeAndSkip:
    @pytest.mark.parametrize("count", [0, 1, 4, 10, 11, 10**12])
    def test_are_the_first_and_the_others(self, count):
        whole = list(range(10))
        assert shown(take(Read(10), count)) == whole[:count]
        assert shown(skip(Read(10), count)) == whole[count:]

    @pytest.mark.parametrize("cut", [take, skip])
    def test_of_fewer_than_none_are_refused(self, cut):
        with pytest.raises(UsageError, match="-1 examples: it must be at least 0"):
            cut(Read(10), -1)


class TestFiltered:
    def test_has_the_examples_for_which_the_predicate_holds(self):
        part = filtered(Read(3000), lambda batch: batch.features["shown"] % 1000 == 7)
        assert shown(part) == [7, 1007, 2007]
        assert part.key(1) == "file 0 record 1007"

    def test_asks_once_about_each(self):
        asked = []

        def predicate(batch):
            asked.extend(batch.features["shown"].tolist())
            return batch.targets == 0

        part = filtered(Read(2000), predicate)
        assert shown(part) == list(range(0, 2000, 3))
        assert asked == list(range(2000))

    def test_may_have_none(self):
        assert len(filtered(Read(5), lambda batch: batch.targets > 9)) == 0
        assert len(filtered(Read(0), lambda batch: batch.targets > 9)) == 0

    @pytest.mark.parametrize("wrong", [True, [1, 0, 1], [True], np.ones((3, 1), bool), None])
    def test_refuses_what_says_nothing_of_each(self, wrong):
        with pytest.raises(
            UsageError, match=r"predicate of filtered\(\) gave .* for 3 examples, not bool \[3\]"
        ):
            filtered(Read(3), lambda _: wrong)


class TestConcat:
    @pytest.mark.parametrize("kind", KINDS)
    def test_has_the_examples_of_each_in_turn(self, kind):
        whole = concat([Read(3, 10, kind), Read(0, kind=kind), Read(2, 20, kind), Read(1, 30, kind)])
        assert isinstance(whole, Source)
        assert shown(whole) == [10, 11, 12, 20, 21, 30]
        assert whole.image_shape == (2, 3, 1)
        assert whole.key(2) == "file 10 record 2"
        assert whole.key(5) == "file 30 record 0"
        order = [4, 0, 5, 0, 3]
        batch = whole.read(np.array(order))
        expected = [21, 10, 30, 10, 20]
        assert batch.features["shown"].tolist() == expected
        assert batch.targets.tolist() == [each % 3 for each in expected]
        if kind == "encoded":
            assert batch.images.contents == tuple(f"image {each}".encode() for each in expected)
        else:
            assert batch.images.dtype == kind
            assert batch.images[:, 1, 2, 0].tolist() == expected

    def test_of_no_examples_reads_none(self):
        assert shown(concat([Read(0), Read(0)])) == []
        assert shown(concat([Read(0), Read(3)]), []) == []

    def test_of_encoded_images_of_several_shapes_has_none(self):
        whole = concat([Read(2, kind="encoded"), Read(2, kind="encoded", shape=(5, 5, 1))])
        assert whole.image_shape is None
        assert len(whole.read(np.arange(4)).images) == 4

    def test_of_grey_images_of_several_sizes_is_grey(self):
        grey, other = Read(2, kind="encoded"), Read(2, kind="encoded")
        grey.image_shape = other.image_shape = None
        grey.channels = 1
        for combined in every_combination(grey):
            assert channels_of(combined) == 1
        for combined in every_combination(concat([grey, other])):
            assert channels_of(combined) == 3

    def test_tells_once_what_was_no_image(self):
        first, second, whole = Read(4), Read(4, first=4), Read(4)
        first.rejected, second.rejected = (("a", "is empty"), ("b", "is empty")), (("c", "is text"),)
        for combined in every_combination(first):
            assert combined.rejected == first.rejected
        assert concat([first, whole, second]).rejected == (*first.rejected, *second.rejected)
        assert subset(whole, range(2)).rejected == ()

    @pytest.mark.parametrize("wrong", [-1, 5])
    def test_does_not_reach_beyond_itself(self, wrong):
        with pytest.raises(IndexError, match="of 5 examples"):
            concat([Read(3), Read(2)]).read(np.array([0, wrong]))
        with pytest.raises(IndexError, match="of 5 examples"):
            concat([Read(3), Read(2)]).key(wrong)

    def test_of_nothing_is_refused(self):
        with pytest.raises(UsageError, match=r"concat\(\) of no sources"):
            concat([])

    @pytest.mark.parametrize(
        ("other", "difference"),
        [
            (
                Read(2, shape=(2, 4, 1)),
                "uint8 images of 2 x 4 x 1 with shown, the first uint8 images of 2 x 3 x 1",
            ),
            (Read(2, kind="float32"), "float32 images of 2 x 3 x 1 with shown, the first uint8"),
            (Read(2, kind="encoded"), "encoded images with shown, the first uint8"),
            (array(0, 1), "uint8 images of 2 x 3 x 1, the first uint8 images of 2 x 3 x 1 with shown"),
        ],
    )
    def test_of_different_things_is_refused(self, other, difference):
        with pytest.raises(DataError) as caught:
            concat([Read(2), Read(2), other])
        assert str(caught.value).startswith(
            "the sources to join hold different things: number 2 (from 0) holds "
        )
        assert difference in str(caught.value)

    def test_of_different_classes_is_refused(self):
        with pytest.raises(
            DataError, match=r"number 1 \(from 0\) has 2: dog, cat, the first 3: cat, dog, owl"
        ):
            concat([array(0, 1), array(0, 1, classes=("dog", "cat"))])

    def test_knows_labels_and_digests_where_all_sources_do(self):
        assert concat([array(0, 1), array(2)]).targets.tolist() == [0, 1, 2]
        assert concat([Read(2)]).targets is None
        known = Read(2)
        known.digests = lambda: np.array([5, 6], np.uint64)
        assert digests_of(concat([known, known])).tolist() == [5, 6, 5, 6]
        whole = digests_of(concat([known, Read(2)])).tolist()
        assert whole[:2] == whole[2:]

    def test_reads_the_same_from_many_threads(self):
        whole = concat([subset(Read(50), range(49, -1, -1)), take(Read(100, 50), 60)])
        expected = np.array(shown(whole))

        def check(seed):
            indices = np.random.default_rng(seed).integers(0, len(whole), 40)
            return shown(whole, indices) == expected[indices].tolist()

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, range(100)))


class TestMix:
    def test_has_shares_by_weight_and_every_example(self):
        mixed = mix([Read(60), Read(10, 60)], [0.5, 0.5])
        assert len(mixed) == 120
        assert counts(mixed, 70) == [1] * 60 + [6] * 10

    def test_goes_by_the_source_that_needs_most_draws(self):
        mixed = mix([Read(60), Read(10, 60)], [9, 1])
        assert len(mixed) == 100
        assert sum(counts(mixed, 70)[:60]) == 90
        assert counts(mixed, 70)[60:] == [1] * 10
        assert set(counts(mixed, 70)[:60]) == {1, 2}

    def test_spreads_what_occurs_once_more_over_the_source(self):
        mixed = mix([Read(10), Read(15, 10)], [1, 1])
        assert np.flatnonzero(np.array(counts(mixed, 25)) == 2).tolist() == [0, 2, 4, 6, 8]

    def test_rounds_shares_to_the_nearest_number_of_examples(self):
        assert sum(counts(mix([Read(10), Read(3, 10)], [3, 2]), 13)[10:]) == 7  # of 6.67

    def test_counts_beyond_a_thousand_million(self):
        mixed = mix([Read(10**9), Read(3 * 10**9, 10**9)], [3, 1])
        assert len(mixed) == 12 * 10**9
        assert shown(mixed, [9 * 10**9 - 1, 9 * 10**9]) == [10**9 - 1, 10**9]

    def test_of_one_source_is_that_source(self):
        assert shown(mix([Read(7)], [0.3])) == list(range(7))

    def test_keeps_the_keys(self):
        assert mix([Read(2), Read(4, 10)], [1, 1]).key(7) == "file 10 record 3"

    @pytest.mark.parametrize(
        "weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1, 1]]
    )
    def test_with_weights_that_do_not_fit_is_refused(self, weights):
        with pytest.raises(UsageError, match=r"for 2 sources: each has one, greater than 0"):
            mix([Read(2), Read(2)], weights)

    def test_with_weights_so_uneven_that_an_epoch_would_not_end_is_refused(self):
        with pytest.raises(UsageError, match="the weights are too uneven"):
            mix([Read(2), Read(2)], [1, 1e-19])

    def test_of_an_empty_source_is_refused(self):
        with pytest.raises(DataError, match=r"source number 1 \(from 0\) of those to mix has no examples"):
            mix([Read(2), Read(0)], [1, 1])


class TestBalanced:
    def test_has_every_class_as_often_as_the_largest(self):
        even = balanced(array(0, 1, 0, 2, 0, 1, 0, 0, 1))
        assert np.bincount(even.targets).tolist() == [5, 5, 5]
        repeated = np.bincount(even.read(np.arange(15)).images[:, 0, 0, 0])
        assert repeated[[0, 2, 4, 6, 7]].tolist() == [1] * 5
        assert sorted(repeated[[1, 5, 8]].tolist()) == [1, 2, 2]
        assert repeated[3] == 5

    def test_leaves_classes_without_examples_out(self):
        assert labels_of(balanced(array(2, 0, 2))).tolist() == [0, 0, 2, 2]

    def test_reads_the_labels_where_they_are_not_known(self):
        assert np.bincount(labels_of(balanced(Read(7)))).tolist() == [3, 3, 3]

    def test_keeps_the_keys(self):
        assert balanced(array(1, 0, 1)).key(2) == "file record 0"

    def test_of_no_examples_is_refused(self):
        with pytest.raises(DataError, match="no examples to balance"):
            balanced(Read(0))


class TestRelabel:
    def test_groups_classes(self):
        grouped = relabel(array(0, 1, 2, 1), {"cat": "mammal", "dog": "mammal"})
        assert grouped.classes == ("mammal", "owl")
        assert labels_of(grouped).tolist() == [0, 0, 1, 0]
        assert grouped.read(np.array([2, 0])).targets.tolist() == [1, 0]
        assert grouped.key(2) == "file record 2"
        assert isinstance(grouped, Source)

    def test_makes_sources_fit_each_other(self):
        first, second = array(0, 1, 2), array(1, 0, classes=("dog", "kitten"), first=3)
        whole = concat([first, relabel(second, {"kitten": "cat"}, first.classes)])
        assert labels_of(whole).tolist() == [0, 1, 2, 0, 1]
        assert DataSet(first, relabel(second, {"kitten": "cat"}, CLASSES)).validation is not None

    def test_reads_the_labels_where_they_are_not_known(self):
        assert labels_of(relabel(Read(4), {"owl": "cat"})).tolist() == [0, 1, 0, 0]

    def test_of_an_unknown_class_is_refused(self):
        with pytest.raises(UnknownNameError, match="no class named 'owls': did you mean 'owl'"):
            relabel(array(0), {"owls": "bird"})

    def test_without_a_place_for_a_class_is_refused(self):
        with pytest.raises(UsageError, match="'owl' is not among the classes 2: cat, dog"):
            relabel(array(0), {}, ("cat", "dog"))


def combinations(source, other):
    """Everything that can be made of two sources."""
    return [
        subset(source, range(1, 3)),
        subset(source, range(2, 0, -1)),
        subset(source, [1, 2]),
        subset(source, [2, 1]),
        take(source, 2),
        skip(source, 1),
        concat([source, other]),
        concat([other, source]),
        mix([source, other], [1, 1]),
        mix([source, other], [1, 2]),
        balanced(source),
        relabel(source, {"cat": "dog"}),
        relabel(source, {"cat": "fox"}),
    ]


def test_fingerprints_are_equal_for_equal_combinations_and_no_others():
    def found(targets):
        return [each.fingerprint() for each in combinations(array(*targets), array(0, 1, first=9))]

    once, changed = found((0, 1, 2, 1)), found((0, 1, 2, 0))
    assert once == found((0, 1, 2, 1))
    assert len({*once, *changed}) == 2 * len(once)
