"""TensorFlow's own files, read and written without TensorFlow and without torch.

    checkpoint = Checkpoint("train/model.ckpt-20000")    # or the folder: its latest
    kernel = checkpoint.get("conv2d/kernel")
    save_checkpoint("copy/model.ckpt-20000", checkpoint.read())

Importing this package imports nothing that is slow: what it exports is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from foveal.tensorflow.checkpoint import Checkpoint, Listed, list_checkpoints, save_checkpoint
    from foveal.tensorflow.name_maps import NameMap, load_name_map, read_name_map

__all__ = [
    "Checkpoint",
    "Listed",
    "NameMap",
    "list_checkpoints",
    "load_name_map",
    "read_name_map",
    "save_checkpoint",
]

_ORIGINS: Final = {
    "Checkpoint": "checkpoint",
    "Listed": "checkpoint",
    "NameMap": "name_maps",
    "list_checkpoints": "checkpoint",
    "load_name_map": "name_maps",
    "read_name_map": "name_maps",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ORIGINS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
