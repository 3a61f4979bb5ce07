"""Batch norm's statistics for the averaged weights: the network's own, averaged, or measured anew."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from foveal.recipe import Ema
from foveal.training.ema import MovingAverage

if TYPE_CHECKING:
    from collections.abc import Iterator

DECAY = 0.8
NORMS = ("norm", "head.1")
STATISTICS = [f"{norm}.{name}" for norm in NORMS for name in ("running_mean", "running_var")]


class Network(nn.Module):
    """Convolution and linear layer, a batch norm after each, dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.convolution(images))).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


def images(count: int, seed: int = 0, batch_size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, 3, 6, 6, generator=generator) * 2 + 1 for _ in range(count)]


def trained(statistics: str, steps: int = 12) -> tuple[Network, MovingAverage, list[dict[str, Tensor]]]:
    """A network after some steps, its averages, and all that it held after each step."""
    torch.manual_seed(0)
    model = Network().train()
    average = MovingAverage(model, Ema.model_validate({"decay": DECAY, "statistics": statistics}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    history = []
    for step, batch in enumerate(images(steps), 1):
        nn.functional.cross_entropy(model(batch), torch.arange(16) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        history.append(copy.deepcopy(model.state_dict()))
    return model, average, history


def test_copied_statistics_are_the_networks_own() -> None:
    model, average, _ = trained("copy")
    assert not set(STATISTICS) & set(average.tensors)
    expected = copy.deepcopy(model)
    expected.load_state_dict(model.state_dict() | average.tensors)
    batch = images(1, seed=1)[0]
    model.eval()
    assert torch.equal(functional_call(model, average.tensors, (batch,)), expected.eval()(batch))


def test_averaged_statistics_follow_the_networks_own_as_the_weights_do() -> None:
    _, average, history = trained("average")
    torch.manual_seed(0)
    expected = {name: value.double() for name, value in Network().state_dict().items()}
    for step, state in enumerate(history, 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = {name: decay * old + (1 - decay) * state[name] for name, old in expected.items()}
    assert set(STATISTICS) < set(average.tensors)
    for name, value in average.tensors.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_recomputed_statistics_are_those_of_the_batches_under_the_averaged_weights() -> None:
    model, average, _ = trained("recompute")
    batches = images(7, seed=2)
    average.recompute(model, batches, "float32")
    for name, value in by_hand(model, average.tensors, batches).items():
        torch.testing.assert_close(average.tensors[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(average.tensors[name], model.state_dict()[name], rtol=1e-2)


def by_hand(model: nn.Module, tensors: dict[str, Tensor], batches: list[Tensor]) -> dict[str, Tensor]:
    """Means and unbiased variances of what comes to batch norm, averaged over the batches, in float64."""
    network = copy.deepcopy(model).double().eval()
    network.load_state_dict({k: v for k, v in tensors.items() if k not in STATISTICS}, strict=False)
    seen: dict[str, list[Tensor]] = {name: [] for name in NORMS}
    for name in NORMS:
        norm = network.get_submodule(name)
        norm.train()
        norm.register_forward_pre_hook(lambda _norm, inputs, name=name: seen[name].append(inputs[0]))
    for batch in batches:
        network(batch.double())
    found = {}
    for name, inputs in seen.items():
        columns = [each.movedim(1, -1).flatten(0, -2) for each in inputs]
        found[f"{name}.running_mean"] = torch.stack([each.mean(dim=0) for each in columns]).mean(dim=0)
        found[f"{name}.running_var"] = torch.stack([each.var(dim=0) for each in columns]).mean(dim=0)
    return found


def test_evaluation_uses_recomputed_statistics_and_changes_them_no_further() -> None:
    model, average, _ = trained("recompute")
    average.recompute(model, images(3, seed=2), "float32")
    kept = copy.deepcopy(average.tensors)
    model.eval()
    batch = images(1, seed=3)[0]
    expected = copy.deepcopy(model)
    expected.load_state_dict(model.state_dict() | average.tensors)
    assert torch.equal(functional_call(model, average.tensors, (batch,)), expected(batch))
    assert all(torch.equal(value, kept[name]) for name, value in average.tensors.items())


def test_recomputing_changes_nothing_but_the_statistics_of_the_averages() -> None:
    model, average, _ = trained("recompute")
    model.norm.momentum = 0.25
    model.dropout.eval()
    model(images(1)[0]).sum().backward()
    state, averages = copy.deepcopy(model.state_dict()), copy.deepcopy(average.tensors)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    random = torch.get_rng_state()
    average.recompute(model, images(3, seed=2), "float32")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.norm.momentum == 0.25
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
        assert parameter.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    changed = {name for name, value in average.tensors.items() if not torch.equal(value, averages[name])}
    assert changed == set(STATISTICS)


def test_recomputing_gives_the_same_bits_whatever_was_measured_or_drawn_before() -> None:
    model, average, _ = trained("recompute")
    found = []
    for seed in (5, 6):
        average.recompute(model, images(2, seed=seed), "float32")
        torch.manual_seed(seed)
        average.recompute(model, images(3, seed=2), "float32")
        found.append(copy.deepcopy(average.tensors))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_frozen_batch_norm_keeps_the_networks_statistics() -> None:
    model, average, _ = trained("recompute")
    model.norm.eval()
    average.recompute(model, images(3, seed=2), "float32")
    own = model.state_dict()
    assert [name for name in STATISTICS if torch.equal(average.tensors[name], own[name])] == STATISTICS[:2]


def test_a_failing_batch_leaves_network_and_averages_as_they_were() -> None:
    model, average, _ = trained("recompute")
    state, averages = copy.deepcopy(model.state_dict()), copy.deepcopy(average.tensors)
    with pytest.raises(RuntimeError):
        average.recompute(model, [*images(1), torch.zeros(2, 1, 6, 6)], "float32")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.norm.momentum == 0.1
    assert all(torch.equal(value, averages[name]) for name, value in average.tensors.items())


def test_batches_are_prepared_outside_the_precision_and_the_mode_of_inference() -> None:
    def prepared() -> Iterator[Tensor]:
        for batch in images(2):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            yield batch

    model, average, _ = trained("recompute")
    average.recompute(model, prepared(), "bfloat16")


def test_without_batch_norm_no_batch_is_read() -> None:
    def broken() -> Iterator[Tensor]:
        pytest.fail("a batch was read")
        yield torch.zeros(1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).train()
    average = MovingAverage(model, Ema(decay=0.9, statistics="recompute"))
    average.recompute(model, broken(), "float32")
    assert set(average.tensors) == {"1.weight", "1.bias"}


def test_statistics_of_a_bfloat16_network_are_measured_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3)).to(torch.bfloat16).train()
    average = MovingAverage(model, Ema(decay=0.9, statistics="recompute"))
    batches = images(50, seed=4)
    average.recompute(model, batches, "float32")
    mean = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    assert average.tensors["0.running_mean"].dtype == torch.float32
    torch.testing.assert_close(average.tensors["0.running_mean"], mean, rtol=1e-5, atol=1e-6)
    assert model.state_dict()["0.running_mean"].dtype == torch.bfloat16


def test_a_batch_norm_that_is_the_network_itself_is_measured() -> None:
    model = nn.BatchNorm2d(3).train()
    average = MovingAverage(model, Ema(decay=0.9, statistics="recompute"))
    batch = images(1)[0]
    average.recompute(model, [batch], "float32")
    torch.testing.assert_close(average.tensors["running_var"], batch.movedim(1, -1).flatten(0, 2).var(dim=0))
