"""Optimizers from a recipe, RMSProp as TensorFlow has it, and their state as named tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.errors import CheckpointError, RecipeError, suggestion
from foveal.recipe import AdamW, Muon, RmsProp, Sgd
from foveal.training import muon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from foveal.recipe import Group, OptimizerPart


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


def build_optimizer(
    part: OptimizerPart, model: nn.Module, own: Sequence[Group] = ()
) -> torch.optim.Optimizer:
    """The optimizer a recipe names, over the parameters that ask for a gradient, with all of its slots.

    PyTorch makes a slot at the first update of its parameter. Where some learn later than others, its fused
    kernels would be given slots for a part of them only, which they take for none at all.

    Args:
        part: the recipe's ``optimizer`` table.
        model: the network.
        own: the recipe's ``groups``.

    Returns:
        An optimizer whose groups have, besides its own keys, ``full_rate``: the learning rate that the
        schedule multiplies; and ``until``: that of their table in ``own``, or None.

    Raises:
        RecipeError: an expression of ``groups`` or of Muon's ``orthogonal`` finds nothing to hold for.
    """
    groups = _groups(part, model, own)
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
        case Muon():
            dtype = torch.bfloat16 if part.arithmetic == "bfloat16" else torch.float32
            optimizer = muon.Muon(groups, part.iterations, dtype, normalize=part.normalize)
    return optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def group_of(groups: Sequence[Group], name: str) -> Group | None:
    """The table among the recipe's ``groups`` that holds for a parameter."""
    return next((group for group in groups if re.search(group.parameters, name)), None)


def _groups(part: OptimizerPart, model: nn.Module, own: Sequence[Group]) -> list[dict[str, Any]]:
    """The parameters that learn, those that are treated alike together, decaying ones first."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for number, each in enumerate(own):
        if not any(re.search(each.parameters, name) for name in named):
            hint = suggestion(each.parameters, {name.partition(".")[0] for name in named})
            raise RecipeError(
                f"groups.{number}: {each.parameters!r} is found in the name of nothing that learns: {hint}"
            )
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    orthogonal = _orthogonal(part, named) if isinstance(part, Muon) else set()
    for name, parameter in named.items():
        group = group_of(own, name)
        decays = part.weight_decay if _decays(part.decayed, name, parameter) else 0.0
        rate: float = part.learning_rate
        if isinstance(part, Muon) and name not in orthogonal:
            rate = part.rest_learning_rate
        if group is not None:
            rate = group.learning_rate or rate
            decays = decays if group.weight_decay is None else group.weight_decay
        alike.setdefault((decays, rate, group and group.until, name in orthogonal), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr": rate, "full_rate": rate, "until": until}
        | (_muon_keys(part, orthogonal=matrix) if isinstance(part, Muon) else {})
        for (decay, rate, until, matrix), parameters in alike.items()
    ]
    return sorted(groups, key=lambda group: -group["weight_decay"])


def _orthogonal(part: Muon, named: Mapping[str, Tensor]) -> set[str]:
    """The names of what Muon makes orthogonal."""
    if part.orthogonal == "filters":
        found = {name for name, parameter in named.items() if parameter.ndim == 4}
    else:
        found = {
            name
            for name, parameter in named.items()
            if parameter.ndim >= 2 and re.search(part.orthogonal, name)
        }
    if not found:
        raise RecipeError(
            f"optimizer.orthogonal: {part.orthogonal!r} is found in no name of a matrix that learns"
        )
    return found


def _muon_keys(part: Muon, *, orthogonal: bool) -> dict[str, Any]:
    """How its groups carry their momentum."""
    if orthogonal:
        return {"orthogonal": True, "momentum": part.momentum, "nesterov": part.nesterov}
    return {"orthogonal": False, "momentum": part.rest_momentum, "nesterov": True}


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
