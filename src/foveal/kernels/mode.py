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

from foveal.kernels.compiled import DTYPES
from foveal.kernels.max_pool import MaxPool
from foveal.kernels.winograd import Plan, WinogradConvolution

if TYPE_CHECKING:
    from collections.abc import Callable

_POOLED = 1 << 16  # values, below which starting threads takes longer than pooling


class ProcessorKernels(TorchFunctionMode):
    """While it is entered, ``conv2d`` and ``max_pool2d`` and their layers may use foveal's kernels.

    Convolutions do where images and filters are float32 on a processor, filters of 3x3 or 5x5, in one group,
    without stride and dilation, and where Winograd's algorithm should be quicker; max-poolings where images
    are float32 or bfloat16 on a processor, and not small. All others are computed as ever.

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
        if func in (torch.conv2d, functional.linear) and not (rounds and multiplies_bfloat16()):
            with torch.autocast("cpu", enabled=False):
                return (_rounded if rounds else _product)(func, *args, **kwargs)
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
    """A convolution or a dense layer."""
    if func is torch.conv2d and (found := _convolution(*args, **kwargs)) and found[0].dtype == torch.float32:
        return WinogradConvolution.apply(*found, torch.float32)  # type: ignore[no-untyped-call]
    return func(*args, **kwargs)


def _rounded(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The same with a result in bfloat16, as autocast gives."""
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
) -> tuple[Tensor, Tensor, Tensor | None, int] | None:
    """The arguments of :class:`WinogradConvolution`; None where conv2d is to do it."""
    kernel = weight.shape[2:]
    if kernel not in ((3, 3), (5, 5)) or groups != 1 or input.ndim != 4 or input.shape[1] != weight.shape[1]:
        return None
    if _pair(stride) != (1, 1) or _pair(dilation) != (1, 1):
        return None
    both = {"same": (kernel[0] // 2,) * 2, "valid": (0, 0)}.get(padding) if isinstance(padding, str) else None
    vertical, horizontal = both or _pair(padding)
    if vertical != horizontal or not 0 <= vertical < kernel[0]:
        return None
    if not (_on_processor(input) and _on_processor(weight)) or weight.dtype != torch.float32:
        return None
    plan = Plan.of(input, weight, vertical)
    if len(input) == 0 or min(plan.result) < 1 or not plan.pays_off(len(input)):
        return None
    return input, weight, bias, vertical


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
    return (value, value) if isinstance(value, int) else tuple(value)
