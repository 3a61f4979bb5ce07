"""Networks with an auxiliary head: a second classifier on a middle layer, which helps to train the first.

Source: Szegedy et al., "Going Deeper with Convolutions", 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class WithAuxiliary(NamedTuple):
    """What such a network gives in training; in evaluation it gives its logits alone.

    Attributes:
        logits: float ``[B, classes]``.
        auxiliary: those of the head, float ``[B, classes]``.
    """

    logits: Tensor
    auxiliary: Tensor


@runtime_checkable
class MayHaveAuxiliaryHead(Protocol):
    """A network that may have one; yours may be one.

    Attributes:
        has_auxiliary_head: whether training gets :class:`WithAuxiliary`, or a tuple of the same two.
    """

    has_auxiliary_head: bool
