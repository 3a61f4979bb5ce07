"""The best rate of arithmetic that a machine reaches, measured briefly, to compare a network's rate with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from foveal.device import synchronise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

# Sides of square matrices; and the side of the filters, channels and side of the images of convolutions.
_PRODUCTS = (256, 512, 1024, 2048)
_CONVOLUTIONS = ((3, 64, 56), (3, 128, 28), (3, 256, 14), (1, 256, 28), (1, 1024, 14))
_IMAGES = 16
_GPU_PRODUCTS = (4096, 8192)  # besides: small ones leave most of a GPU idle
_GPU_IMAGES = 256


@dataclass(frozen=True)
class Rate:
    """How fast something was computed.

    Attributes:
        what: was computed: ``matrix product, 1024 x 1024``.
        per_second: floating-point operations; a multiply-add is two.
    """

    what: str
    per_second: float


def best_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.1) -> Rate:
    """The highest of the rates of matrix products and convolutions of several sizes, at their best.

    Args:
        device: what computes, with the threads that are set.
        dtype: of all numbers.
        seconds: how long each is repeated, at least three times; one that takes longer than that once, going
            by the best so far, is left out.
    """
    best = Rate("nothing", 0.0)
    with torch.inference_mode():
        for what, operations, call in _work(device, dtype):
            if best.per_second and operations > best.per_second * seconds:
                continue
            rate = operations / _least_seconds(call, device, seconds)
            best = max(best, Rate(what, rate), key=lambda each: each.per_second)
    return best


def _work(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
    """What is computed, in how many operations, and how; small ones first."""
    large = device.type != "cpu"
    for side in _PRODUCTS + (_GPU_PRODUCTS if large else ()):
        left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
        yield f"matrix product, {side} x {side}", 2 * side**3, partial(torch.mm, left, right)
    count = _GPU_IMAGES if large else _IMAGES
    for kernel, channels, side in _CONVOLUTIONS:
        images = torch.rand(count, channels, side, side, device=device, dtype=dtype)
        filters = torch.rand(channels, channels, kernel, kernel, device=device, dtype=dtype)
        images, filters = (each.to(memory_format=torch.channels_last) for each in (images, filters))
        call = partial(functional.conv2d, images, filters, padding=kernel // 2)
        what = f"convolution {kernel} x {kernel}, {channels} channels, {side} x {side}"
        yield what, 2 * count * side**2 * channels**2 * kernel**2, call


def _least_seconds(call: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """The least time that a call takes, once it is warm."""
    call()
    synchronise(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)
