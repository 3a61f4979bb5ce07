from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.errors import CheckpointError
from foveal.inference import _load_averages, open_run, undisturbed

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


class Noisy(nn.Module):
    """Draws random numbers even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(2)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(self.norm(self.frozen(images)), 0.5, training=True)


def generators(device: str) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if device == "cuda" else states


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_in_training_is_used_without_a_trace(device: str) -> None:
    model = Noisy().to(device).train()
    model.frozen.eval()
    images = torch.ones(4, 2, 3, 3, device=device)
    model(images).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    random = generators(device)
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not model(images).requires_grad
    assert [model.training, model.norm.training, model.frozen.training] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in pairs)  # type: ignore[arg-type]
    assert all(map(torch.equal, generators(device), random))


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_network_draws_when_it_is_used_depends_on_nothing(device: str) -> None:
    model, images = Noisy().to(device), torch.ones(4, 2, 3, 3, device=device)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with undisturbed(model):
            found.append(model(images))
    assert torch.equal(*found)


def test_an_error_in_the_network_leaves_it_as_it_was() -> None:
    model = Noisy().train()
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError), undisturbed(model):
        model(torch.ones(4, 3, 3, 3))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.is_inference_mode_enabled()


class Tied(nn.Module):
    """A parameter of two names, and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


def averages(value: float, *, statistics: bool = False) -> dict[str, Tensor]:
    tensors = {"first.weight": torch.full((3, 3), value)}
    names = ["weight", "bias", *(["running_mean", "running_var"] if statistics else [])]
    return tensors | {f"norm.{name}": torch.full((3,), value) for name in names}


@pytest.mark.parametrize("statistics", [False, True])
def test_averages_take_the_place_of_weights_and_of_the_statistics_that_are_there(statistics: bool) -> None:
    model = Tied()
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    _load_averages(model, averages(5.0, statistics=statistics))
    assert model.first.weight is model.second.weight
    assert model.first.weight.unique().tolist() == [5.0]
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.unique().tolist() == [5.0 if statistics else 0.0]


def test_averages_are_written_back_in_the_dtype_of_the_network() -> None:
    model = Tied().to(torch.bfloat16)
    _load_averages(model, averages(1 / 3))
    assert model.first.weight.dtype == torch.bfloat16
    assert model.first.weight.unique().item() == torch.tensor(1 / 3).to(torch.bfloat16).item()


@pytest.mark.parametrize("wrong", ["norm.weight", "third.weight"])
def test_averages_that_lack_a_parameter_or_have_another_are_refused(wrong: str) -> None:
    tensors = averages(1.0)
    if wrong in tensors:
        del tensors[wrong]
    else:
        tensors[wrong] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=wrong):
        _load_averages(Tied(), tensors)


@pytest.fixture
def unstepped(trained_run: Path, tmp_path: Path) -> Path:
    """A run that keeps averages, stopped before its first step."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_bytes((trained_run / "recipe.toml").read_bytes())
    stored = read_checkpoint(trained_run / "checkpoints/step-000000020")
    state = {**stored.state, "step": 0, "validation": None}
    write_checkpoint(run / "checkpoints/step-000000000", stored.tensors, state)
    return run


def test_before_the_first_step_weights_are_raw(unstepped: Path, trained_run: Path) -> None:
    assert open_run(trained_run).weights == "ema"
    assert open_run(unstepped).weights == "raw"
    stored = read_checkpoint(unstepped / "checkpoints/step-000000000", ["model"])
    network = open_run(unstepped).network
    assert all(torch.equal(value, stored.tensors["model"][k]) for k, value in network.state_dict().items())


def test_before_the_first_step_there_are_no_averages_to_ask_for(unstepped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"before the first step; use --weights raw"):
        open_run(unstepped, weights="ema")
