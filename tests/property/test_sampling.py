from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.sampler import Sampler
from foveal.errors import RecipeError
from foveal.seeding import Draws, permute

seeds = st.integers(-(2**70), 2**70)
modest = settings(max_examples=40, deadline=None)


@st.composite
def samplers(draw, batching=None):
    size = draw(st.integers(1, 120))
    batching = batching or draw(st.sampled_from(["continuous", "drop_last", "keep_last"]))
    most = size if batching == "drop_last" else 150
    batch_size = draw(st.integers(1, most))
    return Sampler(size, batch_size, draw(seeds), batching, draw(st.booleans()))


def run(sampler, steps):
    return [sampler.sample(step) for step in range(steps)]


@modest
@given(st.integers(1, 3000), seeds, st.text(max_size=8))
def test_a_permutation_is_a_bijection(size, seed, purpose):
    assert np.sort(permute(np.arange(size), size, seed, purpose)).tolist() == list(range(size))


@modest
@given(st.integers(1, 3000), seeds, st.data())
def test_any_rank_can_be_asked_for_alone(size, seed, data):
    some = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    everything = permute(np.arange(size), size, seed, "p")
    assert permute(np.array(some, np.int64), size, seed, "p").tolist() == everything[some].tolist()


@modest
@given(seeds, st.integers(-1000, 1000), st.integers(0, 1000), st.integers(0, 2**62))
def test_draws_are_in_range(seed, low, extent, first):
    draws = Draws(seed, np.arange(first, first + 50, dtype=np.int64))
    integers = draws.integers("i", low, low + extent)
    assert ((integers >= low) & (integers <= low + extent)).all()
    uniform = draws.uniform("u", low, low + extent + 0.5)
    assert ((uniform >= low) & (uniform < low + extent + 0.5)).all()


@modest
@given(seeds, st.lists(st.integers(1, 20), min_size=1, max_size=10), st.integers(0, 2**40))
def test_draws_are_the_same_however_the_stream_is_cut_into_batches(seed, lengths, first):
    positions = np.arange(first, first + sum(lengths), dtype=np.int64)
    batches = np.split(positions, np.cumsum(lengths)[:-1])
    for draw in (
        lambda draws: draws.uniform("u", -1, 1),
        lambda draws: draws.integers("i", 0, 9),
    ):
        pieces = [draw(Draws(seed, batch)) for batch in batches]
        assert np.concatenate(pieces).tolist() == draw(Draws(seed, positions)).tolist()


@modest
@given(samplers(), st.integers(1, 3))
def test_no_example_comes_twice_in_an_epoch_and_none_is_missing(sampler, epochs):
    samples = run(sampler, sampler.steps(epochs))
    positions = np.concatenate([sample.positions for sample in samples])
    indices = np.concatenate([sample.indices for sample in samples])
    dropped = sampler.size % sampler.batch_size if sampler.batching == "drop_last" else 0
    for epoch in range(epochs):
        here = indices[positions // sampler.size == epoch]
        assert len(set(here.tolist())) == len(here) == sampler.size - dropped
        assert ((here >= 0) & (here < sampler.size)).all()


@modest
@given(samplers(), st.integers(0, 20))
def test_seeking_to_a_step_gives_what_iterating_to_it_gives(sampler, step):
    iterated = run(sampler, step + 1)[step]
    again = Sampler(sampler.size, sampler.batch_size, sampler.seed, sampler.batching, sampler.shuffle)
    sought = again.sample(step)
    assert sought.positions.tolist() == iterated.positions.tolist()
    assert sought.indices.tolist() == iterated.indices.tolist()


@modest
@given(samplers(batching="continuous"), st.integers(1, 20))
def test_continuous_batches_are_full_and_run_on_across_epochs(sampler, steps):
    samples = run(sampler, steps)
    assert all(len(sample.indices) == sampler.batch_size for sample in samples)
    stream = np.concatenate([sample.positions for sample in samples])
    assert stream.tolist() == list(range(steps * sampler.batch_size))


@settings(max_examples=25, deadline=None)
@given(samplers(batching="continuous"), st.integers(1, 150))
def test_the_continuous_stream_does_not_depend_on_the_batch_size(sampler, other_size):
    other = Sampler(sampler.size, other_size, sampler.seed, "continuous", sampler.shuffle)
    streams = [
        np.concatenate([each.sample(step).indices for step in range(80 // each.batch_size + 1)])[:80]
        for each in (sampler, other)
    ]
    assert streams[0].tolist() == streams[1].tolist()


@modest
@given(samplers(batching="drop_last"))
def test_drop_last_makes_only_full_batches(sampler):
    steps = sampler.steps(2)
    assert steps == 2 * (sampler.size // sampler.batch_size)
    assert {len(sample.indices) for sample in run(sampler, steps)} == {sampler.batch_size}


@modest
@given(samplers(batching="keep_last"))
def test_keep_last_makes_the_last_batch_of_each_epoch_smaller(sampler):
    full, rest = divmod(sampler.size, sampler.batch_size)
    an_epoch = [sampler.batch_size] * full + ([rest] if rest else [])
    assert [len(sample.indices) for sample in run(sampler, sampler.steps(2))] == an_epoch * 2


@modest
@given(samplers(), st.integers(1, 5))
def test_that_many_epochs_take_that_many_steps_and_no_more(sampler, epochs):
    steps = sampler.steps(epochs)
    assert sampler.epoch(steps) >= epochs - 1e-9
    assert sampler.epoch(steps - 1) < epochs


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_another_seed_gives_another_order(seed):
    first, second = (Sampler(100, 100, each).sample(0).indices.tolist() for each in (seed, seed + 1))
    assert first != second


def test_each_epoch_has_an_order_of_its_own():
    sampler = Sampler(64, 64, 0)
    assert len({tuple(sampler.sample(step).indices.tolist()) for step in range(20)}) == 20


def test_without_shuffling_every_epoch_is_in_the_order_of_the_source():
    sampler = Sampler(5, 3, 0, "continuous", shuffle=False)
    assert [sampler.sample(step).indices.tolist() for step in range(4)] == [
        [0, 1, 2],
        [3, 4, 0],
        [1, 2, 3],
        [4, 0, 1],
    ]


def test_a_batch_larger_than_the_data_spans_several_epochs():
    sample = Sampler(3, 8, 0).sample(0)
    assert sorted(sample.indices[:3].tolist()) == sorted(sample.indices[3:6].tolist()) == [0, 1, 2]
    assert sample.positions.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("batching", "epochs", "steps"),
    [
        ("continuous", 1, 3),  # 10 examples in batches of 4: 2.5 steps
        ("continuous", 2, 5),
        ("continuous", 0.4, 1),
        ("continuous", 0.41, 2),
        ("continuous", 1e-6, 1),
        ("drop_last", 1, 2),
        ("drop_last", 0.75, 2),
        ("drop_last", 3, 6),
        ("keep_last", 1, 3),
        ("keep_last", 2, 6),
        ("keep_last", 1 / 3, 1),
    ],
)
def test_steps_of_epochs(batching, epochs, steps):
    assert Sampler(10, 4, 0, batching).steps(epochs) == steps


def test_a_rounding_error_does_not_add_a_step():
    assert Sampler(1000, 100, 0).steps(0.1 + 0.2) == 3


@pytest.mark.parametrize(
    ("batching", "expected"), [("continuous", 2.0), ("drop_last", 2.5), ("keep_last", 5 / 3)]
)
def test_epochs_of_steps(batching, expected):
    assert Sampler(10, 4, 0, batching).epoch(5) == pytest.approx(expected)


def test_drop_last_with_less_than_a_batch_is_refused():
    with pytest.raises(RecipeError, match=r"drop_last.* 3 examples and batch_size = 4 .*'continuous'"):
        Sampler(3, 4, 0, "drop_last")
    assert Sampler(4, 4, 0, "drop_last").steps(1) == 1


def test_a_step_of_a_billion_examples_far_away_is_sampled_at_once():
    sample = Sampler(10**9, 256, 1).sample(10**10)
    assert sample.positions[0] == 256 * 10**10
    assert len(set(sample.indices.tolist())) == 256


def test_the_order_of_the_first_steps_is_what_it_was():
    sampler = Sampler(10, 4, 0)
    assert sampler.sample(2).indices.tolist() == [0, 8, 0, 9]
    assert sampler.sample(2).positions.tolist() == [8, 9, 10, 11]
