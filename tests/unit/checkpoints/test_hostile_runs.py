"""Right checksums and wrong contents, and links: always a named error, and nothing outside is touched."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.checkpoints.run_state import RUN_FIELDS, check_state
from foveal.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, Any] = {
    "step": 7,
    "train_seconds": 1.5,
    "validation": {"step": 7, "split": "validation", "accuracy": 0.5, "loss": 1},
    "score": 0.5,
    "best": {"step": 7, "score": 0.5},
    "stale": 0,
    "loss_averages": {"total": 2.5},
    "evaluation_pending": False,
    "logs": {"metrics.jsonl": 120},
    "classes": ["a", "b"],
    "image_shape": [8, 8, 1],
    "stored_shape": None,
    "data": "0123456789abcdef",
}
TENSORS = {"model": {"w": torch.ones(2)}}


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "checkpoints")


def test_state_of_a_run_is_accepted(manager: CheckpointManager) -> None:
    manager.save(7, TENSORS, GOOD)
    check_state(manager.path(7), manager.state(7), 7, RUN_FIELDS)
    (saved,) = manager.saved()
    assert (saved.metrics, saved.seconds, saved.score) == ({"accuracy": 0.5, "loss": 1.0}, 1.5, 0.5)


@pytest.mark.parametrize("name", RUN_FIELDS)
def test_state_that_lacks_what_a_run_needs_is_named(tmp_path: Path, name: str) -> None:
    state = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(DamagedCheckpointError, match=rf"state\.json: it has no {name}: use another"):
        check_state(tmp_path, state, 7, RUN_FIELDS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("step", [None, -1, 7.0, "7", True, [7], 10**30, 8]),
        ("train_seconds", [None, -0.5, "1", False, 10**400]),
        ("validation", [1, [], "x"]),
        ("score", ["1", True, [], 10**400]),
        ("best", [1, [], {}, {"step": -1}, {"step": None}, {"step": 7, "score": "0.5"}]),
        ("evaluation_pending", [None, 1, "no"]),
        ("loss_averages", [None, 2.5, [], {"total": "2.5"}, {"total": None}]),
        ("stale", [None, -1, 0.5, True]),
        ("logs", [None, [], {"metrics.jsonl": -1}, {"metrics.jsonl": "0"}, {"metrics.jsonl": 2**64}]),
        ("classes", [None, "ab", [1], {"a": 1}]),
        ("image_shape", [None, [8, 8], [8, 8, 0], [8, 8, 1.0], [8, 8, 1, 1], "881", [8, 8, 2**70]]),
        ("stored_shape", [[], [1, 2], "x", 3]),
        ("data", [None, 1, []]),
    ],
)
def test_field_of_another_kind_is_named_with_the_file(
    manager: CheckpointManager, name: str, values: list[object]
) -> None:
    for value in values:
        manager.save(7, TENSORS, GOOD | {name: value})
        for read in (manager.state, manager.load):
            with pytest.raises(DamagedCheckpointError, match=rf"state\.json: {name} is ") as caught:
                read(7)
            assert "\n" not in str(caught.value)
        assert name in str(manager.problem(7))
        assert manager.saved() == []
        manager.prune([Newest(1)])


def test_state_without_a_step_is_named(manager: CheckpointManager) -> None:
    manager.save(7, TENSORS, {})
    with pytest.raises(DamagedCheckpointError, match="it has no step"):
        manager.load(7)


def test_checkpoint_renamed_to_another_step_is_passed_over(manager: CheckpointManager) -> None:
    manager.save(7, TENSORS, GOOD)
    shutil.copytree(manager.path(7), manager.path(9))
    said: list[str] = []
    stored = CheckpointManager(manager.folder, said.append).load()
    assert stored is not None
    assert stored.state["step"] == 7
    assert "step is 7, but the folder is that of step 9" in said[0]
    assert manager.steps() == [7]


# ---- links


def outside(tmp_path: Path, manager: CheckpointManager) -> Path:
    """A good checkpoint of step 7, elsewhere."""
    CheckpointManager(tmp_path / "elsewhere").save(7, TENSORS, GOOD)
    manager.folder.mkdir()
    return CheckpointManager(tmp_path / "elsewhere").path(7)


def test_checkpoint_that_is_a_link_is_moved_aside_and_what_it_leads_to_is_left(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    target = outside(tmp_path, manager)
    manager.path(7).symlink_to(target)
    with pytest.raises(DamagedCheckpointError, match="is a link"):
        manager.load(7)
    assert "is a link" in str(manager.problem(7))
    manager.prune([])
    assert manager.load() is None
    assert (manager.folder / "damaged" / "step-000000007").is_symlink()
    assert CheckpointManager(target.parent).verify() == {7: None}


def test_nothing_is_moved_through_a_link_in_place_of_the_folder_of_damaged_ones(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    manager.save(7, TENSORS, GOOD)
    (manager.path(7) / "state.json").unlink()
    (tmp_path / "precious").mkdir()
    (manager.folder / "damaged").symlink_to(tmp_path / "precious")
    with pytest.raises(DamagedCheckpointError, match=r"could not be moved to .*damaged \(it is a link\)"):
        manager.load()
    assert not list((tmp_path / "precious").iterdir())
    assert manager.path(7).is_dir()


def test_folder_of_checkpoints_may_be_a_link(tmp_path: Path, manager: CheckpointManager) -> None:
    (tmp_path / "disk").mkdir()
    manager.folder.symlink_to(tmp_path / "disk")
    manager.save(7, TENSORS, GOOD)
    assert manager.verify() == {7: None}
    (manager.path(7) / "state.json").unlink()
    assert manager.load() is None
    assert (tmp_path / "disk" / "damaged" / "step-000000007").is_dir()


def test_mark_that_is_a_link_leads_to_nothing_being_written(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    manager.save(7, TENSORS, GOOD)
    (manager.folder / ".step-000000007.keep").symlink_to(tmp_path / "precious")
    manager.keep(7)
    assert not (tmp_path / "precious").exists()
    manager.prune([])
    assert manager.steps() == [7]
    manager.release(7)
    assert manager.kept_by_name() == set()


def test_links_that_pose_as_leftovers_are_removed_and_not_followed(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    target = outside(tmp_path, manager)
    before = sorted(path.name for path in target.iterdir())
    for name in (".step-000000007.tmp", ".step-000000008.deleted"):
        (manager.folder / name).symlink_to(target)
    manager.remove_leftovers()
    assert sorted(path.name for path in target.iterdir()) == before
    assert not list(manager.folder.iterdir())


def test_replaced_checkpoint_that_is_a_link_is_not_read(tmp_path: Path, manager: CheckpointManager) -> None:
    (manager.folder / "x").parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(manager.folder)
    target = outside(tmp_path, manager)
    (manager.folder / ".step-000000007.replaced").symlink_to(target)
    with pytest.raises(DamagedCheckpointError, match="is a link"):
        manager.load(7)
    assert CheckpointManager(target.parent).verify() == {7: None}


def test_file_in_place_of_the_folder_of_damaged_ones_is_an_error(manager: CheckpointManager) -> None:
    manager.save(7, TENSORS, GOOD)
    (manager.path(7) / "manifest.json").unlink()
    (manager.folder / "damaged").write_text("")
    with pytest.raises(CheckpointError, match="could not be moved"):
        manager.load()
