from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.errors import CheckpointError
from foveal.recipe import Ema
from foveal.training.ema import MovingAverage


def test_the_average_ramps_up_as_tensorflows_does() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, Ema(decay=0.99))
    expected = 0.0
    for step in range(1, 200):
        nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_averages_are_float32_parameters_without_the_statistics_of_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = MovingAverage(model, Ema(decay=0.9))
    assert set(average.tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(value.dtype == torch.float32 for value in average.tensors.values())


def test_updating_leaves_the_network_as_it_is() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    MovingAverage(model, Ema(decay=0.9)).update(1)
    assert torch.equal(model.weight, before)


def test_averages_of_bfloat16_weights_are_float32_and_finer_than_these() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, Ema(decay=0.999))
    nn.init.constant_(model.weight, 2.0)
    for step in range(100_000, 100_100):  # each moves by less than bfloat16 could tell apart
        average.update(step)
    assert average.tensors["weight"].dtype == torch.float32
    assert average.tensors["weight"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)
    assert model.weight.dtype == torch.bfloat16


def test_averages_begin_anew_with_the_present_weights_and_statistics() -> None:
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, Ema(decay=0.9, statistics="average"))
    nn.init.constant_(model.weight, 3.0)
    model(torch.randn(8, 2))
    average.reset()
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in average.tensors.items())
    nn.init.zeros_(model.weight)
    assert average.tensors["weight"].tolist() == [3.0, 3.0]  # a copy


def test_loaded_averages_are_those_that_were_stored() -> None:
    stored = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    average = MovingAverage(nn.Linear(3, 2), Ema(decay=0.9))
    average.load(stored)
    assert all(torch.equal(value, stored[name]) for name, value in average.tensors.items())


@pytest.mark.parametrize(
    "stored",
    [{"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, {"weight": torch.zeros(2, 3)}],
    ids=["of another shape", "one is missing"],
)
def test_averages_of_another_network_are_refused(stored: dict[str, torch.Tensor]) -> None:
    average = MovingAverage(nn.Linear(3, 2), Ema(decay=0.9))
    with pytest.raises(CheckpointError, match="averages"):
        average.load(stored)


def test_averaging_may_begin_late_and_until_then_the_averages_are_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, Ema(decay=0.9, start=0.5), total_steps=8)
    expected = []
    for step in range(1, 9):
        nn.init.constant_(model.weight, float(step) / 3)
        average.update(step)
        decay = min(0.9, (1 + step - 4) / (10 + step - 4)) if step > 4 else 0.0
        expected.append(decay * (expected[-1] if expected else 0.0) + (1 - decay) * step / 3)
        assert average.tensors["weight"].item() == pytest.approx(expected[-1], rel=1e-6)
        assert step > 4 or torch.equal(average.tensors["weight"], model.weight)
