"""Convolutions for inference on a processor: filters laid out in advance, activations in the same pass.

A convolution otherwise lays its filters out anew at each call, and an activation after it goes over memory
once more. PyTorch has all it takes, but under no public name: where that has changed, nothing is packed.
"""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from foveal.folding import agrees
from foveal.inference import undisturbed
from foveal.models.layers import SameConv2d

# What can be part of a convolution: its name in oneDNN with its numbers, and the least and greatest value.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float], tuple[float, float]]] = {
    nn.ReLU: ("relu", [], (0.0, math.inf)),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], (0.0, 6.0)),
}
_NONE: tuple[str, list[float], tuple[float, float]] = ("none", [], (-math.inf, math.inf))


def packed(network: nn.Module, images: Tensor, *, kernels: bool) -> nn.Module | None:
    """A copy of a network whose convolutions are packed where they stand in an ``nn.Sequential``.

    All tensors are shared with the network; those of convolutions must not change any more.

    Args:
        network: in evaluation mode, without hooks.
        images: float32 ``[B, C, H, W]``, on its device; a few are enough to see that it gives the same.
        kernels: whether foveal's kernels may compute what they are quicker at.

    Returns:
        The copy, for float32 images and to be called without gradients; None where nothing can be packed.
    """
    if images.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    tensors = [*network.parameters(), *network.buffers()]
    if any(each.dtype not in (torch.float32, torch.int64) for each in tensors):
        return None
    try:
        result = copy.deepcopy(network, {id(each): each for each in tensors})
        chains = [each for each in result.modules() if isinstance(each, nn.Sequential)]
        quick = kernels and find_spec("numba") is not None
        count = sum(_pack(each, kernels=quick) for each in chains if _computes(each, nn.Sequential))
        with undisturbed(network):
            expected = network(images)
    except Exception:  # noqa: BLE001 - a network of the user's may refuse to be copied in any way
        return None
    return result if count and agrees(result, images, expected) else None


def _computes(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what this kind does, and nobody watches."""
    return isinstance(module, kind) and type(module).forward is kind.forward and not module._forward_hooks


def _pack(chain: nn.Sequential, *, kernels: bool) -> int:
    """Replace convolutions among layers that follow each other, with activations after them; how many."""
    names = [name for name, layer in chain.named_children() if not _computes(layer, nn.Identity)]
    after = dict(pairwise(names))
    count = 0
    for name in names:
        layer: Any = getattr(chain, name)
        if not any(_computes(layer, kind) for kind in (nn.Conv2d, SameConv2d)):
            continue
        following = getattr(chain, after[name]) if name in after else None
        kinds = [kind for kind in _ACTIVATIONS if following is not None and _computes(following, kind)]
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            setattr(chain, name, _PackedConvolution(layer, kinds[0] if kinds else None, kernels=kernels))
            if kinds:
                setattr(chain, after[name], nn.Identity())
            count += 1
    return count


class _PackedConvolution(nn.Module):
    """A convolution, and an activation after it.

    What it needs of the filters is made when it is needed first, as it depends on the images.
    """

    def __init__(self, layer: nn.Conv2d, activation: type[nn.Module] | None, *, kernels: bool) -> None:
        super().__init__()
        self.layer = layer
        self._kernels = kernels
        self._name, self._numbers, self._range = _ACTIVATIONS[activation] if activation else _NONE
        self._transformed: dict[Any, Tensor] = {}  # by the plan
        self._packed: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, height, width]``."""
        layer = self.layer
        padding: Any = layer.padding
        if isinstance(layer, SameConv2d):
            images, padding = layer.padded(images)
        how = (layer.stride, padding, layer.dilation, layer.groups)
        if self._kernels:
            from foveal.kernels.mode import planned

            if plan := planned(images, layer.weight, *how):
                if plan not in self._transformed:
                    self._transformed[plan] = plan.transformed(layer.weight)
                return plan.convolve(images, self._transformed[plan], layer.bias, within=self._range)
        if self._packed is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # noqa: SLF001
            packed_weight = layer.weight.to_mkldnn()
            self._packed = reorder(
                packed_weight, padding, layer.stride, layer.dilation, layer.groups, images.shape
            )
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001
            images, self._packed, layer.bias, padding, layer.stride, layer.dilation, layer.groups,
            self._name, self._numbers, "",
        )  # fmt: skip
        return result
