"""Muon: momentum whose matrices are made nearly orthogonal before they are applied, beside Nesterov SGD."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Of Jordan's quintic iteration: the steepest slope at zero for which singular values end between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_TINY = 1e-7  # added to a norm that is divided by


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for some groups of parameters, Nesterov SGD for the others.

    With the gradient g, ``m = momentum * m + g`` and ``u = g + momentum * m`` (or m, without ``nesterov``).
    Parameters of an orthogonal group count as matrices of as many rows as there are outputs, and take
    ``p = p - rate * U V^T``, where ``U S V^T`` is u, by :func:`orthogonalize`; before that they are scaled to
    the norm sqrt(outputs), or lose ``rate * weight_decay`` of themselves. The others take ``p - rate * u``,
    with ``weight_decay * p`` added to g.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, and the CIFAR-10
    record ``airbench94_muon`` of the same author, which normalises.

    Args:
        groups: tables of ``params``, ``lr``, ``weight_decay``, ``momentum``, ``nesterov`` and ``orthogonal``.
        iterations: of Newton and Schulz.
        dtype: that these compute in.
        normalize: scale what is orthogonalised, instead of decay.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], iterations: int, dtype: torch.dtype, *, normalize: bool
    ) -> None:
        super().__init__(groups, {})
        self._iterations, self._dtype, self._normalize = iterations, dtype, normalize
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("this optimizer takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["orthogonal"]:
                self._restrain(group, parameters)
                self._orthogonal(group, parameters)
            else:
                self._plain(group, parameters)

    def _restrain(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Normalise or decay."""
        if self._normalize:
            norms = torch._foreach_norm(parameters)
            factors = [len(p) ** 0.5 / (norm + _TINY) for p, norm in zip(parameters, norms, strict=True)]
            torch._foreach_mul_(parameters, factors)
        elif group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])

    def _orthogonal(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        matrices = [_matrix(update) for update in self._momentum(group, parameters, _gradients(parameters))]
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for number, matrix in enumerate(matrices):
            alike[matrix.shape].append(number)
        updates = list(parameters)
        for numbers in alike.values():
            stack = torch.stack([matrices[number] for number in numbers])
            whole = orthogonalize(stack, self._iterations, self._dtype).to(stack.dtype)
            for number, update in zip(numbers, whole, strict=True):
                updates[number] = _unfold(update, parameters[number])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _plain(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = _gradients(parameters)
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_add_(parameters, self._momentum(group, parameters, gradients), alpha=-group["lr"])

    def _momentum(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """Carry the momentum on; the update that follows from it, before the rate."""
        moments: list[Tensor] = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_add_(moments, gradients)
        if not group["nesterov"]:
            return moments
        return list(torch._foreach_add(gradients, moments, alpha=group["momentum"]))


def orthogonalize(matrices: Tensor, iterations: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring the singular values of matrices near to one, and leave the singular vectors as they are.

    A matrix X, scaled to the norm one, becomes ``a X + (b A + c A A) X`` with ``A = X X^T``, some times: each
    singular value s becomes ``a s + b s^3 + c s^5``. After five iterations, values of at least 0.01 of
    the norm are between 0.68 and 1.13.

    Args:
        matrices: float ``[N, rows, columns]``.
        iterations: at least 1.
        dtype: to compute in.

    Returns:
        ``[N, rows, columns]`` of ``dtype``.
    """
    norms: Tensor = torch.linalg.matrix_norm(matrices.float(), keepdim=True)
    values: Tensor = (matrices / (norms + _TINY)).to(dtype)
    tall = matrices.shape[1] > matrices.shape[2]
    if tall:  # products of the shorter side are smaller
        values = values.mT
    for _ in range(iterations):
        squares = values @ values.mT
        values = torch.baddbmm(
            values, torch.baddbmm(squares, squares, squares, beta=_B, alpha=_C), values, beta=_A
        )
    return values.mT if tall else values


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _matrix(values: Tensor) -> Tensor:
    """One row for each output. The order of columns changes nothing: that of channels_last needs no copy."""
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).flatten(1)


def _unfold(matrix: Tensor, like: Tensor) -> Tensor:
    """What :func:`_matrix` made a matrix of, in the shape of ``like``."""
    if like.ndim != 4:
        return matrix.reshape(like.shape)
    outputs, inputs, height, width = like.shape
    return matrix.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
