from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.errors import CheckpointError
from foveal.training.ema import MovingAverage


def test_the_average_ramps_up_as_tensorflows_does() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, decay=0.99)
    expected = 0.0
    for step in range(1, 200):
        nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_averages_are_float32_parameters_without_the_statistics_of_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = MovingAverage(model, decay=0.9)
    assert set(average.tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(value.dtype == torch.float32 for value in average.tensors.values())


def test_updating_leaves_the_network_as_it_is() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    MovingAverage(model, decay=0.9).update(1)
    assert torch.equal(model.weight, before)


def test_averages_of_another_network_are_refused() -> None:
    average = MovingAverage(nn.Linear(3, 2), decay=0.9)
    with pytest.raises(CheckpointError, match="averages"):
        average.load({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)})
