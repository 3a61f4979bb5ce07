from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foveal.errors import RecipeError, UnknownNameError
from foveal.models.mnist_cnn import MnistCnn
from foveal.models.registry import MODELS, build_model, end_points
from foveal.recipe import ModelPart

SHAPES: dict[str, tuple[int, int, int]] = {"inception_v3": (75, 75, 3)}
OPTIONS: dict[str, dict[str, float]] = {"inception_v3": {"depth_multiplier": 0.25}}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_gives_logits_and_learns_in_every_parameter(name: str) -> None:
    height, width, channels = SHAPES.get(name, (28, 28, 1))
    part = ModelPart(name=name, options=OPTIONS.get(name, {}))
    model = build_model(part, 7, (height, width, channels), seed=0)
    found = model(torch.rand(3, channels, height, width))
    heads = found if isinstance(found, tuple) else (found,)
    assert [logits.shape for logits in heads] == [(3, 7)] * len(heads)
    torch.stack(heads).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_follow_from_the_seed_and_leave_torchs_generator_alone(name: str) -> None:
    shape = SHAPES.get(name, (28, 28, 1))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    part = ModelPart(name=name, options=OPTIONS.get(name, {}))
    one, same, other = (build_model(part, 10, shape, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_mnist_cnn_is_the_tutorials_network() -> None:
    model = MnistCnn(10, (28, 28, 1))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "dense.weight": (1024, 3136),
        "dense.bias": (1024,),
        "logits.weight": (10, 1024),
        "logits.bias": (10,),
    }
    assert sum(p.numel() for p in model.parameters()) == 3_274_634
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    limit = math.sqrt(6 / (5 * 5 * 32 + 5 * 5 * 64))  # Glorot: kernel size times channels in, and out
    assert limit * 0.99 < model.conv2.weight.abs().max().item() <= limit


def test_mnist_cnn_computes_what_the_tutorial_writes() -> None:
    """ReLU before pooling, and a flattening in the order of NHWC."""
    model = MnistCnn(10, (28, 28, 1)).eval()
    images = torch.rand(4, 1, 28, 28)
    hidden = images
    for conv in (model.conv1, model.conv2):
        hidden = nn.functional.max_pool2d(nn.functional.relu(conv(hidden)), 2)
    flat = hidden.permute(0, 2, 3, 1).reshape(4, -1)
    expected = model.logits(nn.functional.relu(model.dense(flat)))
    torch.testing.assert_close(model(images), expected)


def test_end_points_gives_named_activations_and_leaves_no_trace() -> None:
    model = build_model(ModelPart(name="mnist_cnn"), 10, (28, 28, 1), seed=0)
    with end_points(model, ["conv1", "dense"]) as activations:
        model(torch.rand(2, 1, 28, 28))
    assert activations["conv1"].shape == (2, 32, 28, 28)
    assert activations["dense"].shape == (2, 1024)
    activations.clear()
    model(torch.rand(2, 1, 28, 28))
    assert activations == {}


def test_an_unknown_activation_is_named_with_the_nearest() -> None:
    model = build_model(ModelPart(name="mnist_cnn"), 10, (28, 28, 1), seed=0)
    with pytest.raises(UnknownNameError, match="did you mean 'conv1'"), end_points(model, ["convv1"]):
        pass


def test_images_the_network_cannot_take_are_refused() -> None:
    with pytest.raises(RecipeError, match="multiples of 4"):
        build_model(ModelPart(name="mnist_cnn"), 10, (30, 28, 1), seed=0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ModelPart(name="mnist_cn"), "did you mean 'mnist_cnn'"),
        (ModelPart(name="mnist_cnn", options={"unit": 5}), "did you mean 'units'"),
        (ModelPart(name="math:sqrt"), "model.options"),
        (ModelPart(name="nowhere:network"), "cannot import nowhere"),
        (ModelPart(name="math:sqroot"), "did you mean 'sqrt'"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_clear_error(part: ModelPart, message: str) -> None:
    with pytest.raises((UnknownNameError, RecipeError), match=message):
        build_model(part, 10, (28, 28, 1), seed=0)
