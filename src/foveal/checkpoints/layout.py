"""The folder of a checkpoint: written so that it is there in full or not at all, and verified when read.

    step-000001000/
      model.safetensors  ema.safetensors  optimizer.safetensors   a file per part (``tensor_file.py``)
      state.json                                                  numbers and texts: step, best metric, ...
      manifest.json                                               sizes and CRC-32Cs of these, and its own

All of it is written into ``.NAME.tmp`` beside it, forced to the disk, and renamed. So a folder under its own
name is complete, whenever the power fails; what is damaged later disagrees with the manifest. The byte-level
specification is in ``docs/formats.md``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.checksum import crc32c
from foveal.checkpoints.tensor_file import (
    FileSummary,
    TensorFileSummary,
    read_tensor_file,
    write_tensor_file,
)
from foveal.checkpoints.untrusted import open_for_reading, strict_json
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.faults import fault_point
from foveal.files import discard, remove_folder, sync_folder, write_synced

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import torch

FORMAT = "foveal-checkpoint"
VERSION = 1

_STATE = "state.json"
_MANIFEST = "manifest.json"
_STATE_LIMIT = 64 << 20  # bytes
_MANIFEST_LIMIT = 256 << 20
_PART_NAME = re.compile(r"[a-z_]+")
_FILE_NAME = re.compile(r"[a-z_]+\.(safetensors|json)")
_CRC_TEXT = re.compile(r"[0-9a-f]{8}")
_CRC_KEY = b',\n  "crc32c": "'
_MANIFEST_END = b'"\n}\n'


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was written: each file's summary by name; those of tensors are ``TensorFileSummary``."""

    version: int
    files: Mapping[str, FileSummary]

    @property
    def parts(self) -> list[str]:
        """The names of the parts that hold tensors, sorted."""
        names = (name for name, summary in self.files.items() if isinstance(summary, TensorFileSummary))
        return sorted(name.removesuffix(".safetensors") for name in names)


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """What was read of a checkpoint: its state, and host tensors by part and name."""

    folder: Path
    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, torch.Tensor]]


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, object],
    *,
    replace: bool = False,
) -> None:
    """Write a checkpoint; it appears as ``folder`` when all of it is on the disk, and not before.

    Args:
        folder: where; it must not exist yet, unless it is to be replaced.
        tensors: by part ("model", "ema", "optimizer": lower-case letters and underscores), then by name. Any
            plain dtype and shape, on any device; they must not change meanwhile.
        state: what JSON can hold: dicts with str keys, lists, str, int, finite float, bool, None. A tuple
            becomes a list.
        replace: put it in the place of what is there. Between two renames the old one is called
            ``.NAME.replaced``; it is deleted when the new one is there for good. See ``recover_replaced``.

    Raises:
        CheckpointError: the state, a part or a tensor cannot be stored, ``folder`` exists, or writing failed
            (the disk is full, ...). Nothing of it is left, and every other checkpoint is as it was.
    """
    content = _encode_state(folder, state)
    for part in tensors:
        if not _PART_NAME.fullmatch(part):
            raise CheckpointError(f"{folder}: a part cannot be named {part!r}: use lower-case letters")
    if not replace and os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists already: move it away, or save another step")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        _create_folder(folder.parent)
        discard(temporary)  # a crash may have left it
        temporary.mkdir()
        _write_files(temporary, tensors, content)
        sync_folder(temporary)
        _settle(folder)
        if os.path.lexists(folder):
            folder.rename(_aside(folder))
        fault_point("before rename")
        temporary.rename(folder)
        fault_point("after rename")
    except BaseException as error:
        with suppress(OSError):
            discard(temporary)
        with suppress(OSError):
            _settle(folder)
        if isinstance(error, OSError):
            raise cannot_write(folder, error) from error
        raise
    try:
        sync_folder(folder.parent)
    except OSError as error:  # it is complete: to remove it would help nobody
        raise CheckpointError(f"{cannot_write(folder, error)}; it may not survive a power cut") from error
    with suppress(OSError):  # what is left of the old one is deleted another time
        _settle(folder)


def recover_replaced(parent: Path) -> None:
    """Undo, or finish, the replacements in ``parent`` that a crash cut short.

    ``.NAME.replaced`` is put back where there is no ``NAME``, and deleted where there is.

    Raises:
        CheckpointError: it could not be done; nothing is lost.
    """
    for aside in parent.glob(".[!.]*.replaced"):
        folder = parent / aside.name.removeprefix(".").removesuffix(".replaced")
        try:
            _settle(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error


def cannot_write(path: Path | str, error: OSError, doing: str = "write") -> CheckpointError:
    """The error that says what failed and what to do."""
    remedies = {
        errno.ENOSPC: "free some space there",
        errno.EDQUOT: "free some space there, or raise your quota",
        errno.EFBIG: "allow larger files there",
        errno.EACCES: "allow writing there",
        errno.EPERM: "allow writing there",
        errno.EROFS: "allow writing there",
        errno.EIO: "check the disk",
    }
    remedy = remedies.get(error.errno or 0, "see to that")
    reason = error.strerror
    return CheckpointError(f"cannot {doing} {path} ({reason}): {remedy} and run the same command again")


def read_manifest(folder: Path) -> Manifest:
    """Read the list of what was written, and verify it by its own CRC.

    Raises:
        DamagedCheckpointError: it is missing (the checkpoint is unfinished), or not as it was written.
        CheckpointError: there is no such folder, it may not be read, or a newer foveal wrote it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint {folder}: list those there are")
    path = folder / _MANIFEST
    if not os.path.lexists(path):
        raise DamagedCheckpointError(f"{folder} has no {_MANIFEST}: it is unfinished or damaged, use another")
    raw = _read_bytes(path, _MANIFEST_LIMIT)
    try:
        return _decode_manifest(folder, raw)
    except ValueError as error:
        raise DamagedCheckpointError(f"{path} is damaged ({error}): use another checkpoint") from error


def read_state(folder: Path, manifest: Manifest | None = None) -> dict[str, Any]:
    """Read the state, verified; ``manifest`` saves reading it again.

    Raises:
        DamagedCheckpointError: the manifest or the state is not as it was written.
        CheckpointError: it cannot be read.
    """
    manifest = manifest or read_manifest(folder)
    try:
        state = strict_json(_read_verified(folder, _STATE, manifest))
        if not isinstance(state, dict):
            raise ValueError("it is not an object")  # noqa: TRY301, TRY004 (one message for both)
    except ValueError as error:
        raise DamagedCheckpointError(
            f"{folder / _STATE} is damaged ({error}): use another checkpoint"
        ) from error
    return state


def read_part(
    folder: Path, part: str, *, names: Collection[str] | None = None, manifest: Manifest | None = None
) -> dict[str, torch.Tensor]:
    """Read one part, or only its tensors of these ``names``, into host memory, verified.

    Raises:
        DamagedCheckpointError: the manifest or the part is not as it was written.
        CheckpointError: it cannot be read, or there is no such part or tensor.
    """
    manifest = manifest or read_manifest(folder)
    name = f"{part}.safetensors"
    summary = manifest.files.get(name)
    if not isinstance(summary, TensorFileSummary):
        known = ", ".join(manifest.parts) or "none"
        raise CheckpointError(f"{folder} has no part {part!r}: ask for one of those it has ({known})")
    return read_tensor_file(folder / name, expected=summary, names=names, member=True)


def read_checkpoint(folder: Path, parts: Collection[str] | None = None) -> StoredCheckpoint:
    """Read the state and these ``parts`` (None: all), verified.

    Raises:
        DamagedCheckpointError: something that was read is not as it was written.
        CheckpointError: it cannot be read, or there is no such checkpoint or part.
    """
    manifest = read_manifest(folder)
    state = read_state(folder, manifest)
    chosen = manifest.parts if parts is None else parts
    return StoredCheckpoint(
        folder, state, {part: read_part(folder, part, manifest=manifest) for part in chosen}
    )


def verify_checkpoint(folder: Path) -> None:
    """Read everything, one part at a time, and keep nothing.

    Raises:
        DamagedCheckpointError: on the first thing that is not as it was written.
        CheckpointError: it cannot be read, or there is no such checkpoint.
    """
    manifest = read_manifest(folder)
    read_state(folder, manifest)
    for part in manifest.parts:
        read_part(folder, part, manifest=manifest)


# ---- writing


def _write_files(temporary: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: bytes) -> None:
    files: dict[str, FileSummary] = {}
    for part, content in tensors.items():
        name = f"{part}.safetensors"
        files[name] = write_tensor_file(temporary / name, content)
        fault_point("checkpoint write")
    write_synced(temporary / _STATE, state)
    files[_STATE] = FileSummary(len(state), crc32c(state))
    write_synced(temporary / _MANIFEST, _encode_manifest(files))


def _encode_state(folder: Path, state: Mapping[str, object]) -> bytes:
    try:
        _check_plain(dict(state), "state")
        content = json.dumps(dict(state), sort_keys=True, indent=2, allow_nan=False).encode("ascii") + b"\n"
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: the state cannot be stored: {error}") from None
    if len(content) > _STATE_LIMIT:
        raise CheckpointError(f"{folder}: the state takes {len(content)} bytes: keep arrays as tensors")
    return content


def _check_plain(value: object, where: str) -> None:
    """Refuse what JSON cannot hold or would silently change, such as keys that are not texts."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: use a str")  # noqa: TRY004 (a value, as JSON sees it)
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: use None, or a finite number")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{where} is a {type(value).__name__}: use a number or a str, or keep it as a tensor"
        )


def _encode_manifest(files: Mapping[str, FileSummary]) -> bytes:
    entries: dict[str, dict[str, object]] = {}
    for name, summary in sorted(files.items()):
        entries[name] = {"size": summary.size, "crc32c": f"{summary.crc32c:08x}"}
        if isinstance(summary, TensorFileSummary):
            entries[name]["tensors"] = {key: f"{crc:08x}" for key, crc in summary.tensors.items()}
    document = {"format": FORMAT, "version": VERSION, "files": entries}
    body = json.dumps(document, indent=2).removesuffix("\n}").encode("ascii") + _CRC_KEY
    return body + f"{crc32c(body):08x}".encode("ascii") + _MANIFEST_END


def _create_folder(folder: Path) -> None:
    if not folder.is_dir():
        _create_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _settle(folder: Path) -> None:
    """Of ``folder`` and what was moved aside for it leave one: the new if it has its name, else the old."""
    aside = _aside(folder)
    if not os.path.lexists(aside):
        return
    if os.path.lexists(folder):
        sync_folder(folder.parent)  # before the old one goes, the new one must have its name for good
        remove_folder(aside)
    else:
        aside.rename(folder)


# ---- reading


def _read_bytes(path: Path, limit: int) -> bytes:
    with open_for_reading(path, member=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DamagedCheckpointError(
                f"{path} has {size} bytes, the limit is {limit}: use another checkpoint"
            )
        return file.read()


def _read_verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    raw, summary = _read_bytes(folder / name, _STATE_LIMIT), manifest.files[name]
    if (len(raw), crc32c(raw)) != (summary.size, summary.crc32c):
        raise ValueError("its bytes are not those that were written")
    return raw


def _decode_manifest(folder: Path, raw: bytes) -> Manifest:
    body, digits, end = raw[:-12], raw[-12:-4], raw[-4:]
    if not body.endswith(_CRC_KEY) or end != _MANIFEST_END or f"{crc32c(body):08x}".encode() != digits:
        raise ValueError("its bytes are not those that were written")
    document = strict_json(raw)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r:.80}")
    if version > VERSION:
        reader = f"this foveal reads up to {VERSION}, it is too old: install a newer one"
        raise CheckpointError(f"{folder} is a checkpoint of version {version}; {reader}")
    files = document.get("files")
    if not isinstance(files, dict) or _STATE not in files or _MANIFEST in files:
        raise ValueError("it does not list the files")
    return Manifest(version, {name: _decode_entry(name, entry) for name, entry in files.items()})


def _decode_entry(name: str, entry: object) -> FileSummary:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"it lists a file {name!r:.80}")
    if not isinstance(entry, dict) or type(entry.get("size")) is not int or entry["size"] < 0:
        raise ValueError(f"it has no size of {name}")
    size, crc = entry["size"], _decode_crc(entry.get("crc32c"))
    if name.endswith(".json"):
        return FileSummary(size, crc)
    tensors = entry.get("tensors")
    if not isinstance(tensors, dict):
        raise ValueError(f"it lists no tensors of {name}")  # noqa: TRY004 (malformed, not a mistaken type)
    return TensorFileSummary(size, crc, {key: _decode_crc(value) for key, value in tensors.items()})


def _decode_crc(text: object) -> int:
    if not isinstance(text, str) or not _CRC_TEXT.fullmatch(text):
        raise ValueError(f"it has the CRC {text!r:.80}")
    return int(text, 16)
