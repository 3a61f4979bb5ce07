"""The checkpoints of a run: save, find the newest good one, quarantine the damaged, delete what is old."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.layout import StoredCheckpoint, read_checkpoint, read_state, write_checkpoint
from foveal.checkpoints.retention import Saved, best, newest
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.files import remove_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import torch

_NAME = re.compile(r"step-(\d{9,})")


class CheckpointManager:
    """The folder ``checkpoints/`` of a run.

    Attributes:
        folder: where the checkpoints are.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda _text: None) -> None:
        """``report`` is told in a line of each checkpoint that is found damaged."""
        self.folder = folder
        self._report = report
        self._accuracy: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order; whatever else lies in the folder is ignored."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of ``step``."""
        return self.folder / f"step-{step:09d}"

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, object]
    ) -> None:
        """Write a checkpoint; one of the same step is left as it is.

        Raises:
            CheckpointError: it cannot be written; those saved before are as they were.
        """
        if step not in self.steps():
            write_checkpoint(self.path(step), tensors, state)

    def load(
        self, which: int | str = "latest", parts: Collection[str] | None = None
    ) -> StoredCheckpoint | None:
        """Read and verify a checkpoint; of ``latest`` and ``best``, the next in line when one is damaged.

        Args:
            which: a step, ``"latest"`` or ``"best"`` (highest validation accuracy).
            parts: the tensor files to read, or all.

        Returns:
            None where there is no checkpoint at all.

        Raises:
            CheckpointError: there is none of that step, or none was rated; or it cannot be used.
            DamagedCheckpointError: the one of the step asked for is damaged.
        """
        if isinstance(which, int):
            return self._load_step(which, parts)
        while steps := self._candidates(which):
            try:
                return read_checkpoint(self.path(steps[0]), parts)
            except DamagedCheckpointError as error:
                if self.path(steps[0]).exists():  # else its trainer deleted it just now
                    self._quarantine(steps[0], error)
            except CheckpointError:
                if self.path(steps[0]).exists():
                    raise
        return None

    def prune(self, keep_last: int, keep_best: int) -> None:
        """Delete all but the newest ``keep_last`` and the best ``keep_best``."""
        saved = self._saved()
        kept = newest(saved, keep_last) | set(best(saved, keep_best))
        for one in saved:
            if one.step not in kept:
                remove_folder(self.path(one.step))

    def remove_leftovers(self) -> None:
        """Delete what a crash left of a save or a deletion that was under way."""
        for pattern in (".step-*.tmp", ".step-*.deleted"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _load_step(self, step: int, parts: Collection[str] | None) -> StoredCheckpoint:
        steps = self.steps()
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; there are: {known}")
        return read_checkpoint(self.path(step), parts)

    def _candidates(self, which: str) -> list[int]:
        if which == "latest":
            return self.steps()[::-1]
        saved = self._saved()
        rated = best(saved, len(saved))
        if saved and not rated:
            raise CheckpointError(
                f"{self.folder}: no checkpoint was rated on validation data, so none is the best: "
                "use latest, or train with data.validation"
            )
        return rated

    def _saved(self) -> list[Saved]:
        for step in self.steps():
            if step not in self._accuracy:
                self._accuracy[step] = self._read_accuracy(step)
        return [Saved(step, self._accuracy[step]) for step in self.steps()]

    def _read_accuracy(self, step: int) -> float | None:
        try:
            validation: Any = read_state(self.path(step)).get("validation")
        except CheckpointError:
            return None  # whoever loads it will say so
        return float(validation["accuracy"]) if validation else None

    def _quarantine(self, step: int, error: DamagedCheckpointError) -> None:
        """Move a damaged checkpoint out of the way."""
        damaged = self.folder / "damaged"
        target = damaged / self.path(step).name
        for number in range(1, 1000):
            if not target.exists():
                break
            target = damaged / f"{self.path(step).name}.{number}"
        try:
            damaged.mkdir(exist_ok=True)
            self.path(step).rename(target)
        except OSError as reason:
            raise DamagedCheckpointError(
                f"{error}; it could not be moved to {damaged} ({reason.strerror}): remove it yourself"
            ) from error
        with suppress(KeyError):
            del self._accuracy[step]
        self._report(f"{error}; moved to {target}")
