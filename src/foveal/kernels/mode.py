"""A context in which the convolutions, dense layers and max-poolings of any network use foveal's kernels."""

from __future__ import annotations

import platform
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from llvmlite import binding
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from foveal.kernels import winograd_line, winograd_square
from foveal.kernels.compiled import DTYPES
from foveal.kernels.max_pool import MaxPool
from foveal.kernels.winograd import Plan, WinogradConvolution

if TYPE_CHECKING:
    from collections.abc import Callable

_POOLED = 1 << 16  # values, below which starting threads takes longer than pooling


class ProcessorKernels(TorchFunctionMode):
    """While it is entered, ``conv2d`` and ``max_pool2d`` and their layers may use foveal's kernels.

    Convolutions do where images and filters are float32 on a processor, filters of 3x3, 5x5, or 3, 5 or 7 in
    a line, in one group, without stride and dilation, and where Winograd's algorithm should be quicker;
    max-poolings where images are float32 or bfloat16 on a processor, and not small. All others are computed
    as ever.

    Within autocast to bfloat16, on a processor that does not multiply it faster than float32, convolutions
    and dense layers are computed in float32, by the above, and their results are rounded to bfloat16: what
    moves through memory is halved, and nothing is lost.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called for each function of torch."""
        kwargs = kwargs or {}
        rounds = torch.is_autocast_enabled("cpu")
        if func is torch.conv2d and not rounds:
            return _product(func, *args, **kwargs)
        if func in (torch.conv2d, functional.linear) and rounds and not multiplies_bfloat16():
            with torch.autocast("cpu", enabled=False):
                return _rounded(func, *args, **kwargs)
        if func is functional.max_pool2d and (pooling := _pooling(*args, **kwargs)) is not None:
            return MaxPool.apply(*pooling)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; of others than x86 it is assumed.

    It is AMX that does on Intel's. Without it a product of bfloat16 has the rate of float32, or half of it,
    though the processor may have instructions for it (AVX-512 BF16); on AMD's these have twice the rate.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    features = binding.get_host_cpu_features()
    amd = binding.get_host_cpu_name().startswith("znver")
    return bool(features.get("amx-bf16") or (amd and features.get("avx512bf16")))


def _product(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A convolution."""
    if (found := _convolution(*args, **kwargs)) and found[0].dtype == torch.float32:
        return WinogradConvolution.apply(*found, torch.float32)  # type: ignore[no-untyped-call]
    return func(*args, **kwargs)


def _rounded(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A convolution or dense layer in float32, its result in bfloat16, as autocast gives."""
    if func is torch.conv2d and (convolution := _convolution(*args, **kwargs)):
        return WinogradConvolution.apply(*convolution, torch.bfloat16)  # type: ignore[no-untyped-call]
    result = func(*(_widened(each) for each in args), **{name: _widened(v) for name, v in kwargs.items()})
    return result.bfloat16() if result.dtype == torch.float32 else result


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _convolution(
    input: Tensor,  # noqa: A002 - the names are conv2d's
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Plan] | None:
    """The arguments of :class:`WinogradConvolution`; None where conv2d is to do it."""
    plan = planned(input, weight, stride, padding, dilation, groups)
    return None if plan is None else (input, weight, bias, plan)


def planned(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Plan | None:
    """How Winograd's algorithm computes a convolution, by its arguments; None if ``conv2d`` should."""
    if groups != 1 or images.ndim != 4 or images.shape[1] != weight.shape[1]:
        return None
    if _pair(stride) != (1, 1) or _pair(dilation) != (1, 1):
        return None
    if not (_on_processor(images) and _on_processor(weight)) or weight.dtype != torch.float32:
        return None
    tall, wide = kernel = weight.shape[2], weight.shape[3]
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and not tall % 2 == wide % 2 == 1):
            return None
        padding = (tall // 2, wide // 2) if padding == "same" else (0, 0)
    above, beside = _pair(padding)
    kind: type[Plan]
    if tall == wide and tall in winograd_square.SIDES and above == beside:
        kind = winograd_square.SquarePlan
    elif 1 in kernel and max(kernel) in winograd_line.LENGTHS and (above, beside)[tall > 1] == 0:
        kind = winograd_line.LinePlan
    else:
        return None
    plan = kind(kernel, (above, beside), weight.shape[1], len(weight), *images.shape[2:])
    fits = 0 <= above < tall and 0 <= beside < wide and min(plan.result) > 0 and len(images) > 0
    return plan if fits and plan.pays_off(len(images)) else None


def _pooling(
    input: Tensor,  # noqa: A002 - the names are max_pool2d's
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """The arguments of :class:`MaxPool`; None where max_pool2d is to do it, or to refuse."""
    if return_indices or _pair(dilation) != (1, 1):
        return None
    if input.ndim != 4 or input.numel() < _POOLED or not _on_processor(input):
        return None
    kernel, padded = _pair(kernel_size), _pair(padding)
    steps = _pair(stride) if stride not in (None, (), []) else kernel
    fits = all(0 <= pad <= size // 2 for pad, size in zip(padded, kernel, strict=True))
    if not fits or min(*kernel, *steps) < 1:
        return None
    result = (
        _windows(input.shape[2], kernel[0], steps[0], padded[0], ceil_mode),
        _windows(input.shape[3], kernel[1], steps[1], padded[1], ceil_mode),
    )
    return (input, kernel, steps, padded, result) if min(result) > 0 else None


def _windows(extent: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many there are along an axis; with ``ceil_mode`` the last may reach over the edge."""
    over = extent + 2 * padding - kernel
    number = (-(-over // stride) if ceil_mode else over // stride) + 1
    begins_outside = ceil_mode and (number - 1) * stride >= extent + padding
    return number - begins_outside


def _on_processor(values: Tensor) -> bool:
    return values.dtype in DTYPES and values.device.type == "cpu"


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
