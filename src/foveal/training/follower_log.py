"""What a follower has measured: a file of lines, and the same for TensorBoard; each once in both."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.layout import cannot_write
from foveal.files import sync_folder
from foveal.training.metrics import AppendedFile, events_name, json_line, scalars_event, version_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FOLLOWED = "evaluations-follow.jsonl"
EVENTS = "eval"


class FollowerLog:
    """``evaluations-follow.jsonl`` in a run folder, and an event file in its folder ``eval``.

    An evaluation is written to the event file first; its line then says how long that file is. So what a
    crash leaves is a part of a line, or an event without a line, and opening cuts off both.

    Attributes:
        records: all lines so far; damaged ones are left out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        report: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the logs in the run ``folder``.

        Args:
            folder: it.
            report: told if the event file is shorter than the lines say.
            clock: seconds since 1970.

        Raises:
            RunError: one cannot be written.
        """
        self._clock = clock
        self._path = path = folder / FOLLOWED
        events = folder / EVENTS
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self.records: list[dict[str, Any]] = []
        for line in whole.split(b"\n")[:-1]:
            with suppress(ValueError):
                self.records += filter(_is_record, [json.loads(line)])
        events.mkdir(exist_ok=True)
        length = self.records[-1]["events_bytes"] if self.records else 0
        self._lines = AppendedFile(path, len(whole), report)
        self._events = AppendedFile(events / events_name(events, clock()), length, report)
        if self._events.length() == 0:
            self._events.append(version_event(clock()))
        self._folders: tuple[Path, ...] = (events, folder)

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Log an evaluation, and force it to the disk.

        Args:
            record: ``step``, ``split``, ``weights``, ``accuracy``, and further numbers.

        Returns:
            The line: the record, the time, and how long the event file is.

        Raises:
            CheckpointError: it cannot be written, or not in full: opening the logs again puts that right.
        """
        wall = self._clock()
        scalars = {**record, "precision@1": record["accuracy"]}  # as the classic evaluator called it
        try:
            self._events.append(scalars_event(wall, record["step"], f"{record['split']}/", scalars))
            self._events.sync()
            line = {**record, "events_bytes": self._events.length(), "time": {"wall": wall}}
            self._lines.append(json_line(line))
            self._lines.sync()
            for folder in self._folders:
                sync_folder(folder)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._folders = ()  # the names are there for good
        self.records.append(line)
        return line

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._events.close()


def _is_record(line: object) -> bool:
    """Whether a line has what is relied on."""
    if not isinstance(line, dict):
        return False
    counts, texts = ("step", "events_bytes"), ("split", "weights")
    return (
        all(type(line.get(name)) is int and 0 <= line[name] < 1 << 63 for name in counts)
        and all(isinstance(line.get(name), str) for name in texts)
        and isinstance(line.get("accuracy"), float)
    )
