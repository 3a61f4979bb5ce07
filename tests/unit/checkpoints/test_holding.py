from __future__ import annotations

import errno
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from foveal.checkpoints import holding as holding_module
from foveal.checkpoints.holding import GRACE, Holding
from foveal.checkpoints.layout import verify_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    made = CheckpointManager(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        save(made, step)
    return made


@pytest.fixture
def holding(manager: CheckpointManager, said: list[str]) -> Holding:
    made = Holding(manager.folder, "follower", said.append)
    made.open()
    return made


def save(manager: CheckpointManager, step: int) -> None:
    manager.save(step, {"model": {"w": torch.full((3,), float(step))}}, {"step": step})


def name(step: int) -> str:
    return f"step-{step:09d}"


def contents(holding: Holding) -> list[str]:
    return sorted(path.name for path in holding.folder.iterdir())


def take(holding: Holding, manager: CheckpointManager, step: int) -> bool:
    return holding.take(manager.located(step), name(step))


def test_a_checkpoint_that_is_held_outlives_its_deletion(
    holding: Holding, manager: CheckpointManager, said: list[str]
) -> None:
    assert take(holding, manager, 1)
    inode = (holding.folder / name(1) / "model.safetensors").stat().st_ino
    assert inode == (manager.path(1) / "model.safetensors").stat().st_ino
    manager.prune([Newest(1)])
    assert manager.steps() == [3]
    verify_checkpoint(holding.folder / name(1))
    assert said == []


def test_what_the_follower_has_not_seen_is_handed_over_before_it_is_deleted(
    holding: Holding, manager: CheckpointManager
) -> None:
    manager.prune([Newest(1)])
    assert manager.steps() == [3]
    assert holding.names() == [name(1), name(2)]
    for held in holding.names():
        verify_checkpoint(holding.folder / held)


def test_what_was_read_is_not_handed_over(holding: Holding, manager: CheckpointManager) -> None:
    take(holding, manager, 1)
    holding.mark_read(name(1))
    manager.prune([Newest(1)])
    assert holding.names() == [name(2)]
    holding.forget([name(3)])
    assert contents(holding) == [".alive", name(2)]


def age(holding: Holding, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(holding.folder / ".alive", (then, then))


def test_a_follower_that_died_is_awaited_for_a_while_and_no_longer(
    holding: Holding, manager: CheckpointManager
) -> None:
    age(holding, GRACE - 60)
    manager.prune([Newest(2)])
    assert holding.names() == [name(1)]
    age(holding, GRACE + 60)
    manager.prune([Newest(1)])
    assert holding.names() == [name(1)]
    assert manager.steps() == [3]


def test_a_follower_that_has_ended_is_not_awaited_and_leaves_nothing(
    holding: Holding, manager: CheckpointManager
) -> None:
    take(holding, manager, 1)
    holding.mark_read(name(1))
    holding.close()
    manager.prune([Newest(1)])
    assert not holding.folder.exists()


def test_a_checkpoint_that_a_person_keeps_stays_beside_a_follower(
    holding: Holding, manager: CheckpointManager
) -> None:
    manager.keep(1)
    manager.prune([Newest(1)])
    assert manager.steps() == [1, 3]
    assert holding.names() == [name(2)]


def test_a_trainer_that_may_not_link_deletes_nothing_that_the_follower_has_not_taken(
    holding: Holding, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(holding, manager, 1)

    def refuse(_source: str, _target: Path) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(holding_module.os, "link", refuse)
    manager.prune([Newest(1)])
    assert manager.steps() == [2, 3]
    age(holding, GRACE + 60)
    manager.prune([Newest(1)])
    assert manager.steps() == [3]


@pytest.mark.parametrize("change", ["deleted", "replaced", "renamed and back"])
def test_a_folder_that_changes_while_it_is_linked_is_not_held(
    holding: Holding,
    manager: CheckpointManager,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    changes: dict[str, Callable[[], Any]] = {
        "deleted": lambda: shutil.rmtree(manager.path(2)),
        "replaced": lambda: save(manager, 2),
        "renamed and back": lambda: manager.path(2).rename(manager.folder / "x").rename(manager.path(2)),
    }
    link = os.link

    def changing(source: str, target: Path) -> None:
        monkeypatch.setattr(holding_module.os, "link", link)
        link(source, target)
        changes[change]()

    monkeypatch.setattr(holding_module.os, "link", changing)
    assert not take(holding, manager, 2)
    assert holding.names() == []
    assert contents(holding) == [".alive"]
    if change != "deleted":
        assert take(holding, manager, 2)
        verify_checkpoint(holding.folder / name(2))


def test_a_folder_that_is_gone_is_not_held(holding: Holding, manager: CheckpointManager) -> None:
    assert not holding.take(manager.folder / name(9), name(9))
    assert contents(holding) == [".alive"]


def test_both_sides_may_take_the_same_checkpoint_at_once(
    holding: Holding, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Holding(manager.folder, "trainer", print)
    link = os.link

    def racing(source: str, target: Path) -> None:
        monkeypatch.setattr(holding_module.os, "link", link)
        link(source, target)
        assert trainer.hand_over(manager.path(2))

    monkeypatch.setattr(holding_module.os, "link", racing)
    assert take(holding, manager, 2)
    verify_checkpoint(holding.folder / name(2))
    assert contents(holding) == [".alive", name(2)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_hard_links_files_are_copied_which_is_said_once(
    holding: Holding,
    manager: CheckpointManager,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    def refuse(_source: str, _target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(holding_module.os, "link", refuse)
    assert take(holding, manager, 1)
    assert take(holding, manager, 2)
    verify_checkpoint(holding.folder / name(1))
    assert (holding.folder / name(1) / "state.json").stat().st_nlink == 1
    assert len(said) == 1
    assert "no hard links" in said[0]


def test_what_a_side_left_when_it_died_is_removed_by_that_side(
    holding: Holding, manager: CheckpointManager
) -> None:
    for owner in ("trainer", "follower"):
        (holding.folder / f".{name(2)}.{owner}.tmp").mkdir()
    holding.open()
    assert contents(holding) == [".alive", f".{name(2)}.trainer.tmp"]
    manager.remove_leftovers()
    assert contents(holding) == [".alive"]


def test_the_trainer_sees_no_checkpoint_in_what_is_held(holding: Holding, manager: CheckpointManager) -> None:
    take(holding, manager, 1)
    manager.prune([Newest(1)])
    assert manager.steps() == [3]
    assert set(manager.verify()) == {3}
