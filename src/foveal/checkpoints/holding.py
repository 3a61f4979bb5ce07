"""Checkpoints that a follower has yet to read: held by hard links, whatever the trainer deletes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from foveal.files import discard, identity, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

GRACE = 600.0
"""Seconds after its last sign of life for which a follower that died is expected back."""

_NAME = re.compile(r"step-[0-9]{9,18}")
_MARK = re.compile(r"\.(step-[0-9]{9,18})\.read")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


class Holding:
    """The folder ``.follow`` in ``checkpoints/``.

        step-000001000/        hard links to the files of a checkpoint that is yet to be read
        .step-000001000.read   it was read: the trainer may delete it, and need not hand it over
        .alive                 touched by the follower while it lives

    The follower puts in what it sees; the trainer what it is about to delete, while there is a follower, or
    one that died less than ``GRACE`` ago is expected back. So none is missed, however fast checkpoints come
    and go, and a follower that never comes back costs no more than that. Only the follower takes out.

    Attributes:
        folder: it.
    """

    def __init__(
        self, checkpoints: Path, owner: Literal["trainer", "follower"], report: Callable[[str], None]
    ) -> None:
        """Nothing is made yet.

        Args:
            checkpoints: the folder that the trainer saves in.
            owner: who puts in; each has temporary names of its own.
            report: told once, in a line, if files are copied as links cannot be made.
        """
        self.folder = checkpoints / ".follow"
        self._owner = owner
        self._report = report
        self._copies = False

    @property
    def awaited(self) -> bool:
        """Whether a follower reads here, or is expected back."""
        try:
            return abs(time.time() - self._sign.stat().st_mtime) < GRACE
        except OSError:
            return False

    def open(self) -> None:
        """Begin to follow, or go on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()
        self._sign.touch()

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            FileNotFoundError: somebody has moved the folder away.
        """
        os.utime(self._sign)

    def close(self) -> None:
        """Follow no more: what is still held stays, and nothing else."""
        self._sign.unlink(missing_ok=True)
        self.forget(())
        with suppress(OSError):  # something is held
            self.folder.rmdir()

    def names(self) -> list[str]:
        """The folders that are held, in the order of their steps."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
        return sorted(names, key=lambda name: int(name.removeprefix("step-")))

    def take(self, source: Path, name: str) -> bool:
        """Hold a checkpoint, unless it is held or read already.

        Args:
            source: its folder; it may be renamed or deleted meanwhile, by renaming first.
            name: what it is called when it is not being replaced.

        Returns:
            False if the folder went away meanwhile, or another took its place: look again.

        Raises:
            OSError: it can be neither linked nor copied.
        """
        held = self.folder / name
        if os.path.lexists(held) or os.path.lexists(self._mark(name)):
            return True
        temporary = self.folder / f".{name}.{self._owner}.tmp"
        discard(temporary)
        before = identity(source)
        temporary.mkdir()
        with suppress(FileNotFoundError), os.scandir(source) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    self._link(entry.path, temporary / entry.name)
        if before is None or identity(source) != before:  # files may be missing, or those of two checkpoints
            discard(temporary)
            return False
        sync_folder(temporary)
        try:
            temporary.rename(held)
        except OSError:
            discard(temporary)
            if not os.path.lexists(held):  # else the other side was first
                raise
        sync_folder(self.folder)
        return True

    def hand_over(self, source: Path) -> bool:
        """What the trainer does before it deletes a checkpoint; whether it may.

        If it cannot make links here (the follower may be another user), the checkpoint must stay as long as
        there is a follower that has not taken it.
        """
        try:
            return not self.awaited or self.take(source, source.name)
        except OSError:
            return not self.awaited

    def mark_read(self, name: str) -> None:
        """Let go of a checkpoint whose evaluation is on the disk."""
        self._mark(name).touch()
        discard(self.folder / name)

    def drop(self, name: str) -> None:
        """Let go of a checkpoint that cannot be read."""
        discard(self.folder / name)

    def forget(self, names: Collection[str]) -> None:
        """Remove the marks of those that the trainer has deleted: all but these ``names``."""
        for path in self.folder.glob(".step-*.read"):
            found = _MARK.fullmatch(path.name)
            if found and found[1] not in names:
                path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what the owner left when it died."""
        for path in self.folder.glob(f".step-*.{self._owner}.tmp"):
            with suppress(OSError):
                discard(path)

    @property
    def _sign(self) -> Path:
        return self.folder / ".alive"

    def _mark(self, name: str) -> Path:
        return self.folder / f".{name}.read"

    def _link(self, source: str, target: Path) -> None:
        if not self._copies:
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._copies = True
                self._report(f"{self.folder}: no hard links ({error.strerror}): copying checkpoints instead")
        if self._copies:
            shutil.copy2(source, target, follow_symlinks=False)
            with target.open("rb") as file:
                os.fsync(file.fileno())
