"""Batch norm with an activation in compiled passes, against PyTorch's two layers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal.models.layers import FixedScaleBatchNorm2d
from foveal.models.norm_activation import NormGelu, NormRelu

if TYPE_CHECKING:
    from collections.abc import Callable

Layer = NormGelu | NormRelu
ACTIVATIONS = pytest.mark.parametrize(
    ("kind", "activate"), [(NormGelu, functional.gelu), (NormRelu, functional.relu)]
)


def made(channels: int, kind: type[Layer] = NormGelu) -> tuple[Layer, FixedScaleBatchNorm2d]:
    """The layer, and PyTorch's norm with the same tensors in float64."""
    torch.manual_seed(0)
    layer = kind(channels, 0.4)
    nn.init.normal_(layer.bias)
    exact = FixedScaleBatchNorm2d(channels, 0.4)
    exact.load_state_dict(copy.deepcopy(layer.state_dict()))
    return layer, exact.double()


@ACTIVATIONS
@pytest.mark.parametrize(
    ("shape", "scale", "offset"),
    [
        ((4, 64, 15, 15), 3.0, 0.0),
        ((3, 24, 7, 5), 1.0, 100.0),
        ((700, 5, 1, 1), 0.01, -2.0),
        ((2, 1, 1, 1), 1.0, 0.0),
    ],
)
def test_values_gradients_and_statistics_are_pytorchs(
    kind: type[Layer],
    activate: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int, int],
    scale: float,
    offset: float,
    threads: int,
) -> None:
    layer, exact = made(shape[1], kind)
    images = (torch.randn(shape) * scale + offset).requires_grad_()
    doubles = images.detach().double().requires_grad_()
    found, expected = layer(images), activate(exact(doubles))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)

    gradient = torch.randn(shape)
    ours = torch.autograd.grad(found, (images, layer.bias), gradient)
    theirs = torch.autograd.grad(expected, (doubles, exact.bias), gradient.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max() + 1e-5

    for name, tensor in exact.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name].double(), tensor.double(), rtol=1e-5, atol=1e-6)
    assert torch.get_num_threads() == threads


def test_gelu_is_exact_far_out_too() -> None:
    layer, exact = made(1)
    images = torch.cat([torch.randn(100_000), torch.linspace(-30, 30, 1_000)])[:, None, None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            layer(images).double(), functional.gelu(exact(images.double())), rtol=1e-5, atol=1e-6
        )


@ACTIVATIONS
def test_evaluation_and_other_dtypes_are_pytorchs_to_the_bit(
    kind: type[Layer], activate: Callable[[Tensor], Tensor]
) -> None:
    layer, exact = made(6, kind)
    images = torch.randn(4, 6, 5, 5)
    assert torch.equal(layer.double()(images.double()), activate(exact(images.double())))
    layer.float().eval()
    norm = FixedScaleBatchNorm2d(6, 0.4).eval()
    norm.load_state_dict(layer.state_dict())
    assert torch.equal(layer(images), activate(norm(images)))


def test_nan_stays_after_relu() -> None:
    layer, _ = made(2, NormRelu)
    images = torch.randn(3, 2, 4, 4)
    images[0, 0, 0, 0] = float("nan")
    result = layer(images)
    assert result[:, 0].isnan().all()
    assert result[:, 1].isfinite().all()


def test_the_same_images_give_the_same_bits_again(threads: int) -> None:
    images = torch.randn(5 * threads, 16, 9, 9)

    def computed() -> list[Tensor]:
        layer, _ = made(16)
        mine = images.clone().requires_grad_()
        result = layer(mine)
        return [result, *torch.autograd.grad(result.square().sum(), (mine, layer.bias)), *layer.buffers()]

    assert all(torch.equal(*pair) for pair in zip(computed(), computed(), strict=True))


def test_a_single_pixel_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made(3)[0](torch.randn(1, 3, 1, 1))
