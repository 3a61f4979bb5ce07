from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveal import answering
from foveal.answering import BOUNDS, Answering
from foveal.data.catalog import open_data
from foveal.folding import folded
from foveal.inference import open_run
from foveal.models.small_cnn import SmallCnn
from foveal.models.whitened_cnn import WhitenedCnn
from foveal.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

PRECISIONS = ("float32", "bfloat16")


def recipe(precision: str = "float32", **more: Any) -> Recipe:
    values = {"name": "x", "batch_size": 1, "steps": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}}
    return Recipe.model_validate(values | {"precision": precision} | more)


def network() -> nn.Module:
    """With batch norm that does something."""
    torch.manual_seed(0)
    model = SmallCnn(4, (12, 12, 3), widths=(8, 12), padding=True)
    for _ in range(20):
        model(torch.randn(64, 3, 12, 12) + 1)
    return model.to(memory_format=torch.channels_last)


def plain(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(images).softmax(dim=1)


def assert_within_the_bound(found: Tensor, expected: Tensor, precision: str) -> None:
    assert (found - expected).abs().max() <= BOUNDS[precision] / 2  # type: ignore[index]
    best = expected.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > BOUNDS[precision]  # type: ignore[index]
    assert sure.any()
    assert torch.equal(found.argmax(1)[sure], expected.argmax(1)[sure])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_runs_answers_are_within_the_bound_of_the_plain_networks(trained_run: Path, precision: str) -> None:
    run = open_run(trained_run)
    source = open_data(run.recipe.data).part("test")
    pixels: Any = source.read(np.arange(len(source))).images
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    answer = Answering(run.network, run.recipe.model_copy(update={"precision": precision}))
    found = answer(images).softmax(dim=1)
    assert folded(run.network, images[:2]) is not None
    assert answer.precision == precision
    assert_within_the_bound(found, plain(run.network, images), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_processor_kernels_keep_to_the_bound(precision: str) -> None:
    torch.manual_seed(0)
    model = WhitenedCnn(10, (32, 32, 3))
    images = torch.randn(64, 3, 32, 32)
    model.initialise_from(images)
    for _ in range(3):
        model(images)
    answer = Answering(model, recipe(precision, kernels=True))
    model.head.weight.detach().mul_(20)  # as sure of itself as one that was trained
    assert_within_the_bound(answer(images).softmax(dim=1), plain(model, images), answer.precision)


@pytest.mark.parametrize("views", ["none", "flip+shift"])
@pytest.mark.parametrize("quicker", PRECISIONS)
def test_auto_is_the_precision_that_takes_less_time(monkeypatch, quicker: str, views: str) -> None:
    def seconds(_self: Answering, _images: Tensor, precision: str) -> float:
        return 1.0 if precision == quicker else 2.0

    monkeypatch.setattr(Answering, "_seconds", seconds)
    answer = Answering(network(), recipe("auto", evaluation={"tta": views}))
    answer(torch.randn(4, 3, 12, 12))
    assert answer.precision == quicker


def test_auto_is_settled_by_measuring() -> None:
    answer = Answering(network(), recipe("auto"))
    logits = answer(torch.randn(4, 3, 12, 12))
    assert answer.precision in PRECISIONS
    assert (logits.dtype, logits.shape) == (torch.float32, (4, 4))


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_where_bfloat16_would_change_too_much_it_is_float32(precision: str) -> None:
    model, images = network(), torch.randn(4, 3, 12, 12)
    model.logits.weight.detach().mul_(1000)
    answer = Answering(model, recipe(precision))
    torch.testing.assert_close(answer(images).softmax(1), plain(model, images), atol=1e-3, rtol=0)
    assert answer.precision == "float32"


def test_weights_in_bfloat16_need_bfloat16() -> None:
    answer = Answering(network().bfloat16(), recipe("auto"))
    assert answer(torch.randn(4, 3, 12, 12)).isfinite().all()
    assert answer.precision == "bfloat16"


def test_images_of_another_size_are_prepared_for_anew(monkeypatch) -> None:
    sizes = []

    def watched(model: nn.Module, images: Tensor, averages: Any) -> nn.Module | None:
        sizes.append(images.shape[2:])
        return folded(model, images, averages)

    monkeypatch.setattr(answering, "folded", watched)
    torch.manual_seed(0)
    answer = Answering(WhitenedCnn(4, (12, 12, 3), widths=(24, 24)), recipe())
    for side in (12, 12, 16, 16, 12):
        answer(torch.randn(3, 3, side, side))
    assert sizes == [(12, 12), (16, 16), (12, 12)]


def test_averages_of_any_dtype_are_used() -> None:
    model, images = network(), torch.randn(4, 3, 12, 12)
    averages = {name: value.double() * 1.5 for name, value in model.named_parameters()}
    found = Answering(model, recipe(), averages)(images)
    for parameter in model.parameters():
        parameter.detach().mul_(1.5)
    torch.testing.assert_close(found.softmax(dim=1), plain(model, images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", [True, False], ids=["folded", "nothing to fold"])
def test_what_is_compiled_is_what_would_be_used_otherwise(monkeypatch, norm: bool) -> None:
    given = []

    def compiled(network: Any) -> Any:
        given.append(network)
        return network

    monkeypatch.setattr(answering, "frozen", compiled)
    torch.manual_seed(0)
    model = network() if norm else nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    images = torch.randn(4, 3, 12, 12)
    found, expected = (Answering(model, recipe(), compiled=each)(images) for each in (True, False))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(given[0], nn.Module) == norm
    assert len(given) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_and_random_state_stay_as_they_are(precision: str) -> None:
    model = network().train()
    model(torch.randn(4, 3, 12, 12)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    random = torch.get_rng_state()
    logits = Answering(model, recipe(precision))(torch.ones(4, 3, 12, 12))
    assert not logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in pairs)  # type: ignore[arg-type]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_folded_network_is_the_one_that_is_asked(monkeypatch) -> None:
    sizes = []
    original = nn.BatchNorm2d.forward

    def watched(self: nn.BatchNorm2d, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return original(self, images)

    model = network()
    monkeypatch.setattr(nn.BatchNorm2d, "forward", watched)
    Answering(model, recipe())(torch.randn(64, 3, 12, 12))
    assert sizes == [2, 2]  # both norms, of the two images that folding is tried on
