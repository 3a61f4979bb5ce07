"""Temperatures: the one that was built in is found, and little evidence makes nobody certain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from foveal.calibration import RANGE, fit_temperature


def drawn(count, classes, temperature, seed=0):
    """Logits that are too sure by a factor, and labels drawn from the probabilities that are right."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 2
    labels = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_built_in_is_found(temperature):
    assert fit_temperature(*drawn(20_000, 5, temperature)) == pytest.approx(temperature, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 50), classes=st.integers(2, 6), scale=st.floats(0.1, 30), seed=st.integers(0, 99))
def test_no_other_temperature_in_the_range_is_better_by_the_smoothed_loss(count, classes, scale, seed):
    logits, labels = drawn(count, classes, scale, seed)
    doubt = 1 / (count + 2)

    def loss(temperature):
        answers = (logits.double() / temperature).log_softmax(dim=1)
        right = answers.gather(1, labels[:, None])[:, 0]
        others = (answers.sum(dim=1) - right) / (classes - 1)
        return -((1 - doubt) * right + doubt * others).mean().item()

    found = fit_temperature(logits, labels)
    assert RANGE[0] <= found <= RANGE[1]
    for other in (RANGE[0], found * 0.9, found * 1.1, RANGE[1]):
        if RANGE[0] <= other <= RANGE[1]:
            assert loss(found) <= loss(other) + 1e-9


def test_few_right_answers_are_not_made_certain():
    logits, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)  # 12 examples, all right
    answers = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    assert answers.max().item() == pytest.approx(13 / 14, abs=1e-6)


def test_answers_that_know_nothing_lose_all_confidence():
    logits, labels = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5000) % 4
    assert fit_temperature(logits, labels) > 10
    before = functional.cross_entropy(logits, labels)
    assert functional.cross_entropy(logits / fit_temperature(logits, labels), labels) < before
