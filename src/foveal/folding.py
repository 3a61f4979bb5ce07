"""Batch norm folded into the convolutions before it: the same answers in fewer passes over memory.

A batch norm that is not training multiplies each channel by a number and adds another. Both can go into the
filters and the bias of the convolution, or of the dense layer, that gives the channels. Between the two there
may be a pooling that commutes with the line: a mean does with any, a maximum with a rising one, where no
channel is multiplied by a negative number.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveal.inference import undisturbed
from foveal.models.layers import SameMaxPool2d
from foveal.models.norm_activation import NormGelu, NormRelu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# What is left of a norm that is folded away.
_RESTS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.BatchNorm1d: nn.Identity,
    nn.BatchNorm2d: nn.Identity,
    NormGelu: nn.GELU,
    NormRelu: partial(nn.ReLU, inplace=True),
}
# What is folded into, what is folded, and how many axes the values between them have.
_PAIRS: tuple[tuple[type[nn.Module], type[nn.Module], int], ...] = (
    (nn.Conv2d, nn.BatchNorm2d, 4),
    (nn.Linear, nn.BatchNorm1d, 2),
)
_LAYERS = tuple(layer for layer, _, _ in _PAIRS)
_CONVOLUTIONS = (torch.ops.aten.conv2d, torch.ops.aten.convolution)
_TOLERANCE = 1e-3  # by how much logits may differ, as a share of the largest: rounding is a hundredth of it


def folded(
    model: nn.Module, images: Tensor, averages: Mapping[str, Tensor] | None = None
) -> nn.Module | None:
    """A copy of a network whose batch norms are part of the layers before them.

    A forward pass shows what follows on what: a norm is folded if it and the layer are used once, and nothing
    else uses what is between them. The copy is compared with the network on ``images``. It shares all other
    tensors with the network, whose own weights stay as they are.

    Nothing is folded in a network with hooks, which are there to see what would be gone; in one that looks at
    the values of tensors to decide what to do; in one that cannot be copied; nor in other dtypes than
    float32.

    Args:
        model: the network, on its device, in any mode.
        images: float32 ``[B, C, H, W]``, on its device; a few are enough. Of images of another size the
            network may make another use of its modules.
        averages: parameters and buffers to use instead of the network's own, in its dtypes.

    Returns:
        The copy, in evaluation mode; None where nothing can be folded.
    """
    if not _has_candidates(model):
        return None
    uses = _Uses()
    try:
        network = _lent(model, averages or {})
        expected = uses.follow(network, images)
    except Exception:  # noqa: BLE001 - a network of the user's may refuse to be copied or followed in any way
        return None
    if uses.looked or not isinstance(expected, Tensor):
        return None
    pairs = list(uses.pairs(expected))
    for layer, norm in pairs:
        _fold(network, layer, norm)
    return network if pairs and agrees(network, images, expected) else None


def _has_candidates(model: nn.Module) -> bool:
    """Whether there are layers and norms at all, in float32, and nobody watches."""
    modules = list(model.modules())
    if not all(any(isinstance(module, kinds) for module in modules) for kinds in (_LAYERS, tuple(_RESTS))):
        return False
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return not watched and all(parameter.dtype == torch.float32 for parameter in model.parameters())


def _lent(model: nn.Module, averages: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the modules, in evaluation mode, which uses the network's own tensors, or these averages."""
    tensors: dict[int, Tensor] = {}  # by the id of the network's own
    for name, parameter in model.named_parameters():
        tensors[id(parameter)] = nn.Parameter(averages.get(name, parameter).detach(), requires_grad=False)
    for name, buffer in model.named_buffers():
        tensors[id(buffer)] = averages.get(name, buffer)
    return copy.deepcopy(model, dict(tensors)).eval()  # the memo says what is copied already


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows a forward pass: what gave each tensor, and how often it was used.

    Attributes:
        looked: whether Python was shown a tensor's values.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.looked = False
        self._uses: Counter[int] = Counter()  # by the tensor's id
        self._kept: list[Any] = []  # so that no id is given twice
        self._calls: Counter[nn.Module] = Counter()
        self._origins: dict[int, tuple[nn.Module, Tensor]] = {}  # by the output's id: who made it, of what
        self._filters: dict[int, Tensor] = {}  # by the id of a convolution's result: its filters

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.looked |= isinstance(result, bool | int | float | complex)
        used = _tensors((args, kwargs))
        self._uses.update(map(id, used))
        self._kept += [used, result]
        if function.overloadpacket in _CONVOLUTIONS:
            self._filters[id(result)] = args[1]
        return result

    def follow(self, network: nn.Module, images: Tensor) -> Any:
        """What the network gives for these images."""
        with undisturbed(network), ExitStack() as hooks, self:
            for module in network.modules():
                hooks.enter_context(module.register_forward_hook(self._leave))
            return network(images)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A module's forward has ended."""
        self._calls[module] += 1
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            self._origins.setdefault(id(output), (module, inputs[0]))  # the innermost module comes first

    def pairs(self, result: Tensor) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Layers, and the norms that can be folded into them; ``result`` is what the network gave."""
        self._uses[id(result)] += 1
        for norm, values in self._origins.values():
            if self._calls[norm] != 1 or not _is_plain(norm, tuple(_RESTS)) or norm.running_mean is None:
                continue
            layer = self._maker(values)
            if layer is not None and _commutes(layer, norm):
                _, values = self._origins[id(values)]  # noqa: PLW2901 - what was pooled
                layer = self._maker(values)
            if layer is not None and self._calls[layer] == 1 and self._fits(layer, norm, values):
                yield layer, norm

    def _maker(self, values: Tensor) -> nn.Module | None:
        """The module that made these values, if they are used once."""
        module, _ = self._origins.get(id(values), (None, None))
        return module if self._uses[id(values)] == 1 else None

    def _fits(self, layer: nn.Module, norm: nn.Module, values: Tensor) -> bool:
        """Whether these are the layer's products with its weights, and a norm is a line for each channel."""
        kinds = any(
            isinstance(layer, kind) and isinstance(norm, norms) and values.ndim == axes
            for kind, norms, axes in _PAIRS
        )
        if not kinds or is_parametrized(layer):
            return False
        return _is_plain(layer, _LAYERS) or self._filters.get(id(values)) is layer.weight


def _commutes(pool: nn.Module, norm: nn.Module) -> bool:
    """Whether it is a pooling that gives the same before a norm as after it."""
    if _is_plain(pool, (nn.AvgPool2d,)):
        padded = pool.padding not in (0, (0, 0)) and pool.count_include_pad
        return not padded and pool.divisor_override is None
    return _is_plain(pool, (nn.MaxPool2d, SameMaxPool2d)) and bool((_line(norm)[0] >= 0).all())


def _is_plain(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether it is of one of these kinds, and computes what that does."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _line(norm: Any) -> tuple[Tensor, Tensor]:
    """What a norm multiplies each channel by, and what it adds: ``[C]``."""
    factor = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * _exact(norm.weight)
    offset = -_exact(norm.running_mean) * factor
    return factor, offset if norm.bias is None else offset + _exact(norm.bias)


def _exact(values: Tensor) -> Tensor:
    """In float64, which not every accelerator has: on the processor."""
    return values.cpu().double()


@torch.no_grad()
def _fold(network: nn.Module, layer: Any, norm: nn.Module) -> None:
    """Make a norm part of a layer; where it was, the rest of it is."""
    rest = next(rest() for kind, rest in _RESTS.items() if _is_plain(norm, (kind,)))
    factor, offset = _line(norm)
    weight = _exact(layer.weight) * factor.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        offset = offset + _exact(layer.bias) * factor
    for name, value in (("weight", weight), ("bias", offset)):  # memory formats stay as they are
        setattr(layer, name, nn.Parameter(value.float().to(layer.weight.device), requires_grad=False))
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child is norm:
                setattr(parent, name, rest)


def agrees(network: nn.Module, images: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by no more than rounding does; not where they are no numbers."""
    try:
        with undisturbed(network):
            difference = (network(images) - expected).abs().max()
    except Exception:  # noqa: BLE001 - it may miss the norms, in any way
        return False
    return bool(difference <= _TOLERANCE * expected.abs().max())


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]
