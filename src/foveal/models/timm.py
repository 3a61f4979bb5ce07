"""Networks of timm (PyTorch Image Models, by Ross Wightman and others), where that is installed.

``model.name = "timm/NAME"`` is one with random weights, ``init.path = "timm/NAME"`` the weights that come
with it, which timm fetches and keeps.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from foveal.errors import CheckpointError, RecipeError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

PREFIX: Final = "timm/"


def find_timm(name: str) -> Callable[..., nn.Module]:
    """What makes a network, called with ``num_classes``, ``image_shape`` and timm's own options.

    Args:
        name: ``"timm/NAME"``.

    Raises:
        RecipeError: timm is not installed.
        UnknownNameError: it has no network of that name.
    """
    timm, own = _find(name)

    def build(num_classes: int, image_shape: tuple[int, int, int], **options: Any) -> nn.Module:
        made: nn.Module = timm.create_model(own, num_classes=num_classes, in_chans=image_shape[2], **options)
        return made

    return build


def read_timm_weights(name: str) -> tuple[dict[str, Tensor], str]:
    """The weights that a network comes with, and a SHA-256 of them.

    Raises:
        RecipeError: timm is not installed.
        UnknownNameError: it has no network of that name.
        CheckpointError: there are no weights for it, or they cannot be fetched.
    """
    timm, own = _find(name)
    try:
        tensors = timm.create_model(own, pretrained=True).state_dict()
    except Exception as error:  # of its own, the hub's, the network's
        raise CheckpointError(
            f"{name}: timm cannot give its weights: {' '.join(str(error).split())}"
        ) from error
    digest = hashlib.sha256()
    for key, value in tensors.items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return tensors, digest.hexdigest()


def find_timm_input(name: str) -> dict[str, Any]:
    """What its weights were trained on: ``input_size``, ``mean``, ``std``, ``crop_pct``, ``interpolation``.

    Raises:
        RecipeError: timm is not installed.
        UnknownNameError: it has no network of that name.
    """
    timm, own = _find(name)
    found: dict[str, Any] = timm.get_pretrained_cfg(own).to_dict()
    return found


def _find(name: str) -> tuple[Any, str]:
    """The package, and its own name for the network."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision, which it imports, may be for another torch
        raise RecipeError(
            f"model.name = {name!r}: timm cannot be imported ({error}): pip install 'foveal[timm]'"
        ) from None
    own = name.removeprefix(PREFIX)
    if not timm.is_model(own):
        raise UnknownNameError("network of timm", own, timm.list_models())
    return timm, own
