"""The file ``checkpoint`` beside TensorFlow's checkpoints: which of them is the latest, and which there are.

Source: TensorFlow's ``python/training/checkpoint_state.proto``, in protobuf's text format, and
``python/checkpoint/checkpoint_management.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, text_format  # type: ignore[import-untyped]  # it has no stubs

from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError, DamagedCheckpointError, UsageError
from foveal.files import write_atomically
from foveal.tensorflow.checkpoint_messages import TEXT, define
from foveal.tensorflow.v1 import files_of

if TYPE_CHECKING:
    from typing import NoReturn

_LIMIT = 1 << 20  # bytes: ten thousand paths
_DOUBLE: Final[int] = descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE


@dataclass(frozen=True)
class CheckpointState:
    """Which checkpoints a folder has.

    Attributes:
        latest: the prefix of the latest: of a V1 checkpoint its file, or the pattern of its files.
        paths: the prefixes of all, from the oldest to the newest.
        timestamps: seconds since 1970 at which each was made; empty where that is not known.
        last_preserved: the time of the last one that is kept for good; None where that is not known.
    """

    latest: Path
    paths: tuple[Path, ...]
    timestamps: tuple[float, ...] = ()
    last_preserved: float | None = None


def read_state(folder: Path | str, name: str = "checkpoint") -> CheckpointState:
    """Read the state file of a folder.

    Relative paths begin at the folder. An absolute one where there is no checkpoint, as in a run that was
    copied from elsewhere, is taken for the one of that name in the folder, whether there is one or not.

    Args:
        folder: where the checkpoints are.
        name: that of the state file.

    Returns:
        The state; the latest is always one of its paths.

    Raises:
        DamagedCheckpointError: it is no state file, or names no latest checkpoint.
        CheckpointError: it is missing, cannot be read, or is larger than 1 MiB.
    """
    path = Path(folder) / name
    message = _parse(path, _read(path))
    stored = [*message.all_model_checkpoint_paths]
    if message.model_checkpoint_path not in stored:
        stored.append(message.model_checkpoint_path)
    found = {each: _find(path, each) for each in stored}
    times = tuple(message.all_model_checkpoint_timestamps)
    return CheckpointState(
        latest=found[message.model_checkpoint_path],
        paths=tuple(found[each] for each in stored),
        timestamps=times if len(times) == len(stored) else (),  # others TensorFlow does not trust either
        last_preserved=message.last_preserved_timestamp or None,
    )


def write_state(folder: Path | str, state: CheckpointState, name: str = "checkpoint") -> None:
    """Replace the state file of a folder: a crash leaves the old one or the new.

    Paths within the folder are stored relative to it, so that it can be moved; others as absolute ones.

    Args:
        folder: where the checkpoints are.
        state: what to store; a latest that is not one of the paths becomes the newest of them.
        name: that of the state file.

    Raises:
        UsageError: there are timestamps, but not one for each path, or a path is no text.
        CheckpointError: the file cannot be written.
    """
    folder, paths = Path(folder), [*state.paths]
    if state.latest not in paths:
        paths.append(state.latest)
    if state.timestamps and len(state.timestamps) != len(paths):
        raise UsageError(f"{len(state.timestamps)} timestamps for {len(paths)} checkpoints: each has one")
    message = _Message(all_model_checkpoint_timestamps=state.timestamps)
    try:
        message.model_checkpoint_path = _stored(state.latest, folder)
        message.all_model_checkpoint_paths.extend(_stored(path, folder) for path in paths)
    except UnicodeEncodeError:
        raise UsageError(f"the path of a checkpoint in {folder} is not UTF-8: rename it") from None
    if state.last_preserved is not None:
        message.last_preserved_timestamp = state.last_preserved
    path = folder / name
    try:
        write_atomically(path, text_format.MessageToString(message).encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


(_Message,) = define(
    "foveal/tensorflow/checkpoint_state.proto",
    {
        "CheckpointState": [
            (1, "model_checkpoint_path", TEXT),
            (2, "*all_model_checkpoint_paths", TEXT),
            (3, "*all_model_checkpoint_timestamps", _DOUBLE),
            (4, "last_preserved_timestamp", _DOUBLE),
        ]
    },
)


def _read(path: Path) -> bytes:
    with open_for_reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LIMIT:
            raise CheckpointError(f"{path}: {size} bytes are too many for a state file: at most {_LIMIT}")
        return file.read(size)


def _parse(path: Path, raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _damaged(path, error.start, "it is not UTF-8")
    try:
        message = text_format.Parse(text, _Message())
    except text_format.ParseError as error:
        line, column = (error.GetLine() or 1) - 1, (error.GetColumn() or 1) - 1
        before = [*text.split("\n")[:line], text.split("\n")[line][:column]]
        offset = len("\n".join(before).encode())
        reason = str(error).encode("unicode_escape").decode()  # it quotes the file: keep to one clean line
        _damaged(path, offset, f"it is no CheckpointState in text format: {reason[:200]}")
    if not message.model_checkpoint_path:
        _damaged(path, len(raw), "it ends without naming the latest checkpoint")
    return message


def _find(path: Path, stored: str) -> Path:
    """Where the checkpoint is that a state file names."""
    if "\0" in stored or PureWindowsPath(stored).name in {"", ".."}:
        raise DamagedCheckpointError(
            f"{path} names the checkpoint {stored[:200]!r}: no file can be called so"
        )
    named = path.parent / stored  # an absolute one stays as it is
    foreign = PurePosixPath(stored).is_absolute() or PureWindowsPath(stored).is_absolute()
    return path.parent / PureWindowsPath(stored).name if foreign and not is_checkpoint(named) else named


def is_checkpoint(prefix: Path) -> bool:
    """Whether there is a checkpoint of a prefix: V2, V1 in one file, or, for their pattern, V1 in several."""
    try:
        files = prefix.with_name(f"{prefix.name}.index"), next(files_of(prefix), prefix)
        return any(file.is_file() for file in files)
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


def _stored(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _damaged(path: Path, offset: int, problem: str) -> NoReturn:
    raise DamagedCheckpointError(f"{path}, at byte {offset}: {problem}")
