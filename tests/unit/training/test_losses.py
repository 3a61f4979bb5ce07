from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.recipe import AdamW, Muon, RmsProp, Sgd
from foveal.training.losses import LossParts
from foveal.training.optimizer import build_optimizer


@pytest.fixture
def model() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    with torch.no_grad():
        for value, parameter in enumerate(network.parameters(), 1):
            parameter.fill_(value)
    return network


def parts(model: nn.Module, part: Sgd | AdamW | RmsProp | Muon, decay: float = 0.9) -> LossParts:
    return LossParts(decay, model, part, build_optimizer(part, model))


def test_averages_are_those_of_tensorflow_which_start_from_zero(model: nn.Module) -> None:
    """``tf.compat.v1.train.ExponentialMovingAverage(0.9)`` of a tensor of 4, 3, 2: TensorFlow 2.15.1."""
    found = parts(model, Sgd(learning_rate=0.1))
    averages = []
    for value in (4.0, 3.0, 2.0):
        found.add(torch.tensor(value), found.weight_decay())
        averages.append(found.record()["loss_averages"]["cross_entropy"])
    assert averages == pytest.approx([0.4000001, 0.66000015, 0.79400015], abs=1e-6)


@pytest.mark.parametrize("optimizer", [Sgd, RmsProp], ids=["sgd", "rmsprop"])
def test_weight_decay_is_half_the_sum_of_squares_of_each_decayed_parameter(
    model: nn.Module, optimizer: type[Sgd | RmsProp]
) -> None:
    found = parts(model, optimizer(learning_rate=0.1, weight_decay=0.5, decayed=r"0\.weight|1\.bias"))
    found.add(torch.tensor(3.0), found.weight_decay())
    assert found.record()["losses"] == {
        "cross_entropy": 3.0,
        "weight_decay": {"0.weight": 0.5 * (1 + 1) / 2, "1.bias": 0.5 * 4**2 / 2},
        "total": 7.5,
    }


def test_its_gradient_is_what_sgd_adds(model: nn.Module) -> None:
    part = Sgd(learning_rate=1.0, weight_decay=0.25)
    found, before = parts(model, part), model[0].weight.detach().clone()
    with torch.enable_grad():
        term = model[0].weight.square().sum() * 0.25 / 2
    (expected,) = torch.autograd.grad(term, model[0].weight)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert found.weight_decay()[0].item() == term.item()
    build_optimizer(part, model).step()
    torch.testing.assert_close(before - model[0].weight.detach(), expected)


@pytest.mark.parametrize(
    "part",
    [AdamW(learning_rate=0.1, weight_decay=0.5), Sgd(learning_rate=0.1)],
    ids=["decoupled decay", "no decay"],
)
def test_what_is_no_term_of_the_loss_is_left_out(model: nn.Module, part: Sgd | AdamW) -> None:
    found = parts(model, part)
    found.add(torch.tensor(3.0), found.weight_decay())
    assert found.record()["losses"] == {"cross_entropy": 3.0, "total": 3.0}


def test_of_muon_only_what_is_left_to_sgd_is_a_term_of_the_loss(model: nn.Module) -> None:
    part = Muon(learning_rate=0.1, rest_learning_rate=0.1, orthogonal="0.weight", weight_decay=0.5)
    found = parts(model, part)
    found.add(torch.tensor(3.0), found.weight_decay())
    assert found.record()["losses"]["weight_decay"] == {"1.weight": pytest.approx(0.25 * 3**2)}


def test_averages_go_on_from_their_state_to_the_bit(model: nn.Module) -> None:
    part = Sgd(learning_rate=0.1, weight_decay=0.3)
    whole, first, second = (parts(model, part) for _ in range(3))
    for number in range(7):
        for each in (whole, first if number < 4 else second):
            each.add(torch.tensor(number / 3), each.weight_decay())
        if number == 3:
            second.load(first.state())
    assert set(whole.state()) == {"cross_entropy", "weight_decay/0.weight", "weight_decay/1.weight", "total"}
    assert second.state() == whole.state()


def test_a_part_that_the_state_does_not_know_starts_from_zero(model: nn.Module) -> None:
    found = parts(model, Sgd(learning_rate=0.1))
    found.load({"total": 2.0})
    assert found.state() == {"cross_entropy": 0.0, "total": 2.0}
