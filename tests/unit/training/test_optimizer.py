from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from foveal.errors import CheckpointError
from foveal.recipe import AdamW, OptimizerPart, RmsProp, Sgd
from foveal.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 2))
    return model.to(memory_format=torch.channels_last)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(5, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    model(images).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


PARTS = [
    Sgd(learning_rate=0.01),
    Sgd(learning_rate=0.01, momentum=0.9, weight_decay=0.01),
    Sgd(learning_rate=0.01, momentum=0.9, nesterov=True),
    AdamW(learning_rate=0.01, weight_decay=0.1),
    RmsProp(learning_rate=0.01, momentum=0.9, weight_decay=0.01),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.name}-{part.weight_decay}")
def test_saved_slots_continue_to_the_last_bit(part: OptimizerPart) -> None:
    model = network()
    optimizer = build_optimizer(part, model)
    for step in range(3):
        update(model, optimizer, step)
    slots = {name: value.contiguous().clone() for name, value in optimizer_tensors(optimizer, model).items()}
    copy = network()
    copy.load_state_dict(model.state_dict())
    resumed = build_optimizer(part, copy)
    load_optimizer_tensors(resumed, copy, slots)
    for step in range(3, 6):
        update(model, optimizer, step)
        update(copy, resumed, step)
    for mine, theirs in zip(model.state_dict().values(), copy.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_rmsprop_is_tensorflows() -> None:
    rng = np.random.default_rng(0)
    value, gradients = rng.normal(size=4), rng.normal(size=(5, 4))
    parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("w", parameter)
    optimizer = build_optimizer(RmsProp(learning_rate=0.1, decay=0.8, momentum=0.5, epsilon=0.3), model)
    average, moment = np.ones(4), np.zeros(4)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        average = 0.8 * average + 0.2 * gradient**2
        moment = 0.5 * moment + 0.1 * gradient / np.sqrt(average + 0.3)
        value = value - moment
    np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_weight_decay_of_sgd_is_the_gradient_of_half_the_sum_of_squares() -> None:
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(Sgd(learning_rate=0.1, weight_decay=0.5), model)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("rule", "decayed"),
    [
        ("kernels", {"0.weight", "3.weight"}),
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}),
        (r"^3\.", {"3.weight", "3.bias"}),
    ],
)
def test_only_the_chosen_parameters_decay(rule: str, decayed: set[str]) -> None:
    model = network()
    optimizer = build_optimizer(Sgd(learning_rate=0.1, weight_decay=0.5, decayed=rule), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    assert found == decayed


def test_parameters_that_do_not_learn_have_no_slots() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(Sgd(learning_rate=0.1, momentum=0.9), model)
    update(model, optimizer, 0)
    assert "momentum_buffer/0.weight" not in optimizer_tensors(optimizer, model)


@pytest.mark.parametrize("part", PARTS[:4], ids=lambda part: f"{part.name}-{part.weight_decay}")
def test_slots_made_at_the_start_give_the_bits_of_those_that_pytorch_makes_later(part: OptimizerPart) -> None:
    ends = []
    for lazily in (False, True):
        model = network()
        optimizer = build_optimizer(part, model)
        if lazily:
            optimizer.state.clear()
        for step in range(4):
            update(model, optimizer, step)
        ends.append(model.state_dict() | optimizer_tensors(optimizer, model))
    eager, lazy = ends
    assert eager.keys() == lazy.keys()
    for name, value in eager.items():
        assert torch.equal(value, lazy[name]), name
        assert value.stride() == lazy[name].stride(), name


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.name}-{part.weight_decay}")
def test_all_slots_are_there_before_the_first_update(part: OptimizerPart) -> None:
    model = network()
    optimizer = build_optimizer(part, model)
    before = set(optimizer_tensors(optimizer, model))
    update(model, optimizer, 0)
    assert before == set(optimizer_tensors(optimizer, model))


def test_a_checkpoint_that_lacks_a_slot_is_refused_and_nothing_is_loaded() -> None:
    model = network()
    optimizer = build_optimizer(AdamW(learning_rate=0.1), model)
    update(model, optimizer, 0)
    slots = {name: value.clone() for name, value in optimizer_tensors(optimizer, model).items()}
    del slots["exp_avg/3.bias"]
    fresh = build_optimizer(AdamW(learning_rate=0.1), model)
    with pytest.raises(CheckpointError, match=r"exp_avg/3\.bias is not in the checkpoint"):
        load_optimizer_tensors(fresh, model, slots)
    assert not any(value.any() for value in optimizer_tensors(fresh, model).values())


def test_a_slot_of_another_dtype_is_refused() -> None:
    model = network()
    optimizer = build_optimizer(Sgd(learning_rate=0.1, momentum=0.9), model)
    slots = {name: value.double() for name, value in optimizer_tensors(optimizer, model).items()}
    with pytest.raises(CheckpointError, match="fits no parameter"):
        load_optimizer_tensors(optimizer, model, slots)


@pytest.mark.parametrize("key", ["momentum_buffer/9.weight", "momentum_buffer", "momentum_buffer/0.bias"])
def test_slots_of_another_network_are_refused(key: str) -> None:
    model = network()
    optimizer = build_optimizer(Sgd(learning_rate=0.1, momentum=0.9), model)
    with pytest.raises(CheckpointError, match="fits no parameter"):
        load_optimizer_tensors(optimizer, model, {key: torch.zeros(7)})
