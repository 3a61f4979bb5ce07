from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.combine import balanced, concat, filtered, mix, relabel, skip, split, subset, take
from foveal.data.expand import expand
from foveal.data.source import ArraySource, Batch, Encoded, labels_of

CLASSES = ("cat", "dog", "owl", "emu")
modest = settings(max_examples=50, deadline=None)
sizes = st.integers(1, 40)
kinds = st.sampled_from(["uint8", "float32", "encoded"])


class Encoding:
    """A source of the same images, each as its bytes."""

    def __init__(self, source):
        self.source, self.classes, self.image_shape = source, source.classes, None
        self.key, self.fingerprint = source.key, source.fingerprint

    def __len__(self):
        return len(self.source)

    def read(self, indices):
        batch = self.source.read(indices)
        return Batch(Encoded(tuple(image.tobytes() for image in batch.images)), batch.targets)


def made(size, kind, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (size, 2, 2, 1)).astype("uint8" if kind == "encoded" else kind)
    source = ArraySource(images, generator.integers(0, len(CLASSES), size), CLASSES, f"file {seed}")
    return Encoding(source) if kind == "encoded" else source


@st.composite
def sources(draw, kind=None):
    return made(draw(sizes), kind or draw(kinds), draw(st.integers(0, 2**32)))


def as_often_as_its_label(batch):
    """What can be made of a record: as many examples as its label says."""
    count = int(batch.targets[0])
    images = batch.images
    again = (
        Encoded(tuple(images.contents) * count)
        if isinstance(images, Encoded)
        else np.repeat(images, count, 0)
    )
    return Batch(again, np.arange(count))


def steps(draw, source, other):
    """What can be made of a source, and of one more."""
    last = max(0, len(source) - 1)
    always = [
        lambda: subset(source, range(len(source))[draw(st.slices(len(source)))]),
        lambda: subset(source, draw(st.lists(st.integers(0, last), max_size=9 * len(source)))),
        lambda: take(source, draw(st.integers(0, 50))),
        lambda: skip(source, draw(st.integers(0, 50))),
        lambda: concat([source, other]),
        lambda: concat([other, source]),
        lambda: split(source, {"validation": 0.3, "test": 0.2}, draw(st.integers()))["train"],
        lambda: filtered(source, lambda batch: batch.targets != 1),
        lambda: relabel(source, {"cat": "emu"}, CLASSES),
    ]
    if not len(source):
        return always
    return [
        *always,
        lambda: mix([source, other], draw(st.tuples(*[st.floats(0.1, 10)] * 2))),
        lambda: balanced(source),
        lambda: expand(source, as_often_as_its_label),
    ]


@st.composite
def combinations(draw):
    kind = draw(kinds)
    source = draw(sources(kind))
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.sampled_from(steps(draw, source, draw(sources(kind)))))()
    return source


def flat(batch):
    """Images and labels as lists."""
    images = batch.images
    images = list(images.contents) if isinstance(images, Encoded) else [image.tobytes() for image in images]
    return images, batch.targets.tolist()


@settings(max_examples=50, deadline=None)
@given(combinations(), st.data())
def test_any_combination_reads_many_examples_as_it_reads_each(source, data):
    indices = data.draw(
        st.lists(st.integers(0, len(source) - 1), max_size=12) if len(source) else st.just([])
    )
    images, targets = flat(source.read(np.array(indices, np.int64)))
    alone = [flat(source.read(np.array([index]))) for index in indices]
    assert images == [image for one, _ in alone for image in one]
    assert targets == [target for _, one in alone for target in one]
    assert labels_of(source)[indices].tolist() == targets
    assert all(source.key(index).startswith("file ") for index in indices)


@modest
@given(sources(), st.lists(st.integers(-5, 60), max_size=20), st.data())
def test_subsets_are_those_that_numpy_picks(source, indices, data):
    images, targets = flat(source.read(np.arange(len(source))))
    indices = [index for index in indices if 0 <= index < len(source)]
    assert flat(subset(source, np.array(indices, np.int64)).read(np.arange(len(indices))))[1] == [
        targets[index] for index in indices
    ]
    span = range(len(source))[data.draw(st.slices(len(source)))]
    part = subset(source, span)
    assert len(part) == len(span)
    assert flat(part.read(np.arange(len(span)))) == ([images[i] for i in span], [targets[i] for i in span])


@modest
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), kinds)
def test_concatenations_are_those_of_lists(counts, kind):
    parts = [made(count, kind, seed) for seed, count in enumerate(counts)]
    whole = concat(parts)
    expected = [flat(part.read(np.arange(len(part)))) for part in parts]
    assert flat(whole.read(np.arange(len(whole)))) == (
        [image for images, _ in expected for image in images],
        [target for _, targets in expected for target in targets],
    )
    assert [whole.key(i) for i in range(len(whole))] == [
        part.key(i) for part in parts for i in range(len(part))
    ]


@modest
@given(
    st.lists(st.integers(0, 10**6), unique=True, max_size=300),
    st.integers(),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_parts_of_a_split_are_disjoint_and_cover_all(numbers, seed, validation, test):
    images = np.array(numbers, np.int32).view(np.uint8).reshape(-1, 2, 2, 1)
    source = ArraySource(images, np.arange(len(numbers)), tuple(map(str, range(len(numbers)))))
    parts = split(source, {"validation": validation, "test": test}, seed)
    assert sorted(target for part in parts.values() for target in labels_of(part)) == list(
        range(len(numbers))
    )
    alone = split(take(source, 100), {"validation": validation, "test": test}, seed)
    for name, part in alone.items():
        assert labels_of(part).tolist() == [
            target for target in labels_of(parts[name]).tolist() if target < 100
        ]


@modest
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.2, 5)), min_size=1, max_size=5))
def test_mixtures_have_the_shares_that_their_weights_say_and_all_examples(parts):
    counts, weights = zip(*parts, strict=True)
    mixed = mix([made(count, "uint8", seed) for seed, count in enumerate(counts)], weights)
    length = max(count / weight for count, weight in parts)
    drawn = {}
    for place in range(len(mixed)):
        drawn[mixed.key(place)] = drawn.get(mixed.key(place), 0) + 1
    for seed, (count, weight) in enumerate(parts):
        each = [drawn.get(f"file {seed} record {record}", 0) for record in range(count)]
        assert abs(sum(each) - weight * length) < 0.5 + 1e-6
        assert 1 <= min(each) <= max(each) <= min(each) + 1
    assert any(sum(drawn[f"file {s} record {r}"] for r in range(c)) == c for s, c in enumerate(counts))


@modest
@given(sources())
def test_balanced_sources_have_every_class_equally_often_and_all_examples(source):
    even = balanced(source)
    before, after = (np.bincount(labels_of(each), minlength=len(CLASSES)) for each in (source, even))
    assert after.tolist() == [before.max() if count else 0 for count in before]
    drawn = np.unique([even.key(place) for place in range(len(even))], return_counts=True)[1]
    assert len(drawn) == len(source)
    assert drawn.min() >= 1
