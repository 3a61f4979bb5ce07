"""Optimizers from a recipe, RMSProp as TensorFlow has it, and their state as named tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.errors import CheckpointError
from foveal.recipe import AdamW, RmsProp, Sgd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

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
        for parameter in _parameters(self):
            self.state[parameter] = {
                "average": torch.ones_like(parameter),
                "momentum": torch.zeros_like(parameter),
            }

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
    """The optimizer a recipe names, over the parameters that ask for a gradient, with all of its slots.

    PyTorch makes a slot at the first update of its parameter. Where some learn later than others, its fused
    kernels would be given slots for a part of them only, which they take for none at all.
    """
    groups = _groups(part, model)
    optimizer: torch.optim.Optimizer
    match part:
        case Sgd():
            optimizer = torch.optim.SGD(
                groups, lr=part.learning_rate, momentum=part.momentum, nesterov=part.nesterov, fused=True
            )
            for parameter in _parameters(optimizer) if part.momentum else ():
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        case AdamW():
            optimizer = torch.optim.AdamW(
                groups, lr=part.learning_rate, betas=part.betas, eps=part.epsilon, fused=True
            )
            for parameter in _parameters(optimizer):
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        case RmsProp():
            optimizer = TensorFlowRmsProp(groups, part.learning_rate, part.decay, part.momentum, part.epsilon)
    return optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


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
        CheckpointError: they are not exactly the slots that this network and optimizer have.
    """
    own = optimizer_tensors(optimizer, model)
    for key, value in tensors.items():
        if key not in own or (value.shape, value.dtype) != (own[key].shape, own[key].dtype):
            raise CheckpointError(
                f"the optimizer's {key} {list(value.shape)} fits no parameter of this network"
            )
    if missing := sorted(own.keys() - tensors.keys()):
        raise CheckpointError(f"the optimizer's {missing[0]} is not in the checkpoint: use another one")
    for key, value in tensors.items():
        own[key].copy_(value)
