from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.loader import Loader
from foveal.data.sampler import GROUP, EvaluationBatches, Sampler
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
    shuffle = draw(st.sampled_from(["none", "global", "blocks"]))
    block, window = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    return Sampler(size, batch_size, draw(seeds), batching, shuffle, block, window)


def run(sampler, steps):
    return [sampler.sample(step) for step in range(steps)]


def listed(sample):
    return sample.positions.tolist(), sample.indices.tolist(), sample.epochs.tolist()


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
    assert listed(replace(sampler).sample(step)) == listed(iterated)


@modest
@given(samplers(), st.integers(0, 20), st.integers(1, 10), st.integers(1, 4))
def test_batches_are_the_same_for_any_number_of_threads_and_place_of_restart(sampler, restart, more, threads):
    with Loader(sampler.sample, range(restart, restart + more), threads=threads) as loader:
        loaded = [listed(sample) for sample in loader]
    assert loaded == [listed(sample) for sample in run(sampler, restart + more)[restart:]]


@modest
@given(samplers(), st.integers(0, 20))
def test_an_example_belongs_to_the_pass_that_its_position_says(sampler, step):
    sample = sampler.sample(step)
    assert sample.epochs.dtype == sample.indices.dtype == sample.positions.dtype == np.int64
    assert sample.epochs.tolist() == [position // sampler.size for position in sample.positions.tolist()]


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
    other = replace(sampler, batch_size=other_size)
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


@modest
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 9), seeds, st.integers(0, 2**40))
def test_an_epoch_of_blocks_is_a_permutation_in_which_the_examples_of_a_block_are_within_a_window(
    size, block, window, seed, epoch
):
    indices = Sampler(size, size, seed, "continuous", "blocks", block, window).sample(epoch).indices
    assert sorted(indices.tolist()) == list(range(size))
    places = np.argsort(indices)
    for first in range(0, size, block):
        assert np.ptp(places[first : first + block]) < window * block


world = st.integers(1, 6)


@modest
@given(st.integers(1, 300), st.integers(1, 200), seeds, world, st.integers(0, 12), st.data())
def test_the_parts_of_all_processes_are_the_batch_of_one(size, batch_size, seed, world_size, step, data):
    batching = data.draw(st.sampled_from(["continuous", "drop_last", "keep_last"]))
    shuffle = data.draw(st.sampled_from(["none", "global", "blocks"]))
    try:
        ranks = [
            Sampler(size, batch_size, seed, batching, shuffle, 7, 2, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
    except RecipeError:
        return
    whole = replace(ranks[0], rank=0, world_size=1)
    parts = [rank.sample(step) for rank in ranks]
    joined = [list(itertools.chain(*each)) for each in zip(*map(listed, parts), strict=True)]
    assert joined == list(listed(whole.sample(step)))
    lengths = [len(part.indices) for part in parts]
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) <= GROUP
    assert all(end % GROUP == 0 for end in itertools.accumulate(lengths[:-1]))
    assert {rank.steps(3) for rank in ranks} == {whole.steps(3)}


@modest
@given(st.integers(0, 300), st.integers(1, 50), world)
def test_an_evaluation_shows_every_example_once_in_the_same_batches_to_any_number_of_processes(
    size, batch_size, world_size
):
    one = [indices.tolist() for indices in EvaluationBatches(size, batch_size)]
    ranks = [EvaluationBatches(size, batch_size, rank, world_size) for rank in range(world_size)]
    assert [indices.tolist() for rank in ranks for indices in rank] == one
    assert list(itertools.chain(*one)) == list(range(size))
    assert all(len(indices) == batch_size for indices in one[:-1])
    assert [len(list(rank)) for rank in ranks] == [len(rank) for rank in ranks]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_another_seed_gives_another_order(seed):
    first, second = (Sampler(100, 100, each).sample(0).indices.tolist() for each in (seed, seed + 1))
    assert first != second
