"""Winograd's convolutions against PyTorch's, and where they are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foveal.device import autocast
from foveal.kernels.mode import ProcessorKernels
from foveal.kernels.winograd import Plan, WinogradConvolution
from foveal.kernels.winograd_line import LinePlan, matrices
from foveal.kernels.winograd_square import SquarePlan


def planned(images: Tensor, weight: Tensor, padding: int) -> Plan:
    """For square filters, or for those of a line, which are padded along it."""
    tall, wide = weight.shape[2:]
    sizes = (weight.shape[1], len(weight), *images.shape[2:])
    if tall == wide:
        return SquarePlan((tall, wide), (padding, padding), *sizes)
    return LinePlan((tall, wide), (padding, 0) if wide == 1 else (0, padding), *sizes)


def winograd(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    apply: Any = WinogradConvolution.apply
    result: Tensor = apply(images, weight, bias, planned(images, weight, padding), torch.float32)
    return result


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([(3, 3), (5, 5), (1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1)]),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(7, 19), st.integers(7, 19)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5),
    biased=st.booleans(),
    channels_last=st.booleans(),
)
def test_results_and_gradients_are_those_of_a_direct_convolution(
    kernel: tuple[int, int],
    padding: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    count: int,
    biased: bool,
    channels_last: bool,
) -> None:
    torch.manual_seed(0)
    inputs, outputs = channels
    memory = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(count, inputs, *size).contiguous(memory_format=memory).requires_grad_()
    weight = torch.randn(outputs, inputs, *kernel, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True) if biased else None
    learned = [each for each in (images, weight, bias) if each is not None]

    found = winograd(images, weight, bias, padding)
    exact = [each.detach().double().requires_grad_() for each in learned]
    expected = functional.conv2d(*exact, padding=planned(images, weight, padding).padding)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, expected) < 5e-5

    gradient = torch.randn(found.shape)
    pairs = zip(
        torch.autograd.grad(found, learned, gradient),
        torch.autograd.grad(expected, exact, gradient.double()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < 1e-4


def test_more_images_than_fit_into_a_chunk_give_the_same(threads: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(180, 64, 16, 16, requires_grad=True)
    weight = torch.randn(48, 64, 3, 3, requires_grad=True)
    chunks = planned(images, weight, 1)._chunks(0, 180 // threads)
    assert len(list(chunks)) > 2
    found, expected = winograd(images, weight, None, 1), functional.conv2d(images, weight, padding=1)
    assert error(found, expected) < 2e-5
    gradients = [torch.autograd.grad(y, (images, weight), torch.ones_like(y)) for y in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert error(ours, theirs) < 2e-5
    assert torch.get_num_threads() == threads


def test_the_same_images_give_the_same_bits_again(threads: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(threads * 7, 32, 9, 9, requires_grad=True)
    weight = torch.randn(32, 32, 3, 3, requires_grad=True)
    first, second = (
        torch.autograd.grad((y := winograd(images, weight, None, 1)), (images, weight), torch.cos(y))
        for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_thread_computes_in_the_mode_of_the_caller(threads: int, mode: type) -> None:
    images, layer = torch.randn(2 * threads, 8, 12, 12), nn.Conv2d(8, 8, 3, padding=1)
    with mode():
        found, expected = winograd(images, layer.weight, layer.bias, 1), layer(images)
        assert error(found, expected) < 2e-5
        assert found.requires_grad == expected.requires_grad
        assert found.is_inference() == expected.is_inference()
    if found.requires_grad:
        gradients = [
            torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (found, expected)
        ]
        assert all(error(*pair) < 1e-4 for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("wanted", ["images", "weight", "bias"])
def test_only_the_gradients_that_are_needed_are_made(wanted: str) -> None:
    tensors = {
        "images": torch.randn(2, 4, 8, 8),
        "weight": torch.randn(4, 4, 3, 3),
        "bias": torch.randn(4),
    }
    tensors[wanted].requires_grad_()
    winograd(tensors["images"], tensors["weight"], tensors["bias"], 1).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {wanted}


def used(module: nn.Module, images: Tensor) -> bool:
    """Whether the module's result was computed by Winograd's algorithm."""
    with autocast(torch.device("cpu"), "float32", kernels=True):
        return "WinogradConvolution" in type(module(images).grad_fn).__name__


def test_a_context_changes_the_convolutions_that_it_pays_off_for() -> None:
    large, small = torch.randn(128, 128, 16, 16), torch.randn(2, 128, 4, 4)
    assert used(nn.Conv2d(128, 128, 3, padding=1), large)
    assert used(nn.Conv2d(128, 128, 3, padding="same"), large)
    assert used(nn.Conv2d(128, 128, 3), large)
    assert used(nn.Conv2d(128, 128, (1, 7), padding=(0, 3)), large)
    assert used(nn.Conv2d(128, 128, (7, 1), padding="same"), large)
    assert used(nn.Conv2d(128, 128, (1, 7)), large)
    assert not used(nn.Conv2d(128, 128, 3, padding=1), small)
    for unfit in (
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, (3, 1), padding=(1, 1)),
        nn.Conv2d(128, 128, (2, 1)),
        nn.Conv2d(128, 128, (3, 5), padding="same"),
        nn.Conv2d(128, 128, 3, padding=(1, 0)),
        nn.Conv2d(128, 128, 1),
    ):
        assert not used(unfit, large)
    assert used(nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"), large)  # it pads first
    assert not used(nn.Conv2d(128, 128, 3, padding=1).double(), large.double())


def test_after_the_context_convolutions_are_direct_again() -> None:
    layer, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(128, 128, 16, 16)
    direct = layer(images)
    with ProcessorKernels():
        changed = layer(images)
    assert torch.equal(layer(images), direct)
    assert not torch.equal(changed, direct)
    assert error(changed, direct) < 2e-5


def test_a_context_keeps_autocasts_dtype_and_kernels_can_be_left_out() -> None:
    layer, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(128, 128, 16, 16)
    with autocast(torch.device("cpu"), "bfloat16", kernels=True):
        assert layer(images).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "float32", kernels=False):
        assert "Winograd" not in type(layer(images).grad_fn).__name__


def test_errors_of_a_convolution_are_pytorchs() -> None:
    layer, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(128, 64, 16, 16)
    with ProcessorKernels(), pytest.raises(RuntimeError, match="expected input"):
        layer(images)
    with pytest.raises(ValueError, match=r"planned for images of \(128, 16, 16\), given \(64, 16, 16\)"):
        winograd(images, layer.weight, None, 1)


@pytest.mark.parametrize(("results", "taps"), [(2, 3), (8, 3), (10, 3), (5, 5), (8, 5), (3, 7), (6, 7)])
def test_the_matrices_of_lines_give_convolutions_exactly(results: int, taps: int) -> None:
    inputs, filters, outputs = (torch.from_numpy(each).double() for each in matrices(results, taps))
    line, weights = torch.randn(results + taps - 1).double(), torch.randn(taps).double()
    expected = functional.conv1d(line[None, None], weights[None, None])[0, 0]
    torch.testing.assert_close(
        outputs @ ((filters @ weights) * (inputs @ line)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kernel", [(3, 3), (1, 7)])
def test_results_are_kept_within_bounds_and_nan_stays(kernel: tuple[int, int]) -> None:
    images, weight = torch.randn(2, 8, 12, 12), torch.randn(4, 8, *kernel)
    images[0, 0, 0, 0] = float("nan")
    plan = planned(images, weight, kernel[1] // 2)
    free = plan.convolve(images, plan.transformed(weight), None)
    kept = plan.convolve(images, plan.transformed(weight), None, within=(0.0, 6.0))
    assert free[0].isnan().any()
    torch.testing.assert_close(kept, free.clamp(0, 6), rtol=0, atol=0, equal_nan=True)
