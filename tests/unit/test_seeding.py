from __future__ import annotations

import itertools
import math
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from foveal import seeding
from foveal.seeding import Draws, Ranges, bits, permute, seed_for

# The 99.9% points of the chi-square distribution with n! - 1 degrees of freedom.
CRITICAL = {3: 20.52, 4: 49.73, 5: 173.62}


@pytest.mark.parametrize(("size", "seeds"), [(3, 1000), (4, 1000), (5, 2500)])
def test_permutations_of_few_elements_are_equally_likely(size, seeds):
    counts = Counter(tuple(permute(np.arange(size), size, seed, "p").tolist()) for seed in range(seeds))
    expected = seeds / math.factorial(size)
    statistic = sum(
        (counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(size))
    )
    assert statistic < CRITICAL[size]


def test_each_rank_of_a_larger_permutation_lands_everywhere():
    size, seeds = 20, 1000
    orders = np.stack([permute(np.arange(size), size, seed, "p") for seed in range(seeds)])
    expected = seeds / size
    for rank in range(size):
        counts = np.bincount(orders[:, rank], minlength=size)
        assert ((counts - expected) ** 2 / expected).sum() < 60  # 19 degrees: one in a million is 58


def test_permutations_of_different_epochs_and_seeds_differ():
    orders = {
        tuple(permute(np.arange(50), 50, seed, f"shuffle/epoch {epoch}").tolist())
        for seed in (0, 1, 2, -1)
        for epoch in range(25)
    }
    assert len(orders) == 100


def test_a_billion_elements_are_permuted_in_constant_memory():
    size = 10**9
    permute([0], size, 0, "warm")
    tracemalloc.start()
    try:
        ranks = np.concatenate([np.arange(500), np.arange(size - 500, size)])
        places = permute(ranks, size, 5, "p")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert len(set(places.tolist())) == 1000
    assert places.min() >= 0
    assert places.max() < size


def test_a_permutation_keeps_the_shape_of_its_ranks():
    assert permute(np.zeros((2, 3), np.int64), 7, 0, "p").shape == (2, 3)
    assert permute([], 7, 0, "p").shape == (0,)
    assert permute(3, 7, 0, "p") == permute([3], 7, 0, "p")[0]
    assert permute([3], 7, 0, "p").dtype == np.int64


def test_uniform_draws_fill_their_range_evenly():
    draws = Draws(1, np.arange(20_000)).uniform("u", -1.0, 3.0)
    counts = np.histogram(draws, bins=20, range=(-1.0, 3.0))[0]
    assert counts.sum() == 20_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # the 99.9% point of 19 degrees


def test_integer_draws_reach_both_ends_and_all_between_equally_often():
    draws = Draws(1, np.arange(21_000)).integers("i", -3, 3)
    counts = np.bincount(draws + 3, minlength=7)
    assert len(counts) == 7
    assert ((counts - 3000) ** 2 / 3000).sum() < 22.5  # the 99.9% point of 6 degrees
    assert draws.dtype == np.int64


def test_a_range_of_one_number_gives_that_number():
    draws = Draws(3, np.arange(10))
    assert draws.integers("i", 4, 4).tolist() == [4] * 10
    assert draws.uniform("u", 2.5, 2.5).tolist() == [2.5] * 10


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Draws(0, np.arange(500)).uniform("a"), Draws(0, np.arange(500)).uniform("b")),
        (Draws(0, np.arange(500)).uniform("a"), Draws(1, np.arange(500)).uniform("a")),
        (Draws(0, np.arange(500)).uniform("a"), Draws(0, np.arange(1, 501)).uniform("a")),
        (Draws(0, np.arange(500)).uniform("1/a"), Draws(1, np.arange(500)).uniform("a")),
    ],
    ids=["purposes", "seeds", "neighbouring positions", "purpose that holds a seed"],
)
def test_draws_of_different_coordinates_are_unrelated(first, second):
    assert len(np.intersect1d(first, second)) in {0, 499}  # 499: the same numbers, one position on
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_bits_keep_the_shape_of_their_positions():
    assert bits(0, "x", [[1, 2], [3, 4]]).tolist() == [
        bits(0, "x", [1, 2]).tolist(),
        bits(0, "x", [3, 4]).tolist(),
    ]
    assert bits(0, "x", 3) == bits(0, "x", [3])[0]


def test_a_seed_for_a_generator_fits_in_63_bits_and_depends_on_all_coordinates():
    seeds = {seed_for(s, p, n) for s in range(5) for p in ("a", "b") for n in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


class TestFrozenValues:
    """What old runs trained on: these numbers may never change."""

    def test_of_bits(self):
        assert bits(0, "x", [0, 1, 2, 10**9]).tolist() == [
            5578082622127887750,
            14513127406660988099,
            16318757280072416603,
            12383282014378339042,
        ]
        assert bits(7, "augmentation/0 flip", [0, 1, 10**12]).tolist() == [
            1200927424292448550,
            7660141174440919518,
            9942493671749994588,
        ]

    def test_of_seeds(self):
        assert seed_for(3, "dropout", 17) == 7822929540092412566

    def test_of_draws(self):
        draws = Draws(1, np.arange(5))
        assert draws.uniform("u", -1, 2).tolist() == [
            -0.4890603824597909,
            0.8697747412482459,
            1.1486940470949563,
            1.2001421073063558,
            1.3231581086275264,
        ]
        assert draws.integers("i", -3, 3).tolist() == [2, -1, 2, 3, 1]

    def test_of_permutations(self):
        assert permute(np.arange(10), 10, 0, "shuffle/epoch 0").tolist() == [2, 6, 4, 9, 5, 1, 7, 3, 0, 8]
        assert permute(np.arange(7), 7, 42, "shuffle/epoch 3").tolist() == [1, 4, 5, 2, 6, 0, 3]
        assert permute([0, 1, 999_999_999], 10**9, 0, "shuffle/epoch 0").tolist() == [
            667844706,
            374753659,
            831455779,
        ]


RANGES = Ranges(
    ("a", "b", "c", "d"),
    np.array([-3.0, 0.0, -1.5, 2.0]),
    np.array([3.0, 1e6, 2.0, 2.0]),
    np.array([True, True, False, False]),
)


def test_draws_made_together_are_those_made_one_by_one():
    draws = Draws(11, np.arange(10**9, 10**9 + 300))
    values = draws.sample(RANGES)
    assert values.dtype == np.float64
    assert values[0].tolist() == draws.integers("a", -3, 3).tolist()
    assert values[1].tolist() == draws.integers("b", 0, 10**6).tolist()
    assert values[2].tolist() == draws.uniform("c", -1.5, 2.0).tolist()
    assert values[3].tolist() == [2.0] * 300
    assert draws.words(("a", "d")).tolist() == [
        bits(11, purpose, draws.positions).tolist() for purpose in ("a", "d")
    ]


def test_without_numba_the_numbers_are_the_same(monkeypatch):
    def everything():
        draws = Draws(3, np.array([0, 1, 77, 10**12, 2**62]))
        return [
            bits(5, "x", [[0, 1], [2**63, 7]]),
            draws.words(("a", "b")),
            draws.words(()),
            draws.sample(RANGES),
            draws.integers("i", -9, 9),
            draws.uniform("u", 0.2, 1.8),
            Draws(0, np.arange(0)).sample(RANGES),
            *(permute(np.arange(size), size, size, "p") for size in (1, 2, 3, 10, 257)),
            permute([[0, 10**9 - 1]], 10**9, 0, "p"),
        ]

    assert seeding._compiled() is not None
    compiled = everything()
    monkeypatch.setattr(seeding, "_compiled", lambda: None)
    for one, other in zip(compiled, everything(), strict=True):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


def test_importing_it_does_not_import_numba():
    program = "import sys, foveal.seeding; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
