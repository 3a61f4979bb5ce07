"""torch.compile: whether it works here, and a network that is compiled with its weights as constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from foveal.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def can_compile() -> bool:
    """Whether torch.compile works here: it needs a C++ compiler."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8))
    except Exception:  # noqa: BLE001 - whatever its reason, compilation is only an option
        return False
    return True


def frozen(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A network compiled for inference, with weights that can be laid out in advance as they never change.

    The first batch takes up to a minute, and so does a larger one after it; a smaller one, such as the last
    of an evaluation, is filled up with zeros. To be called without gradients.

    Raises:
        UsageError: torch.compile does not work here.
    """
    from torch._inductor import config

    if not can_compile():
        raise UsageError("torch.compile does not work here: it needs a C++ compiler; leave out --compile")
    compiled: Any = torch.compile(network)
    largest = 0

    def call(images: Tensor) -> Tensor:
        nonlocal largest
        count, largest = len(images), max(largest, len(images))
        filled = functional.pad(images, (0, 0, 0, 0, 0, 0, 0, largest - count))
        with config.patch(freezing=True):  # looked at when something is compiled
            logits: Tensor = compiled(filled)
            return logits[:count]

    return call
