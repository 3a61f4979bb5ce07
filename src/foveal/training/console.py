"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Mapping


class Console:
    """Reports a run; :class:`Silent` is the one that does not."""

    def __init__(self) -> None:
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._total = 0

    def start(self, step: int, total: int) -> None:
        """Training begins at ``step`` of ``total``."""
        self._total = total
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("left  {task.fields[status]}"),
                console=self._console,
                transient=True,
            )
            self._progress.add_task("train", total=total, completed=step, status="")
            self._progress.start()

    def step(self, step: int) -> None:
        """One step is done; moves the bar and nothing else."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """A logged step."""
        step = record["step"]
        if "loss" in record:
            measured = record["time"]
            rate = f"{measured['examples_per_second']:,.0f} examples/s"
            loss = f"loss {record['loss']:.4f}"
            if "losses" in record:
                loss += f"  total {record['losses']['total']:.4f}"
            status = f"{loss}  {rate}  {measured['seconds_per_batch'] * 1000:.1f} ms/batch"
            if self._progress is not None:
                self._progress.update(self._progress.task_ids[0], completed=step, status=status)
            else:
                left = (self._total - step) * measured["seconds_per_batch"]
                self.message(f"step {step}/{self._total}  {status}  {_duration(left)} left")
        for name, summary in record.get("activations", {}).items():
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in summary.items())
            self.message(f"step {step}  {name}: {numbers}")

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """An evaluation."""
        self.message(evaluation_line(record))

    def message(self, text: str) -> None:
        """Any other line."""
        self._console.print(escape(text))

    def stop(self) -> None:
        """Training has ended, for whatever reason."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Silent(Console):
    """Says nothing."""

    def start(self, step: int, total: int) -> None:
        """Nothing to show."""

    def message(self, text: str) -> None:
        """Nothing to say."""


def evaluation_line(record: Mapping[str, Any]) -> str:
    """An evaluation, from its record."""
    return (
        f"step {record['step']}  {record['split']} accuracy {record['accuracy']:.2%}"
        f"  loss {record['loss']:.4f}  ({record['examples']:,} examples, {record['weights']} weights)"
    )


def _duration(seconds: float) -> str:
    return time.strftime("%H:%M:%S" if seconds >= 3600 else "%M:%S", time.gmtime(seconds))
