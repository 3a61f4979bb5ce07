"""The header of a safetensors file: which tensors it holds, and where.

Its JSON gives each tensor's dtype, shape and range of bytes. The reader believes none of it: the ranges must
cover the rest of the file exactly, so that no file makes us reserve more memory than it is long.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from foveal.checkpoints.untrusted import strict_json
from foveal.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# In the order in which the library stores them: the larger first, so each tensor is aligned to its own size.
DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}

HEADER_LIMIT = 100_000_000  # bytes, as in the library
_DIMENSIONS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor; ``offset`` counts bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def in_stored_order(path: Path, tensors: Mapping[str, object]) -> list[tuple[str, torch.Tensor]]:
    """Sort tensors as they are stored in ``path``: by dtype, then by name.

    Raises:
        CheckpointError: a name or a tensor cannot be stored.
    """
    plain: list[tuple[str, torch.Tensor]] = []
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name in ("", "__metadata__"):
            raise CheckpointError(f"{path}: a tensor cannot be named {name!r}: choose another name")
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {name!r} is a {kind}, not a tensor: keep it in the state")
        if tensor.dtype not in _RANKS or tensor.layout is not torch.strided or tensor.is_meta:
            form = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            raise CheckpointError(f"{path}: tensor {name!r} ({form}) cannot be stored: convert it")
        plain.append((name, tensor))
    return sorted(plain, key=lambda item: (_RANKS[item[1].dtype], item[0]))


def encode_header(
    path: Path, ordered: list[tuple[str, torch.Tensor]], metadata: Mapping[str, str] | None
) -> bytes:
    """Encode the beginning of a file, up to the first tensor, which is at a multiple of 8.

    Raises:
        CheckpointError: a name is not valid Unicode, the metadata are not texts, or it would be too long.
    """
    document: dict[str, object] = {}
    if metadata is not None:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise CheckpointError(f"{path}: metadata are texts by name: convert the values to str")
        document["__metadata__"] = dict(metadata)
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.itemsize
        code, shape = _CODES[tensor.dtype], list(tensor.shape)
        document[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: a name is not valid Unicode ({error}): choose another") from None
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise CheckpointError(f"{path}: {len(ordered)} tensors are too many for one file: store fewer")
    return len(text).to_bytes(8, "little") + text


def decode_header(path: Path, raw: bytes, size: int) -> dict[str, TensorInfo]:
    """Decode the JSON ``raw`` at byte 8 of a file of ``size`` bytes; tensors in the order stored.

    Raises:
        DamagedCheckpointError: it is malformed, or its tensors do not cover the rest of the file exactly.
    """
    try:
        document = strict_json(raw)
    except ValueError as error:
        damaged(path, 8, f"the header is not JSON ({error})")
    if not isinstance(document, dict) or not raw.startswith(b"{"):
        damaged(path, 8, "the header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        damaged(path, 8, "the metadata are not texts by name")
    start, header = 8 + len(raw), {}
    for name, entry in document.items():
        try:
            name.encode("utf-8")  # JSON can escape half of a surrogate pair
            header[name] = _decode_entry(entry, start)
        except ValueError as error:
            damaged(path, 8, f"tensor {name!r:.200}: {error}")
    ordered = dict(sorted(header.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_ranges(path, ordered, start, size)
    return ordered


def damaged(path: Path, offset: int, problem: str) -> NoReturn:
    """Raise the error that says what is wrong at ``offset`` of the file ``path``."""
    raise DamagedCheckpointError(f"{path}: byte {offset}: {problem}: the file is damaged, use another copy")


def _decode_entry(entry: object, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("its fields are not dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"unknown dtype {code!r:.80}")
    if not _are_counts(shape) or len(shape) > _DIMENSIONS_LIMIT:
        raise ValueError(f"the shape is not a list of sizes: {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the data_offsets are not a range: {offsets!r:.80}")
    itemsize = DTYPES[code].itemsize
    # A size of 0 makes the tensor empty, but the strides of the other sizes must still be representable.
    if math.prod(max(count, 1) for count in shape) * itemsize >= 1 << 63:
        raise ValueError(f"the shape overflows: {shape!r:.80}")
    nbytes = math.prod(shape) * itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"it has {offsets[1] - offsets[0]} bytes, but shape and dtype make {nbytes}")
    return TensorInfo(DTYPES[code], tuple(shape), start + offsets[0], nbytes)


def _are_counts(value: object) -> bool:
    """Whether it is a list of integers >= 0 of 63 bits. True is none of them, though an instance of int."""
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 1 << 63 for count in value)


def _check_ranges(path: Path, ordered: dict[str, TensorInfo], start: int, size: int) -> None:
    end = start
    for name, info in ordered.items():
        if info.offset < end:
            damaged(
                path, info.offset, f"tensor {name!r:.200} overlaps the one before it, which ends at {end}"
            )
        if info.offset > end:
            damaged(path, end, f"a hole before tensor {name!r:.200}, which begins at {info.offset}")
        end = info.offset + info.nbytes
        if end > size:
            damaged(path, info.offset, f"tensor {name!r:.200} reaches beyond the end of the file at {size}")
    if end < size:
        damaged(path, end, f"{size - end} bytes follow the last tensor")
