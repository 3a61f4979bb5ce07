"""The parts of the loss, as people watch them: what the data give, what weight decay adds, and averages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foveal.recipe import AdamW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from foveal.recipe import OptimizerPart

_CROSS_ENTROPY, _TOTAL, _DECAY = "cross_entropy", "total", "weight_decay"


class LossParts:
    """Cross-entropy, weight decay parameter by parameter, and the total; each with its moving average.

    An auxiliary head's cross-entropy is in the first, by its weight.

    At every step an average keeps ``decay`` of itself and takes the rest from the value. It starts from zero
    and is not corrected for that, as ``tf.train.ExponentialMovingAverage`` does with tensors that are no
    variables, and so the ``loss_averages`` of TensorFlow's CIFAR-10 tutorial.

    Weight decay is a term of the loss, ``weight_decay / 2 * sum of squares``, where the optimizer adds its
    gradient to the loss's (SGD, RMSProp, what Muon leaves to SGD). Decoupled decay (AdamW, Muon's own) is
    none, and is left out.
    """

    def __init__(
        self, decay: float, model: nn.Module, part: OptimizerPart, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin with averages of zero.

        Args:
            decay: in [0, 1).
            model: names the parameters.
            part: the recipe's ``optimizer`` table.
            optimizer: what was made of it; its groups say which parameters decay.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        groups = [] if isinstance(part, AdamW) else optimizer.param_groups
        self._terms = [
            (parameter, group["weight_decay"] / 2)
            for group in groups
            if group["weight_decay"] and not group.get("orthogonal")
            for parameter in group["params"]
        ]
        self._names = [
            _CROSS_ENTROPY,
            *(f"{_DECAY}/{names[parameter]}" for parameter, _ in self._terms),
            _TOTAL,
        ]
        self._decay = decay
        device = next(model.parameters()).device
        self._values = torch.zeros(len(self._names), dtype=torch.float32, device=device)
        self._averages = torch.zeros_like(self._values)

    @torch.no_grad()
    def weight_decay(self) -> list[Tensor]:
        """The terms of the present weights, float32: to be asked for before the step that changes them."""
        return [each.float().square().sum() * scale for each, scale in self._terms]

    def add(self, cross_entropy: Tensor, weight_decay: list[Tensor]) -> None:
        """Note the parts of a step's loss; the device is not waited for."""
        parts = torch.stack([cross_entropy, *weight_decay])
        self._values = torch.cat([parts, parts.sum()[None]])
        self._averages.lerp_(self._values, 1 - self._decay)

    def record(self) -> dict[str, dict[str, Any]]:
        """The last step's parts and all averages, as a record of ``metrics.jsonl`` has them."""
        return {"losses": self._table(self._values), "loss_averages": self._table(self._averages)}

    def state(self) -> dict[str, float]:
        """The averages, by part, for a checkpoint."""
        return dict(zip(self._names, self._averages.tolist(), strict=True))

    def load(self, averages: Mapping[str, float]) -> None:
        """Go on from what :meth:`state` gave; a part that is not there starts from zero."""
        values = [averages.get(name, 0.0) for name in self._names]
        self._averages = self._averages.new_tensor(values)

    def _table(self, tensor: Tensor) -> dict[str, Any]:
        cross_entropy, *terms, total = tensor.tolist()
        names = (name.removeprefix(f"{_DECAY}/") for name in self._names[1:-1])
        decay = {_DECAY: dict(zip(names, terms, strict=True))} if terms else {}
        return {_CROSS_ENTROPY: cross_entropy, **decay, _TOTAL: total}
