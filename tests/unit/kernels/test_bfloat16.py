"""Kernels on bfloat16: what they give for float32, rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foveal.device import autocast
from foveal.kernels import mode
from foveal.kernels.compiled import array, kernel, narrow, wide
from foveal.kernels.winograd import Plan, WinogradConvolution
from foveal.kernels.winograd_line import LinePlan
from foveal.kernels.winograd_square import SquarePlan
from foveal.models.norm_activation import NormGelu
from foveal.models.response_norm import LocalResponseNorm

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


@kernel
def convert(source: Any, out: Any) -> None:
    for i in range(len(source)):
        out[i] = narrow(out, wide(source[i]))


def test_every_bfloat16_is_read_as_pytorch_reads_it() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.bfloat16)
    found = torch.empty(len(every))
    convert(array(every), array(found))
    torch.testing.assert_close(found, every.float(), rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_float32_is_rounded_as_pytorch_rounds_it(bits: list[int]) -> None:
    halves = [b & 0xFFFF0000 | 0x8000 for b in bits]  # just between two values
    values = torch.from_numpy(np.array([*bits, *halves], np.uint32).view(np.float32))
    found = torch.empty(len(values), dtype=torch.bfloat16)
    convert(array(values), array(found))
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_uncompiled_they_do_the_same() -> None:
    values = torch.randn(50)
    bits = array(torch.empty(0, dtype=torch.bfloat16))
    for value, rounded in zip(values.numpy(), array(values.bfloat16()), strict=True):
        assert narrow(bits, value) == rounded
        assert narrow(values, value) == wide(value) == value
        assert wide(rounded) == np.float32(torch.tensor(value).bfloat16().item())


def both(
    function: Callable[[Tensor], Tensor], images: Tensor, *learned: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients of bfloat16 images, and of the same in float32, given the same gradient."""
    torch.manual_seed(1)
    found = []
    gradient = None
    for dtype in (torch.bfloat16, torch.float32):
        given_ = images.bfloat16().to(dtype).requires_grad_()
        result = function(given_)
        gradient = torch.randn(result.shape).bfloat16() if gradient is None else gradient
        gradients = torch.autograd.grad(result, [given_, *learned], gradient.to(result.dtype))
        found.append([result, *gradients])
    return found[0], found[1]


@pytest.mark.parametrize(("kind", "kernel"), [(SquarePlan, (5, 5)), (LinePlan, (1, 7)), (LinePlan, (3, 1))])
@pytest.mark.parametrize("biased", [True, False])
def test_convolutions_are_rounded_once(
    kind: type[Plan], kernel: tuple[int, int], biased: bool, threads: int
) -> None:
    images, weight = torch.randn(threads * 3, 20, 13, 11), torch.randn(24, 20, *kernel, requires_grad=True)
    plan = kind(kernel, (kernel[0] // 2, kernel[1] // 2), 20, 24, 13, 11)
    bias = torch.randn(24, requires_grad=True) if biased else None
    learned = [each for each in (weight, bias) if each is not None]

    def convolve(values: Tensor) -> Tensor:
        apply: Any = WinogradConvolution.apply
        result: Tensor = apply(values, weight, bias, plan, values.dtype)
        return result

    rounded, exact = both(convolve, images, *learned)
    assert [each.dtype for each in rounded] == [torch.bfloat16] * 2 + [torch.float32] * len(learned)
    assert torch.equal(rounded[0], exact[0].bfloat16())
    assert torch.equal(rounded[1], exact[1].bfloat16())
    for ours, theirs in zip(rounded[2:], exact[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_response_norms_are_rounded_once() -> None:
    images = 20 * torch.randn(3, 16, 9, 8).contiguous(memory_format=torch.channels_last)
    for beta in (0.75, 0.5):
        rounded, exact = both(LocalResponseNorm(4, 1.0, 0.01, beta), images)
        for ours, theirs in zip(rounded, exact, strict=True):
            assert torch.equal(ours, theirs.bfloat16())


def test_batch_norm_and_gelu_are_rounded_once_forward_and_twice_back() -> None:
    layer = NormGelu(12, 0.4)
    rounded, exact = both(layer, 3 + torch.randn(4, 12, 10, 9))
    assert torch.equal(rounded[0], exact[0].bfloat16())
    torch.testing.assert_close(rounded[1].float(), exact[1], rtol=0.01, atol=0.01)
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize("options", [{"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2}])
def test_poolings_are_pytorchs_to_the_bit(options: dict[str, int]) -> None:
    images = torch.randint(-9, 9, (4, 64, 32, 32)).bfloat16().requires_grad_()
    images.data[0, 0, 0, 0] = float("nan")
    with mode.ProcessorKernels():
        found = functional.max_pool2d(images, **options)
    assert "MaxPoolBackward" in type(found.grad_fn).__name__
    expected = functional.max_pool2d(images, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    gradient = torch.randint(-9, 9, found.shape).bfloat16()
    gradients = [torch.autograd.grad(each, images, gradient)[0] for each in (found, expected)]
    assert torch.equal(*gradients)


LAYERS = [
    (nn.Conv2d(64, 64, 3, padding=1), (64, 64, 16, 16)),
    (nn.Conv2d(64, 32, 3, stride=2), (4, 64, 16, 16)),
    (nn.Linear(50, 20), (8, 50)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_without_quick_products_layers_compute_in_float32_and_round(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode, "multiplies_bfloat16", lambda: False)
    for images in (torch.randn(shape), torch.randn(shape).bfloat16()):
        with autocast(CPU, "float32", kernels=True):
            exact = layer(images.float())
        with autocast(CPU, "bfloat16", kernels=True):
            rounded = layer(images)
            assert torch.is_autocast_enabled("cpu")
        assert torch.equal(rounded, exact.bfloat16())
        gradients = torch.autograd.grad(rounded.float().square().mean(), list(layer.parameters()))
        assert all(each.dtype == torch.float32 and each.isfinite().all() for each in gradients)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_with_quick_products_layers_are_autocasts_to_the_bit(
    layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode, "multiplies_bfloat16", lambda: True)
    images = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(images)
    with autocast(CPU, "bfloat16", kernels=True):
        assert torch.equal(layer(images), expected)


def test_float64_stays_float64_within_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "multiplies_bfloat16", lambda: False)
    layer, images = nn.Linear(5, 3).double(), torch.randn(2, 5, dtype=torch.float64)
    expected = layer(images)
    with autocast(CPU, "bfloat16", kernels=True):
        assert torch.equal(layer(images), expected)
