"""Max-pooling against PyTorch's, to the bit, and where it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from foveal.kernels.mode import ProcessorKernels


@settings(deadline=None, max_examples=80)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    padded=st.booleans(),
    ceil_mode=st.booleans(),
    size=st.tuples(st.integers(12, 20), st.integers(12, 20)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_values_and_gradients_are_pytorchs_to_the_bit(
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    padded: bool,
    ceil_mode: bool,
    size: tuple[int, int],
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    # Few different values: ties in most windows.
    images = torch.randint(-3, 3, (3, 160, *size)).float().requires_grad_()
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "ceil_mode": ceil_mode}
    options["padding"] = tuple(each // 2 for each in kernel) if padded else 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ProcessorKernels():
            found = functional.max_pool2d(images, **options)
        assert "MaxPoolBackward" in type(found.grad_fn).__name__
        expected = functional.max_pool2d(images, **options)
        assert torch.equal(found, expected)
        gradient = torch.randint(-9, 9, found.shape).float()
        gradients = [torch.autograd.grad(each, images, gradient)[0] for each in (found, expected)]
        assert torch.equal(*gradients)
    finally:
        torch.set_num_threads(before)


def test_nan_and_infinity_are_pooled_as_pytorch_pools_them() -> None:
    images = torch.randn(2, 64, 32, 32)
    for value in (float("nan"), float("inf"), -float("inf")):
        images[torch.rand(images.shape) < 0.2] = value
    with ProcessorKernels():
        found = functional.max_pool2d(images, 3, 2, 1)
    torch.testing.assert_close(found, functional.max_pool2d(images, 3, 2, 1), rtol=0, atol=0, equal_nan=True)


def used(layer: nn.Module, images: Tensor) -> bool:
    """Whether the kernel pools these."""
    with ProcessorKernels():
        return "MaxPoolBackward" in type(layer(images.requires_grad_()).grad_fn).__name__


def test_the_context_changes_the_poolings_that_the_kernel_can_do() -> None:
    large = torch.randn(4, 64, 32, 32)
    assert used(nn.MaxPool2d(2), large)
    assert used(nn.MaxPool2d(3, 2, 1, ceil_mode=True), large)
    assert not used(nn.MaxPool2d(2, dilation=2), large)
    assert not used(nn.MaxPool2d(2), torch.randn(1, 4, 8, 8))
    assert not used(nn.MaxPool2d(2), large.detach().double())
    assert not used(nn.MaxPool2d(2), large.detach()[0])


def test_errors_of_a_pooling_are_pytorchs() -> None:
    images = torch.randn(4, 64, 32, 32)
    for options in ({"kernel_size": 2, "padding": 2}, {"kernel_size": 40}, {"kernel_size": 2, "stride": 0}):
        with ProcessorKernels(), pytest.raises(RuntimeError):
            functional.max_pool2d(images, **options)
