from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.sampler import Sampler
from foveal.recipe import Constant, Cosine, Exponential, Frequency, Linear, OneCycle, SchedulePart
from foveal.training.schedule import learning_rate_factor

ALL: list[SchedulePart] = [
    Constant(warmup_steps=5),
    Exponential(factor=0.1, every=10, staircase=True),
    Exponential(factor=0.5, every=10, warmup_steps=3),
    Cosine(final=0.1, warmup=0.1),
    Linear(final=0.2),
    OneCycle(peak=0.3, start=0.1, final=0.01),
]


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Constant(), 77, 1.0),
        (Constant(warmup_steps=4), 0, 0.2),
        (Constant(warmup_steps=4), 3, 0.8),
        (Constant(warmup_steps=4), 4, 1.0),
        (Exponential(factor=0.1, every=10, staircase=True), 9, 1.0),
        (Exponential(factor=0.1, every=10, staircase=True), 10, 0.1),
        (Exponential(factor=0.1, every=10), 5, 0.1**0.5),
        (Cosine(), 0, 1.0),
        (Cosine(), 50, 0.5),
        (Cosine(final=0.2), 100, 0.2),
        (Linear(), 0, 1.0),
        (Linear(final=0.5), 50, 0.75),
        (Linear(warmup=0.2), 60, 0.5),
        (OneCycle(peak=0.25, start=0.04), 0, 0.04),
        (OneCycle(peak=0.25), 25, 1.0),
        (OneCycle(final=0.01), 100, 0.01),
    ],
)
def test_the_factor_is_the_formulas(schedule: SchedulePart, step: int, expected: float) -> None:
    assert learning_rate_factor(schedule, step, 100) == pytest.approx(expected)


def test_staircase_falls_after_the_tutorials_136718_steps() -> None:
    schedule = Exponential(factor=0.1, every=int(50_000 / 128 * 350), staircase=True)
    assert learning_rate_factor(schedule, 136_717, 1_000_000) == 1.0
    assert learning_rate_factor(schedule, 136_718, 1_000_000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("size", "batch", "steps"), [(100, 10, [19, 20, 40]), (100, 30, [6, 7, 14]), (10, 40, [0, 1, 1])]
)
def test_a_schedule_in_epochs_falls_when_these_are_complete(size: int, batch: int, steps: list[int]) -> None:
    per_epoch = Sampler(size, batch, seed=0).steps_per_epoch
    schedule = Exponential(factor=0.5, every=Frequency(2, "epochs"), staircase=True)
    falls = [math.log2(1 / learning_rate_factor(schedule, step, 1000, per_epoch)) for step in steps]
    assert falls == [step * batch // (2 * size) for step in steps]
    smooth = schedule.model_copy(update={"staircase": False})
    found = learning_rate_factor(smooth, steps[1], 1000, per_epoch)
    assert found == pytest.approx(0.5 ** (steps[1] * batch / (2 * size)))


def test_three_times_a_third_of_an_epoch_are_one() -> None:
    schedule = Exponential(factor=0.5, every=Frequency(0.3, "epochs"), staircase=True)
    per_epoch = Sampler(100, 10, seed=0).steps_per_epoch
    assert [learning_rate_factor(schedule, step, 99, per_epoch) for step in (2, 3, 6, 9)] == [
        1,
        0.5,
        0.25,
        0.125,
    ]


@given(st.sampled_from(ALL), st.integers(1, 500), st.data())
def test_every_factor_is_between_zero_and_one(
    schedule: SchedulePart, total: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 <= learning_rate_factor(schedule, step, total) <= 1
