"""Writing the weights of a network as a safetensors file of a person's own, which is never overwritten."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from foveal.checkpoints.layout import cannot_write
from foveal.checkpoints.tensor_file import write_tensor_file
from foveal.errors import CheckpointError, UsageError
from foveal.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_METADATA = {"format": "pt"}  # the axes are in PyTorch's order; readers of others ask for it


def require_new(out: Path) -> None:
    """Refuse a file that could not be written, before the work for it is done.

    Raises:
        UsageError: it has another ending than ``.safetensors``.
        CheckpointError: it exists.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the file to write must end in .safetensors")
    if os.path.lexists(out):
        raise CheckpointError(f"{out} exists already: name another file, or move it away")


def write_weights(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that appears under its name when all of it is on the disk.

    Raises:
        UsageError, CheckpointError: as :func:`require_new` does; or it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        write_tensor_file(temporary, tensors, _METADATA)
        require_new(out)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
