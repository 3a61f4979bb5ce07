"""How a download, and other work that takes long, looks in a terminal, and in a log."""

from __future__ import annotations

import re

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_WORK = re.compile(r"[a-z]+ing( |$)")  # begins what is done; all other names are files that are fetched


class DownloadBar:
    """A ``ProgressReporter`` on standard error: a bar that vanishes when done; in a log, a line each.

    A name that begins with what is done ("indexing photos") is shown as it is, with the share that is done,
    whatever that is counted in; any other is the name of a file that is downloaded.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._name: str | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        """Show ``name``; the same name again sets the bar back to ``done_bytes``."""
        begun, self._name = name == self._name, name
        if not self._console.is_interactive:
            if not begun:
                line = _line(name, total_bytes, done_bytes)
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                *_columns(name),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                redirect_stdout=False,  # results go where they were sent
            )
            self._task = self._bar.add_task(name, total=total_bytes)
            self._bar.start()
        self._bar.reset(self._task, total=total_bytes, completed=done_bytes, description=name)

    def advance(self, n: int) -> None:
        """Move the bar by ``n`` of the total."""
        if self._bar is not None:
            self._bar.advance(self._task, n)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._name = None


def _line(name: str, total_bytes: int, done_bytes: int) -> str:
    """What is logged when something begins."""
    if _WORK.match(name):
        return name
    here = f", {decimal(done_bytes)} of it here" if done_bytes else ""
    return f"downloading {name} ({decimal(total_bytes)}{here})"


def _columns(name: str) -> tuple[ProgressColumn, ...]:
    """How far it is: in bytes and bytes a second where those are known to be counted."""
    return (TaskProgressColumn(),) if _WORK.match(name) else (DownloadColumn(), TransferSpeedColumn())
