"""The folder of a run: its recipe, its checkpoints, its logs."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.run_state import RUN_FIELDS, check_state
from foveal.errors import RunError
from foveal.files import exclusive_lock, write_atomically
from foveal.recipe import Recipe, differences, from_toml, to_toml

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from foveal.checkpoints.layout import StoredCheckpoint

_RECIPE = "recipe.toml"
_AUTO = ("precision", "compile", "device", "threads", "loader_threads")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        path: the folder.
        report: told, in a line each, what was found and done.
    """

    path: Path
    report: Callable[[str], None] = lambda _text: None

    @property
    def checkpoints(self) -> CheckpointManager:
        """Its checkpoints."""
        return CheckpointManager(self.path / "checkpoints", self.report)

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / _RECIPE).is_file()

    def recipe(self) -> Recipe:
        """The complete recipe of the run.

        Raises:
            RunError: there is no run here.
        """
        if not self.exists():
            what = "has no recipe.toml" if self.path.is_dir() else "does not exist"
            what = "is a file" if self.path.is_file() else what
            raise RunError(f"{self.path}: not a run folder: it {what}; foveal train makes one")
        return from_toml(self.path / _RECIPE)

    def check(self) -> None:
        """Whether a run can be begun or continued here; changes nothing.

        Raises:
            RunError: it is a file, holds something else than a run, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: name a folder with --run")
        if not self.path.is_dir():
            return
        if not self.exists() and any(path.name != ".lock" for path in self.path.iterdir()):
            raise RunError(f"{self.path} is not empty and holds no run: name another folder with --run")
        if self.checkpoints.folder.exists() and not self.checkpoints.folder.is_dir():
            raise RunError(f"{self.checkpoints.folder} is a file: move it away")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise RunError(
                f"{self.path} cannot be written to: change its permissions, or choose another --run"
            )

    def create(self, *, fresh: bool) -> None:
        """Make the folder; with ``fresh``, an old run is moved aside first.

        Raises:
            RunError: it cannot be made, or the old run is being trained.
        """
        if fresh and self.exists():
            stamp = f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
            endings = chain([""], (f".{number}" for number in count(1)))
            names = (self.path.with_name(stamp + ending) for ending in endings)
            aside = next(name for name in names if not name.exists())
            with self.lock():
                self.path.rename(aside)
            self.report(f"the old run is now {aside}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made: {error.strerror}; choose another --run") from None

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from training here; released by the system if this one dies."""
        return exclusive_lock(
            self.path / ".lock",
            f"{self.path}: another process is training in this folder; wait for it, stop it, or choose "
            "another --run",
        )

    def following_lock(self) -> AbstractContextManager[None]:
        """Keep other processes from following this run; released by the system if this one dies."""
        return exclusive_lock(
            self.path / ".follow.lock",
            f"{self.path}: another process is following this run; wait for it, or stop it",
        )

    def adopt(self, recipe: Recipe) -> Recipe:
        """The recipe to go on with: ``recipe``, with what was resolved when the run was begun.

        Raises:
            RunError: it would learn something else than the run did; each differing field is named.
        """
        stored = self.recipe()
        settled_data: dict[str, object] = {}
        settled: dict[str, object] = {
            key: getattr(stored, key) for key in _AUTO if getattr(recipe, key) == "auto"
        }
        if recipe.data.path is None:
            settled_data["path"] = stored.data.path
        if recipe.data.backend == "auto":
            settled_data["backend"] = stored.data.backend
        settled["data"] = recipe.data.model_copy(update=settled_data)
        if recipe.init and stored.init and recipe.init.sha256 is None:
            settled["init"] = recipe.init.model_copy(update={"sha256": stored.init.sha256})
        recipe = recipe.model_copy(update=settled)
        changed = differences(stored, recipe)
        if changed:
            listed = ", ".join(f"{key} = {new!r} (was {old!r})" for key, (old, new) in changed.items())
            raise RunError(
                f"{self.path} holds a run of another recipe: {listed}; "
                "name another folder with --run, or start anew with --fresh"
            )
        return recipe

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the complete, resolved recipe."""
        write_atomically(self.path / _RECIPE, to_toml(recipe).encode())

    def load_checkpoint(self, which: int | str, parts: tuple[str, ...] | None = None) -> StoredCheckpoint:
        """A verified checkpoint.

        Raises:
            RunError: nothing has been saved yet.
            CheckpointError: the one asked for cannot be used.
        """
        checkpoint = self.checkpoints.load(which, parts)
        if checkpoint is None:
            if (self.checkpoints.folder / "damaged").exists():
                raise RunError(f"{self.path}: every checkpoint was damaged; train it again, from the start")
            raise RunError(f"{self.path}: has no checkpoint yet; train it first")
        check_state(checkpoint.folder, checkpoint.state, checkpoint.state["step"], RUN_FIELDS)
        return checkpoint

    def evaluations(self) -> list[dict[str, Any]]:
        """What was measured so far, oldest first; damaged lines are left out."""
        return self._records("evaluations.jsonl")

    def corrupt_records(self) -> list[dict[str, Any]]:
        """Records of the data that were found damaged: ``part``, ``key``, ``reason``."""
        return self._records("corrupt.jsonl")

    def _records(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        records = []
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
            with suppress(ValueError):
                records.append(json.loads(line))
        return records
