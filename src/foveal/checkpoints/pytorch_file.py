"""PyTorch state dicts (``torch.save``, in both of its formats), read without running what is in them.

Such a file is a pickle, a program that builds objects. It is looked through before it is loaded: it may name
tensors and what they are made of, and nothing else, and may not unpack to more than its size. PyTorch then
loads it with ``weights_only=True``.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch
from torch import Tensor

from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"  # the opcode that names the protocol
_LEGACY_PICKLES: Final = 5  # magic number, protocol, machine, objects, storages; the storages' bytes follow
_PROTOCOL: Final = 2
_ALLOWED: Final = re.compile(
    r"collections\.OrderedDict|torch\.(\w+|_utils\._rebuild_\w+|storage\.\w+|nn\.parameter\.Parameter|"
    r"_tensor\._rebuild_from_type_v2|serialization\._get_layout)"
)
_REMEDY: Final = "save it anew with torch.save(model.state_dict(), ...)"
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a state dict, alone or under ``state_dict``, ``model_state_dict`` or ``model``.

    Args:
        path: what ``torch.save`` wrote.

    Returns:
        Host tensors by name, of any dtype; and the keys they were found under, outermost first.

    Raises:
        CheckpointError: it cannot be read, is damaged, needs code to be loaded, would unpack to more than its
            size, or is no state dict.
    """
    with open_for_reading(path) as raw:
        file = io.BufferedReader(raw)
        try:
            _check_names(path, _pickles(path, file))
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (CheckpointError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path}: not a PyTorch state dict, or damaged ({_first_line(error)}): {_REMEDY}"
            ) from error
    keys = []
    while isinstance(content, Mapping) and not _tensors(content):
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        keys.append(key)
        content = content[key]
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name: {_REMEDY}")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(
                f"{path}: tensor {name!r:.200} is sparse, quantized or without data: {_REMEDY}"
            )
    return tensors, tuple(keys)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """What of a dictionary is a tensor with a name; step counts and the like are passed over."""
    return {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _pickles(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """The pickles of a file, each at its beginning."""
    head = file.read(len(_ZIP))
    file.seek(0)
    if head == _ZIP:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or sum(record.file_size for record in records) > os.fstat(file.fileno()).st_size:
                raise CheckpointError(
                    f"{path}: has compressed or shared records, as PyTorch's never have: {_REMEDY}"
                )
            for record in records:
                if record.filename.lower().endswith(".pkl"):
                    yield io.BytesIO(archive.read(record))
    elif head.startswith(_PICKLE):
        for _ in range(_LEGACY_PICKLES):
            yield file
    else:
        raise CheckpointError(f"{path}: neither a .safetensors file nor one that torch.save wrote")


def _check_names(path: Path, pickles: Iterator[BinaryIO]) -> None:
    """Refuse pickles that name anything else: code, or, say, a ``bytearray`` of any size they like."""
    foreign = set()
    for pickle in pickles:
        for operation, argument, _ in pickletools.genops(pickle):
            if (int(argument or 0) if operation.name == "PROTO" else operation.proto) > _PROTOCOL:
                raise CheckpointError(
                    f"{path}: a pickle of a later protocol than {_PROTOCOL}, PyTorch's: {_REMEDY}"
                )
            name = str(argument).replace(" ", ".")
            if operation.name == "GLOBAL" and not _ALLOWED.fullmatch(name):
                foreign.add(f"{name!r:.100}")
    if foreign:
        listed = ", ".join(sorted(foreign)[:3])
        raise CheckpointError(f"{path}: loading it would run code of {listed}, which is not done: {_REMEDY}")


def _first_line(error: Exception) -> str:
    """What went wrong, without PyTorch's advice to trust the file."""
    text = str(error).partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
