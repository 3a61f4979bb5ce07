"""What learns when: parameters that are frozen throughout, in phases, or after they have learnt enough."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from foveal.errors import RecipeError, suggestion
from foveal.training.optimizer import group_of
from foveal.training.schedule import share_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from foveal.recipe import Recipe


@dataclass(frozen=True)
class _Stretch:
    """Steps during which the same learns.

    Attributes:
        rate: multiplies the learning rate.
        frozen: what does not learn.
        fixed: batch norms that keep their statistics.
    """

    rate: float
    frozen: frozenset[nn.Parameter]
    fixed: tuple[nn.Module, ...]


class Freezing:
    """The recipe's ``freeze``s and ``phases``, and the ``until`` of its ``groups``, applied to a network.

    A frozen parameter has no gradient, so the optimizer passes it over: no update, no decay, no change of its
    slots. A batch norm whose parameters are all frozen (or, of one without any, whose ``running_mean`` an
    expression is found in) stays in evaluation mode: its statistics do not move, and it normalises with them.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, total_steps: int) -> None:
        """Freeze what never learns; what learns in any phase still does, until :meth:`apply`.

        Args:
            model: its parameters that ask for no gradient already are left alone.
            recipe: gives ``freeze``, ``freeze_batch_norm``, ``phases`` and ``groups``.
            total_steps: of the run.

        Raises:
            RecipeError: an expression is found in no parameter's name, nothing is left to learn, or the
                phases are longer than the run.
        """
        phases = recipe.phases
        ends = list(accumulate(phase.steps for phase in phases))
        if ends and ends[-1] >= total_steps:
            raise RecipeError(
                f"the phases take {ends[-1]} steps of a run of {total_steps}: the rest must "
                "follow; make them shorter, or give more steps"
            )
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._frozen_norms = frozenset(norms if recipe.freeze_batch_norm else ())
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        settled = _settled(model, recipe, total_steps)
        self._present = self._stretch(model, "freeze", recipe.freeze, 1.0)  # in which the most learns
        self._ends = sorted({*ends, *settled})
        self._stretches = []
        for start in (0, *self._ends):
            done = {parameter for end, group in settled.items() if end <= start for parameter in group}
            number = bisect_right(ends, start)
            frozen, field, rate = recipe.freeze, "freeze", 1.0
            if number < len(phases):
                phase = phases[number]
                frozen, field, rate = (*frozen, *phase.freeze), f"phases[{number}].freeze", phase.rate
            self._stretches.append(self._stretch(model, field, frozen, rate, done))
        self._enter(self._present)

    def rate(self, step: int) -> float:
        """What the scheduled learning rate of step number ``step`` (from 0) is multiplied by."""
        return self._stretch_of(step).rate

    def apply(self, step: int) -> None:
        """Let learn what learns in step number ``step`` (from 0), and nothing else."""
        stretch = self._stretch_of(step)
        if stretch is not self._present:
            self._enter(stretch)
        for norm in stretch.fixed:  # whoever called model.train() meant the others
            norm.eval()

    def _stretch_of(self, step: int) -> _Stretch:
        return self._stretches[bisect_right(self._ends, step)]

    def _enter(self, stretch: _Stretch) -> None:
        for parameter in self._learning:
            parameter.requires_grad_(parameter not in stretch.frozen)
        for norm in self._present.fixed:
            norm.train()
        self._present = stretch

    def _stretch(
        self,
        model: nn.Module,
        field: str,
        expressions: tuple[str, ...],
        rate: float,
        settled: Iterable[nn.Parameter] = (),
    ) -> _Stretch:
        named = list(model.named_parameters(remove_duplicate=False))
        frozen = {*settled, *(parameter for norm in self._frozen_norms for parameter in norm.parameters())}
        for expression in expressions:
            found = {parameter for name, parameter in named if re.search(expression, name)}
            if not found:
                hint = suggestion(expression, {name.partition(".")[0] for name, _ in named})
                raise RecipeError(f"{field}: {expression!r} is found in no parameter's name: {hint}")
            frozen |= found
        if frozen.issuperset(self._learning):
            what = ", ".join(map(repr, expressions)) or "the groups that end"
            raise RecipeError(f"{field}: {what}: leaves nothing to learn")
        fixed = (
            module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and (module in self._frozen_norms or _is_fixed(name, module, frozen, expressions))
        )
        return _Stretch(rate, frozenset(frozen), tuple(fixed))


def _settled(model: nn.Module, recipe: Recipe, total_steps: int) -> dict[int, set[nn.Parameter]]:
    """After how many steps which parameters cease to learn."""
    settled: dict[int, set[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(recipe.groups, name)
        if group is not None and group.until is not None:
            settled.setdefault(share_of(total_steps, group.until), set()).add(parameter)
    return settled


def _is_fixed(name: str, norm: nn.Module, frozen: set[nn.Parameter], expressions: tuple[str, ...]) -> bool:
    parameters = list(norm.parameters())
    if parameters:
        return frozen.issuperset(parameters)
    return any(re.search(expression, f"{name}.running_mean") for expression in expressions)
