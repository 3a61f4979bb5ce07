from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.privileges import as_ordinary_user

from foveal.checkpoints import manager as manager_module
from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Best, Newest
from foveal.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
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


def test_the_best_is_that_of_the_highest_score(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step, score in ((1, -0.5), (2, -0.25), (3, None), (4, -1.0)):
        manager.save(step, {}, {"step": step, "score": score, "validation": {"accuracy": step / 10}})
    assert manager.candidates("best") == [2, 1, 4]


def test_another_save_of_a_step_takes_the_place_of_the_first(manager: CheckpointManager) -> None:
    assert manager.candidates("best")[0] == 20
    manager.save(20, {"model": {"w": torch.zeros(3)}}, {"step": 20, "validation": {"accuracy": 0.1}})
    stored = manager.load(20)
    assert stored is not None
    assert stored.tensors["model"]["w"].tolist() == [0, 0, 0]
    assert manager.candidates("best") == [40, 10, 20]
    assert manager.steps() == [10, 20, 30, 40]
    assert {path.name for path in manager.folder.iterdir()} == {f"step-{n:09d}" for n in (10, 20, 30, 40)}


# ---- pruning, and what is kept by name


def test_pruning_keeps_what_the_policies_keep(manager: CheckpointManager) -> None:
    manager.prune([Newest(1), Best("accuracy", 1, higher_is_better=True)])
    assert manager.steps() == [20, 40]


def test_pruning_keeps_what_is_kept_by_name_until_it_is_released(manager: CheckpointManager) -> None:
    manager.keep(10)
    manager.keep(10)
    manager.keep(30)
    assert (manager.folder / ".step-000000010.keep").is_file()
    assert CheckpointManager(manager.folder).kept_by_name() == {10, 30}
    manager.prune([Newest(1)])
    assert manager.steps() == [10, 30, 40]
    manager.release(10)
    manager.prune([Newest(1)])
    assert manager.steps() == [30, 40]


def test_only_what_is_there_can_be_kept_and_only_what_is_kept_released(manager: CheckpointManager) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 15; there are: 10, 20, 30, 40"):
        manager.keep(15)
    manager.keep(20)
    with pytest.raises(CheckpointError, match="step 10 is not kept by name; those that are: 20"):
        manager.release(10)


def test_damaged_one_is_neither_counted_nor_deleted_by_pruning(manager: CheckpointManager) -> None:
    (manager.path(40) / "state.json").write_bytes(b"{}")
    CheckpointManager(manager.folder).prune([Newest(1)])
    assert manager.steps() == [30, 40]


def keep_in_the_gap(manager: CheckpointManager, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a step just after pruning has looked at what is kept, and before it renames anything."""
    other, listed = CheckpointManager(manager.folder), manager.kept_by_name

    def listing() -> set[int]:
        found = listed()
        other.keep(step)
        return found

    monkeypatch.setattr(manager, "kept_by_name", listing)


def test_one_that_is_kept_while_another_process_prunes_stays(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_the_gap(manager, 10, monkeypatch)
    manager.prune([Newest(1)])
    assert manager.steps() == [10, 40]
    assert step_of(manager.load(10)) == 10


def test_one_that_is_deleted_while_it_is_being_kept_is_an_error_and_leaves_no_mark(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "sync_folder", lambda _: shutil.rmtree(manager.path(10)))
    with pytest.raises(CheckpointError, match="was just being deleted"):
        manager.keep(10)
    assert manager.kept_by_name() == set()


def _prune_for_ever(folder: Path) -> None:
    manager = CheckpointManager(folder)
    for step in range(1 + max(manager.steps(), default=0), 10**9):
        manager.save(step, {}, {"step": step})
        manager.prune([Newest(2)])


def test_what_was_kept_is_there_when_a_pruning_process_is_killed_and_begins_anew(tmp_path: Path) -> None:
    kept: set[int] = set()
    keeper = CheckpointManager(tmp_path)
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=_prune_for_ever, args=(tmp_path,))
        process.start()
        try:
            target = len(kept) + 5
            while len(kept) < target:
                oldest = [step for step in keeper.steps() if step not in kept][:1]
                for step in oldest:
                    with suppress(CheckpointError):  # it was deleted first
                        keeper.keep(step)
                        kept.add(step)
        finally:
            process.kill()
            process.join()
        keeper.remove_leftovers()
        assert kept <= set(keeper.steps())
        assert set(keeper.verify().values()) == {None}


def test_deletion_cut_short_before_the_mark_was_seen_is_undone(manager: CheckpointManager) -> None:
    manager.keep(10)
    manager.path(10).rename(manager.folder / ".step-000000010.deleted")
    manager.path(20).rename(manager.folder / ".step-000000020.deleted")
    manager.remove_leftovers()
    assert manager.steps() == [10, 30, 40]
    assert step_of(manager.load(10)) == 10
    assert [path.name for path in manager.folder.glob(".*")] == [".step-000000010.keep"]


def test_half_deleted_one_is_not_put_back_though_it_is_marked(manager: CheckpointManager) -> None:
    manager.keep(10)
    doomed = manager.path(10).rename(manager.folder / ".step-000000010.deleted")
    (doomed / "model.safetensors").unlink()
    manager.remove_leftovers()
    assert manager.steps() == [20, 30, 40]
    assert [path.name for path in manager.folder.glob(".*")] == [".step-000000010.keep"]


def test_one_that_cannot_be_deleted_is_an_error_that_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        manager = CheckpointManager(Path(folder) / "checkpoints")
        for step in (10, 20):
            manager.save(step, {}, {"step": step})
        manager.folder.chmod(0o555)
        with as_ordinary_user():
            with pytest.raises(CheckpointError, match=r"cannot delete .*10 \(Permission denied\): allow"):
                manager.prune([Newest(1)])
            with pytest.raises(
                CheckpointError, match=r"cannot write .*10\.keep \(Permission denied\): allow"
            ):
                manager.keep(10)
        manager.folder.chmod(0o755)
        assert manager.verify() == {10: None, 20: None}


# ---- other processes, and crashes


def test_leftovers_of_a_crash_are_removed_and_anything_else_is_left_alone(manager: CheckpointManager) -> None:
    for name in (".step-000000050.tmp", ".step-000000010.deleted", "notes", "step-5"):
        (manager.folder / name).mkdir()
    (manager.folder / ".step-000000060.tmp").symlink_to("notes")
    manager.remove_leftovers()
    names = {path.name for path in manager.folder.iterdir()}
    assert {"notes", "step-5"} <= names
    assert not any(name.startswith(".") for name in names)
    assert manager.steps() == [10, 20, 30, 40]


@pytest.mark.parametrize(
    "name", ["step-0000000010", "step-00000001", "step-00000001\u0661", "step-000000050.1"]
)
def test_folder_of_another_name_is_no_checkpoint(manager: CheckpointManager, name: str) -> None:
    shutil.copytree(manager.path(10), manager.folder / name)
    assert manager.steps() == [10, 20, 30, 40]


def test_one_that_is_just_being_replaced_is_there_for_others(manager: CheckpointManager) -> None:
    manager.path(40).rename(manager.folder / ".step-000000040.replaced")
    assert manager.steps() == [10, 20, 30, 40]
    assert step_of(manager.load()) == 40
    assert step_of(manager.load(40)) == 40
    assert manager.problem(40) is None
    manager.remove_leftovers()
    assert manager.path(40).is_dir()


@pytest.mark.parametrize("which", ["latest", 40])
def test_one_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, said: list[str], which: int | str
) -> None:
    def replace_between_two_files(folder: Path, parts: Any) -> StoredCheckpoint:
        monkeypatch.undo()
        manifest = (folder / "manifest.json").read_bytes()
        write_checkpoint(folder, {"model": {"w": torch.zeros(4)}}, state(40), replace=True)
        (folder / "manifest.json").write_bytes(manifest)  # what the reader had read by then
        try:
            return read_checkpoint(folder, parts)
        finally:
            write_checkpoint(folder, {"model": {"w": torch.full((3,), 40.0)}}, state(40), replace=True)

    monkeypatch.setattr(manager_module, "read_checkpoint", replace_between_two_files)
    assert step_of(manager.load(which)) == 40
    assert said == []


def _replace_for_ever(folder: Path) -> None:
    manager = CheckpointManager(folder)
    for number in range(10**9):
        tensors = {"model": {"w": torch.full((1000 + number % 7,), float(number))}}
        manager.save(1, tensors, {"step": 1, "number": number})


def test_reader_of_a_checkpoint_that_is_replaced_without_end_sees_whole_ones_only(
    tmp_path: Path, said: list[str]
) -> None:
    manager = CheckpointManager(tmp_path, said.append)
    manager.save(1, {"model": {"w": torch.zeros(1)}}, {"step": 1, "number": 0})
    process = multiprocessing.get_context("fork").Process(target=_replace_for_ever, args=(tmp_path,))
    process.start()
    try:
        for which in ["latest", 1] * 500:
            stored = manager.load(which)
            assert stored is not None
            assert set(stored.tensors["model"]["w"].tolist()) == {stored.state["number"]}
    finally:
        process.kill()
        process.join()
    assert said == []
    manager.remove_leftovers()
    assert manager.verify() == {1: None}
