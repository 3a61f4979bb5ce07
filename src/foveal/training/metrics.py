"""The logs of a run: metrics.jsonl, evaluations.jsonl and TensorBoard events, behind one writer.

A checkpoint records how long each file was when it was saved. Resuming cuts them back to that, so every
step stands in them once. Times and rates are kept apart, under ``time``: all else is equal, bit for bit,
between a run that was interrupted and one that was not.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from foveal.errors import RunError
from foveal.files import sync_folder
from foveal.tensorflow.records import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from io import BufferedWriter
    from pathlib import Path

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
CORRUPT = "corrupt.jsonl"
_EVENTS = "events.out.tfevents"


class AppendedFile:
    """A file that only grows, but for being cut back to a recorded length when it is opened.

    Where there is none it is made when there is something to write.
    """

    def __init__(self, path: Path, length: int | None, report: Callable[[str], None]) -> None:
        """Open ``path`` and cut it to ``length`` bytes; with None, leave what is there.

        Raises:
            RunError: it cannot be written.
        """
        self._path = path
        self._file = self._open() if path.exists() else None
        size = self._file.seek(0, os.SEEK_END) if self._file else 0
        if length is not None and size < length:
            report(f"{path}: {length - size} bytes that were written are gone; going on without them")
        elif length is not None and self._file:
            self._file.truncate(length)
            self._file.seek(length)

    def append(self, data: bytes) -> None:
        """Add to the end; other processes see it at once."""
        self._file = self._file or self._open()
        self._file.write(data)
        self._file.flush()

    def length(self) -> int:
        """In bytes."""
        return self._file.tell() if self._file else 0

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> BufferedWriter:
        try:
            return self._path.open("ab")
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written: {error.strerror}") from None


class RunLog:
    """Writes what training and evaluation measure into the files of a run folder.

    Attributes:
        fresh: whether nothing was in the events when they were opened.
    """

    def __init__(
        self,
        folder: Path,
        lengths: Mapping[str, int] | None,
        *,
        report: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the logs of ``folder``, cut to ``lengths``.

        Args:
            folder: the run folder.
            lengths: bytes by file name; a file not named starts anew. None leaves all as they are.
            report: told if a file is shorter than that.
            clock: seconds since 1970.
        """
        self._clock = clock
        self._folder = folder
        names = (METRICS, EVALUATIONS, CORRUPT, events_name(folder, clock()))
        self._files = {
            name: AppendedFile(folder / name, None if lengths is None else lengths.get(name, 0), report)
            for name in names
        }
        self._events = self._files[names[-1]]
        self.fresh = self._events.length() == 0
        if self.fresh:
            self._events.append(version_event(clock()))

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Log a training step: ``step``, numbers, and under ``time`` what differs from run to run."""
        self._events.append(scalars_event(self._clock(), record["step"], "", record))
        self._json(METRICS, record)

    def summaries(self, step: int, values: Collection[Any]) -> None:
        """Log ``Summary.Value`` messages of a training step for TensorBoard, if there are any."""
        from tensorboardX.proto.summary_pb2 import Summary

        if values:
            self._event(step, {"summary": Summary(value=values)})

    def graph(self, step: int, graph: bytes) -> None:
        """Log the network: a serialised ``GraphDef``."""
        self._event(step, {"graph_def": graph})

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Log an evaluation: ``step``, ``split``, numbers, and ``time``."""
        self._events.append(scalars_event(self._clock(), record["step"], f"{record['split']}/", record))
        self._json(EVALUATIONS, record)  # last: a complete line here means that all was logged

    def corrupt(self, record: Mapping[str, Any]) -> None:
        """Log a damaged record: ``part``, ``key``, ``reason``."""
        self._json(CORRUPT, record)

    def lengths(self) -> dict[str, int]:
        """The length of each log in bytes, for a checkpoint to record."""
        return {name: file.length() for name, file in self._files.items()}

    def sync(self) -> None:
        """Force all logs, and their names, to the disk; another thread may write meanwhile."""
        for file in self._files.values():
            file.sync()
        sync_folder(self._folder)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _event(self, step: int, content: Mapping[str, Any]) -> None:
        self._events.append(_event(self._clock(), step, content))

    def _json(self, name: str, record: Mapping[str, Any]) -> None:
        self._files[name].append(json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON."""
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def events_name(folder: Path, now: float) -> str:
    """The name of the one event file of a folder: that of the one that is there, or a new one."""
    found = sorted(path.name for path in folder.glob(f"{_EVENTS}.*"))
    return found[0] if found else f"{_EVENTS}.{int(now)}.foveal"


def version_event(wall: float) -> bytes:
    """The record that an event file begins with; ``wall`` is in seconds since 1970."""
    return _event(wall, None, {"file_version": "brain.Event:2"})


def scalars_event(wall: float, step: int, prefix: str, record: Mapping[str, Any]) -> bytes:
    """The floating-point numbers of a record for TensorBoard, their names after ``prefix``."""
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in _flatten(prefix, record)]
    return _event(wall, step, {"summary": Summary(value=scalars)})


def _event(wall: float, step: int | None, content: Mapping[str, Any]) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    return frame(Event(wall_time=wall, step=step, **content).SerializeToString())


def _flatten(prefix: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The floating-point numbers of nested dictionaries, as ``a/b``; the wall time is the event's own."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{name}/", value)
        elif isinstance(value, float) and name != "wall":
            yield f"{prefix}{name}", value
