"""Opening and parsing files that may be damaged or hostile: every failure is a named error."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foveal.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path
    from typing import NoReturn

# How a file that was written as a regular one may fail to open or to read: it, or the disk, has been changed.
_NOT_AS_WRITTEN = (errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENXIO)


@contextmanager
def open_for_reading(path: Path, *, member: bool = False) -> Iterator[FileIO]:
    """Open a regular file, unbuffered; failures to open it, and to read it in the body, are named errors.

    Args:
        path: the file.
        member: it belongs to a checkpoint folder: to be missing, or a link, is damage.

    Raises:
        DamagedCheckpointError: it is not a regular file, the disk cannot return it, or a member is missing.
        CheckpointError: it is missing, or may not be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # to open a pipe without a writer would wait for ever
    if member:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedCheckpointError(f"{path} is not a regular file: use another copy")
            yield file
    except OSError as error:
        # A folder that vanishes as a whole was deleted by someone; one that lacks a file is damaged.
        lost = member and error.errno == errno.ENOENT and path.parent.is_dir()
        kind = DamagedCheckpointError if lost or error.errno in _NOT_AS_WRITTEN else CheckpointError
        raise kind(f"cannot read {path}: {error.strerror}") from error


def strict_json(raw: bytes) -> Any:
    """Parse JSON as the standard has it: UTF-8, each key once, finite numbers only.

    Raises:
        ValueError: it is anything else, or nested too deep; the text says what, and where.
    """
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refused_number,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r:.200} occurs twice")
    return result


def _refused_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value
