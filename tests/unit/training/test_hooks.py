from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from foveal.data.sampler import Sampler
from foveal.errors import NonFiniteLossError
from foveal.recipe import Frequency
from foveal.training.hooks import Every, FiniteLoss, StopRequest

SAMPLER = Sampler(size=250, batch_size=100, seed=0)


def due(text: str, steps: int, sampler: Sampler = SAMPLER) -> list[int]:
    every = Every(Frequency.parse(text), sampler)
    return [step for step in range(1, steps + 1) if every.due(step)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 steps", [3, 6, 9]),
        ("1 step", list(range(1, 11))),
        ("1 epoch", [3, 5, 8, 10]),
        ("2 epochs", [5, 10]),
        ("never", []),
    ],
)
def test_actions_are_due_at_steps_that_follow_from_the_step_alone(text: str, steps: list[int]) -> None:
    assert due(text, 10) == steps


def test_a_fraction_of_an_epoch_is_not_missed_by_rounding() -> None:
    assert due("0.1 epochs", 30, Sampler(size=1000, batch_size=100, seed=0)) == list(range(1, 31))


def test_minutes_count_from_the_last_time_by_the_clock_given() -> None:
    now = [0.0]
    every = Every(Frequency.parse("2 min"), SAMPLER, clock=lambda: now[0])
    seen = []
    for step in range(1, 11):
        now[0] += 50
        if every.due(step):
            seen.append(step)
    assert seen == [3, 6, 9]


def test_the_first_loss_that_is_no_number_is_reported_with_its_step_and_examples() -> None:
    guard = FiniteLoss(lambda step: [f"file record {step}"] * 10)
    for step, loss in enumerate([1.0, 2.0, float("nan"), float("inf")], start=41):
        guard.add(step, torch.tensor(loss))
    with pytest.raises(NonFiniteLossError, match=r"nan at step 43, on file record 43.* and 2 more") as caught:
        guard.check()
    assert caught.value.step == 43
    assert caught.value.keys == ["file record 43"] * 10


def test_losses_are_looked_at_after_a_hundred_steps_even_if_nobody_asks() -> None:
    guard = FiniteLoss(lambda _step: [])
    for step in range(1, 100):
        guard.add(step, torch.tensor(float("inf")))
    with pytest.raises(NonFiniteLossError, match="inf at step 1,"):
        guard.add(100, torch.tensor(0.5))


def test_finite_losses_pass() -> None:
    guard = FiniteLoss(lambda _step: [])
    guard.add(1, torch.tensor(3.0))
    guard.check()
    guard.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_acts_as_before(number: signal.Signals) -> None:
    caught = []
    previous = signal.signal(number, lambda *_: caught.append("before"))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested == number.name
            assert caught == []
            os.kill(os.getpid(), number)
            assert caught == ["before"]
        os.kill(os.getpid(), number)
        assert caught == ["before", "before"]
    finally:
        signal.signal(number, previous)


def test_in_another_thread_signals_keep_their_meaning() -> None:
    outcome = []

    def work() -> None:
        with StopRequest() as stop:
            outcome.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [None]
