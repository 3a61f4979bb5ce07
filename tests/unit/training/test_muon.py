from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.recipe import Group, Muon, Sgd
from foveal.training.muon import orthogonalize
from foveal.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors

PART = Muon(
    learning_rate=0.2,
    momentum=0.6,
    iterations=3,
    arithmetic="float32",
    normalize=True,
    rest_learning_rate=0.05,
    rest_momentum=0.85,
    weight_decay=0.01,
    decayed="all",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 4, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(5, 3, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
    model(images).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def one_by_one(values: Tensor, iterations: int) -> Tensor:
    """The iteration as it is published, for one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = values / (values.norm() + 1e-7)
    if len(x) > x.shape[1]:
        return one_by_one(values.T, iterations).T
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_singular_values_come_near_to_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, *shape, generator=generator, dtype=torch.float64).float()
    result = orthogonalize(matrices, 5)
    assert ((torch.linalg.svdvals(result) - 0.9).abs() < 0.24).all()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ result @ right.mT  # diagonal, where the vectors are the same
    torch.testing.assert_close(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_a_stack_of_matrices_gives_what_each_gives_alone(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([one_by_one(each, 3) for each in matrices])
    torch.testing.assert_close(orthogonalize(matrices, 3), expected, rtol=1e-4, atol=1e-5)
    rough = orthogonalize(matrices, 3, torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, rtol=0.1, atol=0.05)


def test_a_gradient_of_zeros_changes_nothing_but_the_norm() -> None:
    assert not orthogonalize(torch.zeros(1, 3, 4), 3).any()


def test_filters_are_normalised_and_take_orthogonal_steps_and_the_rest_is_nesterovs_sgd() -> None:
    model, plain = network(), network()
    optimizer = build_optimizer(PART, model)
    rest = Sgd(learning_rate=0.05, momentum=0.85, nesterov=True, weight_decay=0.01, decayed="all")
    beside = build_optimizer(rest, plain)
    moments = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.ndim == 4}
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        images = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
            other.grad = None if parameter.grad is None else parameter.grad.clone()
            other.data.copy_(parameter.data)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        beside.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            if name not in moments:
                torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-5, atol=1e-7)
                continue
            moments[name] = 0.6 * moments[name] + gradients[name]
            ahead = gradients[name] + 0.6 * moments[name]
            scaled = before[name] * (len(parameter) ** 0.5 / before[name].norm())
            expected = scaled - 0.2 * one_by_one(ahead.flatten(1), 3).view(ahead.shape)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-3, atol=1e-4)


def test_without_normalisation_filters_decay() -> None:
    model = network()
    part = PART.model_copy(update={"normalize": False, "weight_decay": 0.5})
    optimizer = build_optimizer(part, model)
    before = model[0].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.2 * 0.5))


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_saved_slots_continue_to_the_last_bit(arithmetic: str) -> None:
    part = PART.model_copy(update={"arithmetic": arithmetic})
    model = network()
    optimizer = build_optimizer(part, model)
    names = {f"momentum_buffer/{name}" for name, _ in model.named_parameters()}
    assert set(optimizer_tensors(optimizer, model)) == names
    for step in range(3):
        update(model, optimizer, step)
    slots = {name: value.contiguous().clone() for name, value in optimizer_tensors(optimizer, model).items()}
    resumed = copy.deepcopy(model)
    restored = build_optimizer(part, resumed)
    load_optimizer_tensors(restored, resumed, slots)
    for step in range(3, 6):
        update(model, optimizer, step)
        update(resumed, restored, step)
    for mine, theirs in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_made_orthogonal_may_be_chosen_by_name() -> None:
    model = network()
    optimizer = build_optimizer(PART.model_copy(update={"orthogonal": "^[25]"}), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p] for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    assert found == {"2.weight", "5.weight"}  # not their biases


def test_nothing_to_make_orthogonal_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"^optimizer\.orthogonal: '\^1' is found in no name of a matrix"):
        build_optimizer(PART.model_copy(update={"orthogonal": "^1"}), network())
    with pytest.raises(RecipeError, match=r"optimizer\.orthogonal: 'filters'"):
        build_optimizer(PART, nn.Linear(3, 2))


def test_groups_have_rates_and_decays_of_their_own_and_the_first_counts() -> None:
    model = network()
    own = (
        Group(parameters="^5", learning_rate=3.0, weight_decay=0.5),
        Group(parameters=r"bias$", weight_decay=0.0, until=0.5),
    )
    optimizer = build_optimizer(PART, model, own)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[p]: (group["full_rate"], group["weight_decay"], group["until"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found["5.weight"] == found["5.bias"] == (3.0, 0.5, None)
    assert found["1.bias"] == (0.05, 0.0, 0.5)
    assert found["1.weight"] == (0.05, 0.01, None)
    assert found["2.weight"] == (0.2, 0.01, None)


def test_a_group_of_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"^groups\.0: '\^9' is found in the name of nothing that learns"):
        build_optimizer(PART, network(), (Group(parameters="^9"),))
