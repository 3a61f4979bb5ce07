"""Winograd's convolutions against PyTorch's, and where they are used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foveal.device import autocast
from foveal.kernels.mode import ProcessorKernels
from foveal.kernels.winograd import Plan, WinogradConvolution


def winograd(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    result: Tensor = WinogradConvolution.apply(images, weight, bias, padding, torch.float32)  # type: ignore[no-untyped-call]
    return result


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([3, 5]),
    padding=st.integers(0, 2),
    size=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5),
    biased=st.booleans(),
    channels_last=st.booleans(),
)
def test_results_and_gradients_are_those_of_a_direct_convolution(
    kernel: int,
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
    weight = torch.randn(outputs, inputs, kernel, kernel, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True) if biased else None
    learned = [each for each in (images, weight, bias) if each is not None]

    found = winograd(images, weight, bias, padding)
    exact = [each.detach().double().requires_grad_() for each in learned]
    expected = functional.conv2d(*exact, padding=padding)
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
    plan = Plan.of(images, weight, 1)
    assert len(list(plan.chunks(0, 180 // threads))) > 2
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
    assert not used(nn.Conv2d(128, 128, 3, padding=1), small)
    for unfit in (
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, (3, 1), padding=(1, 0)),
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


def test_a_context_changes_nothing_but_float32() -> None:
    layer, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(128, 128, 16, 16)
    with autocast(torch.device("cpu"), "bfloat16", kernels=True):
        assert layer(images).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "float32", kernels=False):
        assert "Winograd" not in type(layer(images).grad_fn).__name__


def test_errors_of_a_convolution_are_pytorchs() -> None:
    layer, images = nn.Conv2d(128, 128, 3, padding=1), torch.randn(128, 64, 16, 16)
    with ProcessorKernels(), pytest.raises(RuntimeError, match="expected input"):
        layer(images)
    with pytest.raises(ValueError, match="images of 64 channels, filters of 128"):
        winograd(images, layer.weight, None, 1)
