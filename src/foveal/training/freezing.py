"""What learns when: parameters that are frozen throughout, and phases in which more is."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from foveal.errors import RecipeError, suggestion

if TYPE_CHECKING:
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
    """The recipe's ``freeze`` and ``phases``, applied to a network.

    A frozen parameter has no gradient, so the optimizer passes it over: no update, no decay, no change of its
    slots. A batch norm whose parameters are all frozen (or, of one without any, whose ``running_mean`` an
    expression is found in) stays in evaluation mode: its statistics do not move, and it normalises with them.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, total_steps: int) -> None:
        """Freeze what never learns; what learns in any phase still does, until :meth:`apply`.

        Args:
            model: its parameters that ask for no gradient already are left alone.
            recipe: gives ``freeze`` and ``phases``.
            total_steps: of the run.

        Raises:
            RecipeError: an expression is found in no parameter's name, nothing is left to learn, or the
                phases are longer than the run.
        """
        self._ends = list(accumulate(phase.steps for phase in recipe.phases))
        if self._ends and self._ends[-1] >= total_steps:
            raise RecipeError(
                f"the phases take {self._ends[-1]} steps of a run of {total_steps}: the rest must "
                "follow; make them shorter, or give more steps"
            )
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        last = self._stretch(model, "freeze", recipe.freeze, 1.0)
        phases = (
            self._stretch(model, f"phases[{number}].freeze", (*recipe.freeze, *phase.freeze), phase.rate)
            for number, phase in enumerate(recipe.phases)
        )
        self._stretches = [*phases, last]
        self._present = last  # in which the most learns
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

    def _stretch(self, model: nn.Module, field: str, expressions: tuple[str, ...], rate: float) -> _Stretch:
        named = list(model.named_parameters(remove_duplicate=False))
        frozen: set[nn.Parameter] = set()
        for expression in expressions:
            found = {parameter for name, parameter in named if re.search(expression, name)}
            if not found:
                hint = suggestion(expression, {name.partition(".")[0] for name, _ in named})
                raise RecipeError(f"{field}: {expression!r} is found in no parameter's name: {hint}")
            frozen |= found
        if frozen.issuperset(self._learning):
            raise RecipeError(f"{field}: {', '.join(map(repr, expressions))}: leaves nothing to learn")
        fixed = (
            module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and _is_fixed(name, module, frozen, expressions)
        )
        return _Stretch(rate, frozenset(frozen), tuple(fixed))


def _is_fixed(name: str, norm: nn.Module, frozen: set[nn.Parameter], expressions: tuple[str, ...]) -> bool:
    parameters = list(norm.parameters())
    if parameters:
        return frozen.issuperset(parameters)
    return any(re.search(expression, f"{name}.running_mean") for expression in expressions)
