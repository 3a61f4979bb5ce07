"""The safetensors format, read and written by ourselves.

The library of that name reads what is written here, and the other way round. Ours exists because a checkpoint
is streamed, checksummed and forced to the disk in one pass over each tensor's memory, and because a file from
anywhere must end in a named error, never in a crash, a wrong tensor or an allocation larger than the file.

The format: 8 bytes, the length of the header as a little-endian integer; the header (``tensor_header.py``);
the bytes of the tensors, without holes. ``docs/formats.md`` has the details.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.checkpoints.checksum import crc32c, joined_crc
from foveal.checkpoints.tensor_header import (
    HEADER_LIMIT,
    TensorInfo,
    damaged,
    decode_header,
    encode_header,
    in_stored_order,
)
from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError
from foveal.files import OutputFile

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "FileSummary",
    "TensorFileSummary",
    "TensorInfo",
    "read_header",
    "read_tensor_file",
    "write_tensor_file",
]

_CHUNK = 1 << 19  # bytes: what is copied is still in the processor's cache when it is checksummed
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The size in bytes and the CRC-32C of a file, by which it is known to be the one that was written."""

    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class TensorFileSummary(FileSummary):
    """The same of a tensor file, with the CRC-32C of each tensor's bytes by name."""

    tensors: Mapping[str, int]


def write_tensor_file(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> TensorFileSummary:
    """Write a new file and force it to the disk; the name is durable once its folder is synced too.

    The bytes go from each tensor's memory to the file; only a tensor that is on an accelerator or is not
    contiguous is copied first, one at a time. Those that share memory are written once each. None may change
    meanwhile.

    Args:
        path: the file, which must not exist yet.
        tensors: by name, of any dtype in ``DTYPES`` and any shape; a name is not "" nor "__metadata__".
        metadata: texts kept in the header.

    Raises:
        CheckpointError: a tensor, its name or the metadata cannot be stored; nothing is written.
        OSError: the file exists or could not be written; what was written of it is removed.
    """
    _require_little_endian()
    ordered = in_stored_order(path, tensors)
    header = encode_header(path, ordered, metadata)
    with path.open("xb", buffering=0) as file:
        try:
            return _write_content(file, header, ordered)
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def read_tensor_file(
    path: Path,
    *,
    expected: TensorFileSummary | None = None,
    names: Collection[str] | None = None,
    member: bool = False,
) -> dict[str, torch.Tensor]:
    """Read tensors into host memory.

    The tensors are writable and contiguous: views of one buffer, no larger than the file (but for alignment),
    which lives as long as any of them does.

    Args:
        path: a safetensors file, of ours or not.
        expected: what was written; with it, every byte that is read is verified.
        names: the tensors to read; the bytes of the others are not touched. None reads all of them.
        member: the file belongs to a checkpoint folder: it must be there, and must not be a link.

    Raises:
        DamagedCheckpointError: the file is malformed, or not the one that was expected.
        CheckpointError: it cannot be opened or read, has no tensor of a name, or does not fit in memory.
    """
    with open_for_reading(path, member=member) as file:
        header = _load_header(file, path, expected)
        chosen = _choose(path, header, names)
        buffer = _aligned_buffer(path, sum(_aligned(info.nbytes) for info in chosen.values()))
        tensors, position = {}, 0
        for name, info in chosen.items():
            target = buffer[position : position + info.nbytes]
            position += _aligned(info.nbytes)
            crc = _read_into(file, path, info.offset, target, checksum=expected is not None)
            if expected is not None and crc != expected.tensors[name]:
                damaged(path, info.offset, f"the bytes of tensor {name!r} are not those that were written")
            if info.dtype is torch.bool and target.max(initial=0) > 1:
                damaged(path, info.offset, f"tensor {name!r} holds bytes that are neither true nor false")
            tensors[name] = torch.from_numpy(target).view(info.dtype).view(info.shape)
    return tensors


def read_header(
    path: Path, *, expected: TensorFileSummary | None = None, member: bool = False
) -> dict[str, TensorInfo]:
    """Describe the tensors of a file, in the order they are stored, without reading them.

    Args:
        path: a safetensors file.
        expected: what was written; with it, the header is verified.
        member: as for :func:`read_tensor_file`.

    Raises:
        DamagedCheckpointError: the header is malformed, does not fit the size of the file, or is another.
        CheckpointError: the file cannot be opened or read.
    """
    with open_for_reading(path, member=member) as file:
        return _load_header(file, path, expected)


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise CheckpointError("tensor files are little-endian, this machine is not: use another machine")


# ---- writing


def _write_content(file: FileIO, header: bytes, ordered: list[tuple[str, torch.Tensor]]) -> TensorFileSummary:
    output = OutputFile(file)
    output.write(memoryview(header))
    file_crc, crcs = crc32c(header), {}
    for name, tensor in ordered:
        content = _host_bytes(tensor)
        crcs[name] = 0
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            output.write(chunk.data)
            crcs[name] = crc32c(chunk, crcs[name])
        file_crc = joined_crc(file_crc, crcs[name], len(content))
    os.fsync(file.fileno())
    return TensorFileSummary(output.size, file_crc, crcs)


def _host_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """View the elements in row-major order as bytes: a copy only if they do not lie so in host memory."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    content: NDArray[np.uint8] = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
    return content


# ---- reading


def _load_header(file: FileIO, path: Path, expected: TensorFileSummary | None) -> dict[str, TensorInfo]:
    """Read, check and, where it is known what was written, verify the header."""
    _require_little_endian()
    size = os.fstat(file.fileno()).st_size
    if expected is not None and size != expected.size:
        damaged(path, min(size, expected.size), f"it has {size} bytes, {expected.size} were written")
    if size < 8:
        damaged(path, size, "too short to hold the length of a header")
    prefix = np.empty(8, np.uint8)
    _read_into(file, path, 0, prefix)
    length = int.from_bytes(prefix.tobytes(), "little")
    if length > HEADER_LIMIT:
        damaged(path, 0, f"a header of {length} bytes is beyond the limit of {HEADER_LIMIT}")
    if 8 + length > size:
        damaged(path, 0, f"a header of {length} bytes reaches beyond the end of the file at {size}")
    text = np.empty(length, np.uint8)
    _read_into(file, path, 8, text)
    header = decode_header(path, text.tobytes(), size)
    if expected is not None:
        _verify_header(path, header, crc32c(text, crc32c(prefix)), expected)
    return header


def _verify_header(path: Path, header: dict[str, TensorInfo], crc: int, expected: TensorFileSummary) -> None:
    """Check the CRC of the whole file, taking for each tensor the CRC that its bytes must have when read."""
    if header.keys() != expected.tensors.keys():
        damaged(path, 8, "its tensors are not those that were written")
    for name, info in header.items():
        crc = joined_crc(crc, expected.tensors[name], info.nbytes)
    if crc != expected.crc32c:
        damaged(path, 0, "its header is not the one that was written")


def _choose(
    path: Path, header: dict[str, TensorInfo], names: Collection[str] | None
) -> dict[str, TensorInfo]:
    if names is None:
        return header
    wanted = set(names)
    missing = sorted(wanted - header.keys())
    if missing:
        raise CheckpointError(f"{path}: no tensor is named {missing[0]!r}: name one of those it has")
    return {name: info for name, info in header.items() if name in wanted}


def _read_into(
    file: FileIO, path: Path, offset: int, target: NDArray[np.uint8], *, checksum: bool = False
) -> int:
    """Fill ``target`` with the bytes at ``offset``; returns their CRC-32C if asked, else 0."""
    file.seek(offset)
    done, crc = 0, 0
    while done < len(target):
        chunk = target[done : done + _CHUNK]
        count = file.readinto(chunk.data)
        if not count:
            damaged(path, offset + done, "the file ended while it was read")
        if checksum:
            crc = crc32c(chunk[:count], crc)
        done += count
    return crc


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % _ALIGNMENT


def _aligned_buffer(path: Path, nbytes: int) -> NDArray[np.uint8]:
    """Reserve memory, by NumPy: it asks for huge pages, which makes reading twice as fast."""
    try:
        raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    except MemoryError:
        raise CheckpointError(
            f"{path}: {nbytes} bytes of memory are needed: free some, or read less"
        ) from None
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + nbytes]
