"""A context in which ``conv2d`` uses Winograd's algorithm where it pays off, for any network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveal.convolution.winograd import Plan, WinogradConvolution

if TYPE_CHECKING:
    from collections.abc import Callable


class Winograd(TorchFunctionMode):
    """While it is entered, ``functional.conv2d`` and ``nn.Conv2d`` compute by Winograd's algorithm.

    That is where images and filters are float32 on a processor, filters of 3x3 or 5x5, in one group, without
    stride and dilation, and where it should be quicker. All other convolutions are computed as ever.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called for each function of torch."""
        kwargs = kwargs or {}
        if func is torch.conv2d and (convolution := _planned(*args, **kwargs)) is not None:
            return WinogradConvolution.apply(*convolution)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _planned(
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
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in (input, weight)):
        return None
    plan = Plan.of(input, weight, vertical)
    if len(input) == 0 or min(plan.result) < 1 or not plan.pays_off(len(input)):
        return None
    return input, weight, bias, vertical


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
