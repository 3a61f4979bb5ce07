"""Temperature scaling: probabilities that mean what they say.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017: logits are divided by one
number, fitted where the network did not learn. The order of the classes, and so the accuracy, stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

RANGE: Final = (0.05, 20.0)
"""The temperatures that are tried."""

_HALVINGS = 50


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in :data:`RANGE` that makes the labels most probable.

    Where few examples are all classified rightly, that would make the network certain. So each label counts
    as right in n + 1 of n + 2 cases, n being the number of examples (Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999).

    Args:
        logits: ``[N, classes]``, finite, N at least 1.
        labels: int64 ``[N]``.
    """
    logits = logits.double()
    count, classes = logits.shape
    doubt = 1 / (count + 2)
    targets = torch.full_like(logits, doubt / max(classes - 1, 1))
    targets.scatter_(1, labels[:, None], 1 - doubt)
    wanted = (targets * logits).sum()
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(_HALVINGS):  # the loss is convex in 1 / temperature: its slope changes sign once
        middle = (low + high) / 2
        slope = ((middle * logits).softmax(dim=1) * logits).sum() - wanted
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)
