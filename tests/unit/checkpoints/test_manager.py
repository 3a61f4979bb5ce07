from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Saved, best, newest
from foveal.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.checkpoints.layout import StoredCheckpoint

ACCURACY = {10: 0.5, 20: 0.9, 30: None, 40: 0.7}


def state(step: int) -> dict[str, Any]:
    accuracy = ACCURACY[step]
    return {"step": step, "validation": None if accuracy is None else {"accuracy": accuracy}}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def manager(tmp_path: Path, said: list[str]) -> CheckpointManager:
    made = CheckpointManager(tmp_path / "checkpoints", said.append)
    for step in ACCURACY:
        made.save(step, {"model": {"w": torch.full((3,), float(step))}}, state(step))
    return made


def damage(manager: CheckpointManager, step: int) -> None:
    path = manager.path(step) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def step_of(stored: StoredCheckpoint | None) -> int | None:
    if stored is None:
        return None
    assert stored.tensors["model"]["w"].tolist() == [stored.state["step"]] * 3
    return int(stored.state["step"])


def test_the_latest_the_best_and_any_step_are_found(manager: CheckpointManager) -> None:
    assert step_of(manager.load()) == 40
    assert step_of(manager.load("best")) == 20
    assert step_of(manager.load(30)) == 30


def test_a_damaged_one_is_moved_aside_and_the_next_in_line_is_used(
    manager: CheckpointManager, said: list[str]
) -> None:
    damage(manager, 40)
    damage(manager, 20)
    assert step_of(manager.load()) == 30
    assert step_of(manager.load("best")) == 10
    assert manager.steps() == [10, 30]
    assert sorted(path.name for path in (manager.folder / "damaged").iterdir()) == [
        "step-000000020",
        "step-000000040",
    ]
    assert len(said) == 2


def test_the_same_step_can_be_damaged_twice(manager: CheckpointManager) -> None:
    for _ in range(3):
        damage(manager, 40)
        assert step_of(manager.load()) == 30
        manager.save(40, {"model": {"w": torch.full((3,), 40.0)}}, state(40))
    assert len(list((manager.folder / "damaged").iterdir())) == 3


def test_a_damaged_one_that_was_asked_for_by_its_step_is_an_error(manager: CheckpointManager) -> None:
    damage(manager, 20)
    with pytest.raises(DamagedCheckpointError):
        manager.load(20)
    assert 20 in manager.steps()


def test_a_step_there_is_not_is_an_error_that_lists_those_there_are(manager: CheckpointManager) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 15; there are: 10, 20, 30, 40"):
        manager.load(15)


def test_where_nothing_was_rated_none_is_the_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(30, {"model": {}}, state(30))
    with pytest.raises(CheckpointError, match="no checkpoint was rated"):
        manager.load("best")


def test_without_any_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path / "none").load() is None
    assert CheckpointManager(tmp_path / "none").load("best") is None


def test_pruning_keeps_the_newest_and_the_best(manager: CheckpointManager) -> None:
    manager.prune(keep_last=1, keep_best=1)
    assert manager.steps() == [20, 40]


def test_leftovers_of_a_crash_are_removed_and_anything_else_is_left_alone(manager: CheckpointManager) -> None:
    for name in (".step-000000050.tmp", ".step-000000010.deleted", "notes", "step-5"):
        (manager.folder / name).mkdir()
    manager.remove_leftovers()
    names = {path.name for path in manager.folder.iterdir()}
    assert {"notes", "step-5"} <= names
    assert not any(name.startswith(".") for name in names)
    assert manager.steps() == [10, 20, 30, 40]


saved = st.lists(
    st.builds(Saved, st.integers(0, 50), st.one_of(st.none(), st.floats(0, 1))),
    unique_by=lambda one: one.step,
)


@given(saved, st.integers(0, 6))
def test_policies_keep_as_many_as_asked_and_none_that_is_worse(checkpoints: list[Saved], count: int) -> None:
    kept = newest(checkpoints, count)
    assert len(kept) == min(count, len(checkpoints))
    assert all(step < min(kept) for step in {one.step for one in checkpoints} - kept if kept)
    accuracy = {one.step: one.accuracy for one in checkpoints if one.accuracy is not None}
    chosen = best(checkpoints, count)
    assert len(chosen) == min(count, len(accuracy))
    assert [accuracy[step] for step in chosen] == sorted(accuracy.values(), reverse=True)[:count]
