"""Moving averages of the weights, with TensorFlow's ramp, and the batch-norm statistics that go with them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foveal.device import autocast
from foveal.errors import CheckpointError
from foveal.inference import undisturbed
from foveal.training.schedule import share_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from foveal.recipe import Ema


class MovingAverage:
    """Averages of a network's parameters, in float32, beside the parameters themselves.

    At the n-th update (from 1) the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself, as
    ``tf.train.ExponentialMovingAverage(decay, num_updates=n)`` does. Updates are counted from ``part.start``;
    up to there, the averages are the weights.

    Batch norm's means and variances that go with them are, by ``part.statistics``: ``copy``, the network's
    own, which are not held here; ``average``, averages with the same decay; ``recompute``, what
    :meth:`recompute` measured last.

    Attributes:
        tensors: float32 averages by the parameter's (and buffer's) name; of a parameter that has several
            names, by the first. To evaluate them, use them in place of the network's own.
    """

    def __init__(self, model: nn.Module, part: Ema, total_steps: int = 0) -> None:
        """Start from the network's present weights; ``total_steps`` of the run says when ``start`` is."""
        self._decay, self._start = part.decay, share_of(total_steps, part.start)
        statistics = {} if part.statistics == "copy" else _statistics(dict(_batch_norms(model)))
        averaged = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if part.statistics == "average":
            averaged |= statistics
        self._sources = averaged | statistics
        self.tensors = {name: source.to(torch.float32, copy=True) for name, source in self._sources.items()}
        self._averaged = [self.tensors[name] for name in averaged], list(averaged.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after ``step`` updates (from 1)."""
        number = step - self._start
        decay = min(self._decay, (1 + number) / (10 + number)) if number > 0 else 0.0
        averages, sources = self._averaged
        torch._foreach_lerp_(averages, [source.float() for source in sources], 1 - decay)

    def reset(self) -> None:
        """Start anew from the network's present weights."""
        self._copy(self._sources)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the averages.

        Raises:
            CheckpointError: names or shapes are not those of the network.
        """
        shapes = {name: value.shape for name, value in tensors.items()}
        if shapes != {name: value.shape for name, value in self.tensors.items()}:
            raise CheckpointError("the checkpoint's averages are not those of this network's parameters")
        self._copy(tensors)

    def recompute(
        self, model: nn.Module, batches: Iterable[Tensor], precision: str, *, kernels: bool = False
    ) -> None:
        """Measure batch norm's statistics under the averaged weights, and put them among the averages.

        A statistic is the plain mean, over the batches, of the batch's mean or unbiased variance (Izmailov et
        al., 2018; ``torch.optim.swa_utils.update_bn``). Meanwhile batch norm normalises by the batch, and all
        else, dropout too, is in evaluation mode. Batch norm that is frozen, that is in evaluation mode now,
        keeps the network's statistics. Network and random state stay as they are.

        Args:
            model: the network, on its device.
            batches: images, float32 ``[B, C, H, W]``, on any device; not read where there is no batch norm.
            precision: of the recipe, resolved.
            kernels: of the recipe.
        """
        norms = dict(_batch_norms(model))
        measured = {name: module for name, module in norms.items() if module.training}
        statistics = {
            name: buffer.to(torch.float32, copy=True) for name, buffer in _statistics(norms).items()
        }
        parameters = {
            # Batch norm wants its parameters in the dtype of its statistics.
            name: self.tensors[name].to(torch.float32 if _owner(name) in norms else parameter.dtype)
            for name, parameter in model.named_parameters()
        }
        # On the processor, where batch norm reads them without waiting for the device.
        counts = {_join(name, "num_batches_tracked"): torch.zeros((), dtype=torch.int64) for name in measured}
        device = next(model.parameters()).device
        arithmetic = partial(autocast, device, precision, kernels=kernels)
        for images in batches if measured else ():
            with undisturbed(model), _cumulative(measured.values()), arithmetic():
                torch.func.functional_call(model, parameters | statistics | counts, (images.to(device),))
        self._copy(statistics)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.tensors[name].copy_(value)


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Those that keep statistics, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


def _statistics(norms: Mapping[str, _BatchNorm]) -> dict[str, Tensor]:
    """Their means and variances, by the buffer's name."""
    return {
        _join(name, buffer): getattr(module, buffer)
        for name, module in norms.items()
        for buffer in ("running_mean", "running_var")
    }


@contextmanager
def _cumulative(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Training mode, in which statistics are the plain mean over all batches since their count was 0."""
    momenta = [(module, module.momentum) for module in norms]
    try:
        for module, _ in momenta:
            module.training, module.momentum = True, None
        yield
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]
