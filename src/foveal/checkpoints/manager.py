"""The checkpoints of a run: save, find the newest good one, quarantine the damaged, delete what is old."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, Any, TypeVar

from foveal.checkpoints.holding import Holding
from foveal.checkpoints.layout import (
    StoredCheckpoint,
    cannot_write,
    read_checkpoint,
    read_state,
    recover_replaced,
    verify_checkpoint,
    write_checkpoint,
)
from foveal.checkpoints.retention import Saved, retained
from foveal.checkpoints.run_state import check_state, saved_from
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.files import discard, identity, remove_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import torch

    from foveal.checkpoints.retention import Policy

_Result = TypeVar("_Result")

_STEP = r"step-([0-9]{9}|[1-9][0-9]{9,17})"
_NAME = re.compile(rf"{_STEP}|\.{_STEP}\.replaced")
_MARKER = re.compile(rf"\.{_STEP}\.keep")


class CheckpointManager:
    """The folder ``checkpoints/`` of a run.

    One process saves and prunes; any number may load, keep and release meanwhile.

    Attributes:
        folder: where the checkpoints are.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda _text: None) -> None:
        """``report`` is told in a line of each checkpoint that is found damaged."""
        self.folder = folder
        self._report = report
        self._holding = Holding(folder, "trainer", report)
        self._seen: dict[int, Saved] = {}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order; whatever else lies in the folder is ignored."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:  # one look at all: no folder is missed that is just renamed
            names = [_NAME.fullmatch(entry.name) for entry in entries if entry.is_dir()]
        return sorted({int(name[1] or name[2]) for name in names if name})

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of ``step``."""
        return self.folder / f"step-{step:09d}"

    def located(self, step: int) -> Path:
        """The folder to read the checkpoint of ``step`` from, which is not verified here.

        Raises:
            DamagedCheckpointError: a link is there, which may lead anywhere.
        """
        folder = self._place(step)
        if folder.is_symlink():
            raise DamagedCheckpointError(f"{folder} is a link, not a folder: use another checkpoint")
        return folder

    def candidates(self, which: int | str) -> list[int]:
        """The steps that ``which`` (a step, ``"latest"`` or ``"best"``) can mean, the first choice first.

        Raises:
            CheckpointError: there is none of that step, or none was rated.
        """
        steps = self.steps()
        if isinstance(which, int):
            if which not in steps:
                raise self._missing(which)
            return [which]
        if which == "latest":
            return steps[::-1]
        rated = [(-one.score, one.step) for one in self.saved() if one.score is not None]
        if steps and not rated:
            raise CheckpointError(
                f"{self.folder}: no checkpoint was rated on validation data, so none is the best: "
                "use latest, or train with data.validation"
            )
        return [step for _, step in sorted(rated)]

    def saved(self) -> list[Saved]:
        """What policies ask about each checkpoint, in order; those that cannot be read are left out."""
        found = []
        for step in self.steps():
            if step not in self._seen:
                with suppress(CheckpointError):  # whoever loads it will say so
                    self._seen[step] = saved_from(step, self.state(step))
            if step in self._seen:
                found.append(self._seen[step])
        return found

    def state(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint, verified, without its tensors.

        Raises:
            DamagedCheckpointError: it is damaged, or that of another step.
            CheckpointError: it cannot be read.
        """

        def read(folder: Path) -> dict[str, Any]:
            state = read_state(folder)
            check_state(folder, state, step)
            return state

        return self._settled(step, read)

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, object]
    ) -> None:
        """Write a checkpoint; it takes the place of one of the same step only when all of it is on the disk.

        Raises:
            CheckpointError: it cannot be written; those saved before are as they were.
        """
        write_checkpoint(self.path(step), tensors, state, replace=True)
        self._seen.pop(step, None)

    def load(
        self, which: int | str = "latest", parts: Collection[str] | None = None
    ) -> StoredCheckpoint | None:
        """Read and verify a checkpoint; of ``latest`` and ``best``, the next in line when one is damaged.

        Args:
            which: a step, ``"latest"`` or ``"best"`` (highest score on the validation data).
            parts: the tensor files to read, or all.

        Returns:
            None where there is no checkpoint at all.

        Raises:
            CheckpointError: there is none of that step, or none was rated; or it cannot be used.
            DamagedCheckpointError: the one of the step asked for is damaged.
        """
        if isinstance(which, int):
            return self._load_step(which, parts)
        while steps := self.candidates(which):
            try:
                return self._read(steps[0], parts)
            except DamagedCheckpointError as error:
                self._quarantine(steps[0], error)
            except CheckpointError:
                if self._place(steps[0]).exists():  # else its trainer deleted it just now
                    raise
        return None

    def verify(self) -> dict[int, str | None]:
        """Read every checkpoint in full: per step None, or what is wrong with it. Nothing is moved."""
        problems = {step: self.problem(step) for step in self.steps()}
        return {step: problem for step, problem in problems.items() if self._place(step).exists()}

    def problem(self, step: int) -> str | None:
        """Read the checkpoint of ``step`` in full: None, or what is wrong with it."""
        try:
            self._settled(step, verify_checkpoint)
            self.state(step)
        except CheckpointError as error:
            return str(error)
        return None

    def prune(self, policies: Sequence[Policy]) -> None:
        """Delete what neither a policy nor a person keeps; what is damaged is neither counted nor deleted.

        What a follower has yet to read is handed to it first (``holding.py``).

        Args:
            policies: what to keep; without any, that is everything.

        Raises:
            CheckpointError: one could not be deleted.
        """
        saved = self.saved() if policies else []
        kept = retained(saved, policies).keys() | self.kept_by_name()
        for one in saved:
            if one.step not in kept:
                self._delete(one.step)

    def kept_by_name(self) -> set[int]:
        """The steps that were marked to be kept."""
        if not self.folder.is_dir():
            return set()
        names = (_MARKER.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(name[1]) for name in names if name}

    def keep(self, step: int) -> None:
        """Mark a checkpoint to be kept whatever the policies say; also while another process prunes.

        The file ``.step-000000100.keep`` beside the folder is the mark. Pruning renames a folder, looks for
        the mark, and only then deletes: so a folder that is still there after the mark was made stays.

        Raises:
            CheckpointError: there is no such checkpoint, or it cannot be marked.
        """
        if step not in self.steps():
            raise self._missing(step)
        marker = self._marker(step)
        try:
            with suppress(FileExistsError):
                marker.open("xb").close()  # does not follow a link
            sync_folder(self.folder)
            lost = not self._place(step).exists()
            if lost:
                marker.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(marker, error) from error
        if lost:
            raise CheckpointError(f"{self.path(step)} was just being deleted: keep another")

    def release(self, step: int) -> None:
        """Take the mark away again: the policies decide.

        Raises:
            CheckpointError: it is not marked, or the mark cannot be removed.
        """
        marker = self._marker(step)
        try:
            marker.unlink()
            sync_folder(self.folder)
        except FileNotFoundError:
            known = ", ".join(map(str, sorted(self.kept_by_name()))) or "none"
            raise CheckpointError(
                f"{self.folder}: step {step} is not kept by name; those that are: {known}"
            ) from None
        except OSError as error:
            raise cannot_write(marker, error) from error

    def remove_leftovers(self) -> None:
        """Undo, or finish, what a crash left of a save, a replacement or a deletion; the trainer alone may.

        Raises:
            CheckpointError: a checkpoint could not be put back.
        """
        if not self.folder.is_dir():
            return
        self._holding.remove_leftovers()
        recover_replaced(self.folder)
        for path in self.folder.glob(".step-*.deleted"):
            self._put_back(path)
        for pattern in (".step-*.tmp", ".step-*.deleted"):
            for path in self.folder.glob(pattern):
                with suppress(OSError):
                    discard(path)

    def _load_step(self, step: int, parts: Collection[str] | None) -> StoredCheckpoint:
        try:
            return self._read(step, parts)
        except CheckpointError:
            if self._place(step).exists():
                raise
            raise self._missing(step) from None

    def _missing(self, step: int) -> CheckpointError:
        known = ", ".join(map(str, self.steps())) or "none"
        return CheckpointError(f"{self.folder}: no checkpoint of step {step}; there are: {known}")

    def _read(self, step: int, parts: Collection[str] | None) -> StoredCheckpoint:
        def read(folder: Path) -> StoredCheckpoint:
            stored = read_checkpoint(folder, parts)
            check_state(folder, stored.state, step)
            return stored

        return self._settled(step, read)

    def _settled(self, step: int, read: Callable[[Path], _Result]) -> _Result:
        """What ``read`` gives; it is asked again if it failed while the folder was moved or replaced."""
        while True:
            before = identity(self.path(step))
            try:
                return read(self.located(step))
            except CheckpointError:
                if identity(self.path(step)) == before:
                    raise

    def _place(self, step: int) -> Path:
        """Where a checkpoint is: while it is being replaced, that is not under its own name for a moment."""
        folder = self.path(step)
        replaced = folder.with_name(f".{folder.name}.replaced")
        return replaced if not os.path.lexists(folder) and replaced.is_dir() else folder

    def _marker(self, step: int) -> Path:
        return self.folder / f".{self.path(step).name}.keep"

    def _delete(self, step: int) -> None:
        """Delete a checkpoint, unless somebody marks it just now."""
        folder = self.path(step)
        if not self._holding.hand_over(folder):
            return
        try:
            remove_folder(folder, spared=lambda: os.path.lexists(self._marker(step)))
        except OSError as error:
            raise cannot_write(folder, error, "delete") from error

    def _put_back(self, doomed: Path) -> None:
        """Rename back what was marked just before it was to be deleted, if nothing of it was deleted yet."""
        folder = doomed.with_name(doomed.name.removeprefix(".").removesuffix(".deleted"))
        if os.path.lexists(folder) or not os.path.lexists(folder.with_name(f".{folder.name}.keep")):
            return
        with suppress(DamagedCheckpointError):
            verify_checkpoint(doomed)
            try:
                doomed.rename(folder)
            except OSError as error:
                raise cannot_write(folder, error) from error

    def _quarantine(self, step: int, error: DamagedCheckpointError) -> None:
        """Move a damaged checkpoint out of the way."""
        folder, damaged = self._place(step), self.folder / "damaged"
        if not os.path.lexists(folder):  # its trainer deleted it just now
            return
        names = chain([self.path(step).name], (f"{self.path(step).name}.{number}" for number in count(1)))
        target = next(damaged / name for name in names if not os.path.lexists(damaged / name))
        try:
            if damaged.is_symlink():
                raise OSError(errno.ELOOP, "it is a link")  # noqa: TRY301 - one message for all that can fail
            damaged.mkdir(exist_ok=True)
            folder.rename(target)
        except OSError as reason:
            raise DamagedCheckpointError(
                f"{error}; it could not be moved to {damaged} ({reason.strerror}): remove it yourself"
            ) from error
        self._seen.pop(step, None)
        self._report(f"{error}; moved to {target}")
