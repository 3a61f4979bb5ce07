"""Optimizers from a recipe, RMSProp as TensorFlow has it, and their state as named tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.errors import CheckpointError
from foveal.recipe import AdamW, RmsProp, Sgd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from foveal.recipe import OptimizerPart


class TensorFlowRmsProp(torch.optim.Optimizer):
    """RMSProp as TensorFlow 1.x's ``RMSPropOptimizer`` (its ``ApplyRMSProp`` kernel) computes it.

    ``average = decay * average + (1 - decay) * g^2``, starting at one;
    ``update = momentum * update + rate * g / sqrt(average + epsilon)``. PyTorch's own adds epsilon to the
    root, starts at zero and multiplies the rate after the momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("this optimizer takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params, [p.grad for p in params])

    def _update(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["average"] = torch.ones_like(parameter)
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        averages = [self.state[p]["average"] for p in params]
        updates = [self.state[p]["momentum"] for p in params]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        torch._foreach_lerp_(averages, torch._foreach_mul(gradients, gradients), 1 - group["decay"])
        roots = torch._foreach_add(averages, group["epsilon"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(updates, group["momentum"])
        torch._foreach_addcdiv_(updates, gradients, roots, group["lr"])
        torch._foreach_sub_(params, updates)


def build_optimizer(part: OptimizerPart, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a recipe names, over the parameters that learn.

    Raises:
        RecipeError: ``decayed`` is not a regular expression.
    """
    groups = _groups(part, model)
    match part:
        case Sgd():
            return torch.optim.SGD(
                groups, lr=part.learning_rate, momentum=part.momentum, nesterov=part.nesterov, fused=True
            )
        case AdamW():
            return torch.optim.AdamW(
                groups, lr=part.learning_rate, betas=part.betas, eps=part.epsilon, fused=True
            )
        case RmsProp():
            return TensorFlowRmsProp(groups, part.learning_rate, part.decay, part.momentum, part.epsilon)


def _groups(part: OptimizerPart, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that decay and those that do not; empty groups are left out."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if _decays(part.decayed, name, parameter) else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": part.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _decays(rule: str, name: str, parameter: Tensor) -> bool:
    if rule == "kernels":
        return parameter.ndim >= 2
    return rule == "all" or re.search(rule, name) is not None


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state, as ``SLOT/PARAMETER``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for slot, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        CheckpointError: a tensor belongs to no parameter, or has another shape.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise CheckpointError(
                f"the optimizer's {key} {list(value.shape)} fits no parameter of this network"
            )
        if value.ndim:  # in the parameter's memory format: the fused kernels walk both as one
            optimizer.state[parameter][slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            optimizer.state[parameter][slot] = value.to(parameter.device)
