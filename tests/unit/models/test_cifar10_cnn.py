from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveal.errors import RecipeError, UnknownNameError
from foveal.models.cifar10_cnn import Cifar10Cnn
from foveal.models.layers import SameMaxPool2d, truncated_normal
from foveal.models.registry import build_model, end_points
from foveal.models.response_norm import LocalResponse, LocalResponseNorm
from foveal.recipe import ModelPart

if TYPE_CHECKING:
    from numpy.typing import NDArray


def same_max_pool(images: NDArray[np.float32], kernel: int, stride: int) -> NDArray[np.float32]:
    """What TensorFlow's documentation says of SAME, window by window, for ``[B, C, H, W]``."""
    sizes = images.shape[2:]
    outputs = [math.ceil(size / stride) for size in sizes]
    before = [
        max((output - 1) * stride + kernel - size, 0) // 2
        for size, output in zip(sizes, outputs, strict=True)
    ]
    result = np.empty((*images.shape[:2], *outputs), np.float32)
    for row, column in np.ndindex(*outputs):
        top, left = row * stride - before[0], column * stride - before[1]
        window = images[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        result[:, :, row, column] = window.max((2, 3))
    return result


def response_norm(images: NDArray[np.float64], radius: int, bias: float, alpha: float, beta: float) -> object:
    """The definition in the documentation of ``tf.nn.local_response_normalization``, for ``[B, C, H, W]``."""
    result = np.empty_like(images)
    for channel in range(images.shape[1]):
        near = images[:, max(channel - radius, 0) : channel + radius + 1]
        result[:, channel] = images[:, channel] / (bias + alpha * (near**2).sum(1)) ** beta
    return result


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (5, 3), (4, 2), (2, 3), (1, 2)])
def test_same_pooling_is_tensorflows_for_every_size(kernel: int, stride: int) -> None:
    pool = SameMaxPool2d(kernel, stride)
    rng = np.random.default_rng(0)
    for height, width in itertools.product(range(1, 11), range(1, 11)):
        images = -rng.random((2, 3, height, width), np.float32) - 1  # a padding of zeros would be the maximum
        expected = same_max_pool(images, kernel, stride)
        assert torch.equal(pool(torch.from_numpy(images)), torch.from_numpy(expected)), (height, width)


def test_same_pooling_that_pytorch_cannot_pad_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 at stride 1"):
        SameMaxPool2d(2, 1)


@pytest.mark.parametrize("channels", [1, 3, 9, 64])
@pytest.mark.parametrize(
    ("radius", "bias", "alpha", "beta"), [(4, 1.0, 0.001 / 9, 0.75), (2, 2.0, 0.5, 0.5), (0, 1.0, 1.0, 1.0)]
)
def test_the_response_norm_is_tensorflows(
    channels: int, radius: int, bias: float, alpha: float, beta: float
) -> None:
    images = np.random.default_rng(0).normal(0, 20, (2, channels, 5, 3))
    found = LocalResponseNorm(radius, bias, alpha, beta)(torch.tensor(images, dtype=torch.float32))
    expected = response_norm(images, radius, bias, alpha, beta)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-6)


def test_the_response_norm_agrees_with_pytorchs_and_so_does_its_gradient() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 12, 4, 5).mul_(30).requires_grad_()
    weights = torch.randn(images.shape)
    ours = LocalResponseNorm(4, 1.0, 0.001 / 9, 0.75)(images)
    theirs = nn.functional.local_response_norm(images, 9, 0.001, 0.75, 1.0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), images)[0] for y in (ours, theirs)))


@pytest.mark.parametrize(("radius", "bias", "alpha", "beta"), [(4, 1.0, 0.3, 0.75), (1, 2.0, 0.5, 0.6)])
def test_the_response_norms_gradient_is_that_of_its_values(
    radius: int, bias: float, alpha: float, beta: float
) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda values: LocalResponse.apply(values, radius, bias, alpha, beta),  # type: ignore[no-untyped-call]
        pixels,
    )


def test_the_response_norm_keeps_the_dtype_and_the_memory_format_and_computes_in_float32() -> None:
    images = torch.randn(2, 12, 4, 5).mul_(30).to(memory_format=torch.channels_last)
    norm = LocalResponseNorm(4, 1.0, 0.001 / 9, 0.75)
    expected = norm(images)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(images), expected)
    half = images.bfloat16()
    assert torch.equal(norm(half), norm(half.float()).bfloat16())


def test_a_truncated_normal_has_tensorflows_deviation_and_limits() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 500)
    truncated_normal(layer, 0.04, bias=0.1)
    assert 0.0795 < layer.weight.abs().max().item() <= 0.08
    # That of a normal distribution, truncated at two deviations.
    assert layer.weight.std().item() == pytest.approx(0.04 * 0.8796, rel=0.01)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.0003)
    assert torch.equal(layer.bias, torch.full((500,), 0.1))
    truncated_normal(nn.Linear(3, 4, bias=False), 0.04)


def test_it_is_the_tutorials_network() -> None:
    model = Cifar10Cnn(10, (24, 24, 3))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        "conv1.weight": (64, 3, 5, 5),
        "conv1.bias": (64,),
        "conv2.weight": (64, 64, 5, 5),
        "conv2.bias": (64,),
        "local3.weight": (384, 2304),
        "local3.bias": (384,),
        "local4.weight": (192, 384),
        "local4.bias": (192,),
        "softmax_linear.weight": (10, 192),
        "softmax_linear.bias": (10,),
    }
    assert sum(p.numel() for p in model.parameters()) == 1_068_298


def test_its_first_weights_have_the_tutorials_deviations() -> None:
    torch.manual_seed(0)
    for options, convolutions in [({}, 1e-4), ({"conv_deviation": 5e-2}, 5e-2)]:
        model = Cifar10Cnn(10, (24, 24, 3), **options)
        for layer, deviation, bias in [
            (model.conv1, convolutions, 0.0),
            (model.conv2, convolutions, 0.1),
            (model.local3, 0.04, 0.1),
            (model.local4, 0.04, 0.1),
            (model.softmax_linear, 1 / 192, 0.0),
        ]:
            assert layer.weight.std().item() == pytest.approx(deviation * 0.8796, rel=0.05)
            assert layer.weight.abs().max().item() == pytest.approx(2 * deviation, rel=0.02)
            assert layer.bias is not None
            assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))


def written_out(model: Cifar10Cnn, images: Tensor) -> dict[str, Tensor]:
    """The tutorial's ``inference``, in its order, by the names of its tensors."""
    functional = nn.functional
    norm = LocalResponseNorm(4, 1.0, 0.001 / 9, 0.75)

    def pool(hidden: Tensor) -> Tensor:
        return torch.from_numpy(same_max_pool(hidden.detach().numpy(), 3, 2))

    made = {"pool1": pool(functional.relu(model.conv1(images)))}
    made["norm1"] = norm(made["pool1"])
    made["norm2"] = norm(functional.relu(model.conv2(made["norm1"])))
    made["pool2"] = pool(made["norm2"])
    hidden = made["pool2"].permute(0, 2, 3, 1).reshape(len(images), -1)
    for layer in (model.local3, model.local4):
        hidden = functional.relu(layer(hidden))
    made["softmax_linear"] = model.softmax_linear(hidden)
    return made


@pytest.mark.parametrize("shape", [(24, 24, 3), (25, 31, 3), (32, 26, 1), (1, 2, 4)])
def test_it_computes_what_the_tutorial_writes_for_images_of_any_size(shape: tuple[int, int, int]) -> None:
    model = Cifar10Cnn(7, shape, conv_deviation=5e-2).eval()
    images = torch.randn(3, shape[2], *shape[:2])
    with torch.inference_mode():
        expected = written_out(model, images)
        with end_points(model, list(expected)) as found:
            logits = model(images)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert torch.equal(found["softmax_linear"], logits)
    assert logits.shape == (3, 7)


def test_channels_last_changes_no_value() -> None:
    model = build_model(
        ModelPart(name="cifar10_cnn", options={"conv_deviation": 0.05}), 10, (24, 24, 3), seed=0
    )
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": [64]}, "two filters"),
        ({"units": [1, 2, 3]}, "two units"),
        ({"conv_deviation": 0}, "conv_deviation = 0: should be above 0"),
        ({"conv_deviation": -0.1}, "conv_deviation = -0.1: should be above 0"),
        ({"conv_deviations": 1}, "did you mean 'conv_deviation'"),
    ],
    ids=["filters", "units", "zero", "negative", "misspelt"],
)
def test_options_it_cannot_take_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((RecipeError, UnknownNameError), match=message):
        build_model(ModelPart(name="cifar10_cnn", options=options), 10, (24, 24, 3), seed=0)
