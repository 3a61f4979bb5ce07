from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from foveal.data.sampler import EvaluationBatches, Sampler
from foveal.errors import RecipeError


def test_each_epoch_has_an_order_of_its_own():
    sampler = Sampler(64, 64, 0)
    assert len({tuple(sampler.sample(step).indices.tolist()) for step in range(20)}) == 20


def test_without_shuffling_every_epoch_is_in_the_order_of_the_source():
    sampler = Sampler(5, 3, 0, "continuous", "none")
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


def test_the_order_of_the_first_blocks_is_what_it_was():
    sampler = Sampler(10, 10, 0, "continuous", "blocks", block=3, window=2)
    assert [sampler.sample(step).indices.tolist() for step in range(2)] == [
        [2, 6, 0, 7, 1, 8, 4, 9, 5, 3],
        [5, 7, 8, 4, 6, 3, 1, 2, 0, 9],
    ]


@pytest.mark.parametrize("shuffle", ["none", "global", "blocks"])
def test_sampling_a_billion_examples_takes_no_memory(shuffle):
    tracemalloc.start()
    try:
        sampler = Sampler(10**9, 128, 1, "continuous", shuffle)
        for step in (0, 10**6, 10**12):
            sampler.sample(step)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_blocks_are_read_a_window_at_a_time():
    sampler = Sampler(10**9, 128, 1, "continuous", "blocks", block=1024, window=8)
    blocks = {block for step in range(64) for block in (sampler.sample(step).indices // 1024).tolist()}
    assert len(blocks) == 8
    assert max(blocks) - min(blocks) > 1000


def test_the_examples_of_a_window_are_mixed():
    sampler = Sampler(10**6, 8192, 1, "continuous", "blocks", block=1024, window=8)
    blocks = sampler.sample(3).indices // 1024
    assert len(set(blocks.tolist())) == 8
    assert (np.bincount(np.unique(blocks[:1024], return_inverse=True)[1]) > 64).all()


def test_a_short_block_comes_at_any_place():
    sampler = Sampler(10, 10, 0, "continuous", "blocks", block=3, window=1)
    places = [sampler.sample(epoch).indices.tolist().index(9) for epoch in range(200)]
    assert sorted(set(places)) == [0, 3, 6, 9]
    assert min(places.count(place) for place in (0, 3, 6, 9)) > 25


def test_the_order_of_blocks_changes_every_epoch():
    sampler = Sampler(64, 64, 0, "continuous", "blocks", block=4, window=2)
    assert len({tuple(sampler.sample(step).indices.tolist()) for step in range(20)}) == 20


@pytest.mark.parametrize(
    ("batch_size", "world_size", "lengths"),
    [(64, 2, [32, 32]), (80, 2, [32, 48]), (70, 2, [32, 38]), (40, 3, [16, 16, 8]), (33, 3, [16, 16, 1])],
)
def test_processes_share_a_batch_in_groups_of_sixteen(batch_size, world_size, lengths):
    ranks = [Sampler(1000, batch_size, 0, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(rank.sample(5).indices) for rank in ranks] == lengths


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 32, "world_size": 3},
        {"batch_size": 16, "world_size": 2},
        {"batch_size": 64, "world_size": 4, "batching": "keep_last"},  # 1000 is 15 * 64 + 40
    ],
)
def test_a_batch_that_has_nothing_for_some_process_is_refused(options):
    with pytest.raises(RecipeError, match=r"has nothing for some of \d processes, which get 16 at a time"):
        Sampler(1000, seed=0, **options)
    assert len(Sampler(1000, seed=0, **options | {"world_size": 1}).sample(0).indices) > 0


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_process_that_there_is_not_is_refused(rank):
    with pytest.raises(RecipeError, match=rf"no process {rank} of 2"):
        Sampler(1000, 64, 0, rank=rank, world_size=2)


@pytest.mark.parametrize("number", ["size", "batch_size", "block", "window"])
def test_a_number_below_one_is_refused(number):
    with pytest.raises(RecipeError, match=r"each must be at least 1"):
        Sampler(**{"size": 10, "batch_size": 4, "seed": 0} | {number: 0})


def test_the_batches_of_an_evaluation_can_be_asked_for_alone():
    batches = EvaluationBatches(10, 4, rank=1, world_size=2)
    assert len(batches) == 2
    assert batches[1].tolist() == [8, 9]
    assert batches[0].dtype == np.int64
    with pytest.raises(IndexError):
        batches[2]


def test_where_there_are_fewer_batches_than_processes_some_have_none():
    assert [len(EvaluationBatches(10, 10, rank, 3)) for rank in range(3)] == [0, 0, 1]
