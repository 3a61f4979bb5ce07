"""A save that dies, or is refused, at each of its operations on the file system in turn."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress

import pytest
import torch
from tests.disk import Died, Disk

from foveal.checkpoints.layout import read_checkpoint, recover_replaced, write_checkpoint
from foveal.errors import CheckpointError

STATE = {"step": 2}
TENSORS = {
    "model": {"weight": torch.arange(4.0), "bias": torch.ones(1)},
    "ema": {"weight": torch.zeros(4)},
    "optimizer": {},
}
EARLIER = {"model": {"weight": torch.full((4,), 7.0)}}


def save(folder):
    write_checkpoint(folder, TENSORS, STATE)


def is_complete(folder, tensors=TENSORS, state=STATE):
    read = read_checkpoint(folder)
    return read.state == state and all(
        torch.equal(read.tensors[part][name], tensor)
        for part, content in tensors.items()
        for name, tensor in content.items()
    )


def record(folder):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, folder.parent)
        save(folder)
    return disk.operations


@pytest.fixture
def checkpoints(tmp_path):
    write_checkpoint(tmp_path / "step-1", EARLIER, {"step": 1})
    return tmp_path


def earlier_is_intact(checkpoints):
    return is_complete(checkpoints / "step-1", EARLIER, {"step": 1})


def test_recorder_sees_the_whole_save(checkpoints):
    kinds = [operation.kind for operation in record(checkpoints / "step-2")]
    assert kinds.count("create") == 5
    assert kinds.count("fsync") == 7  # five files, the folder, its parent
    assert kinds.count("write") >= 8
    assert kinds.count("rename") == 1


def test_everything_is_synced_before_the_rename_and_the_manifest_is_last(checkpoints):
    operations = record(checkpoints / "step-2")
    temporary, final = checkpoints / ".step-2.tmp", checkpoints / "step-2"
    rename = operations.index(("rename", str(temporary), str(final)))
    assert operations[rename + 1 :] == [("fsync", str(checkpoints), b"")]
    assert operations[rename - 1] == ("fsync", str(temporary), b"")
    created = [path for name, path, _ in operations if name == "create"]
    assert created[-1] == str(temporary / "manifest.json")
    for path in created:
        changes = [index for index, (_, target, _) in enumerate(operations) if target == path]
        assert operations[changes[-1]] == ("fsync", path, b"")
        assert changes[-1] < rename - 1
    assert not any(target.startswith(str(final)) for _, target, _ in operations)


def test_death_at_any_operation_leaves_no_folder_or_a_complete_one(checkpoints):
    total = len(record(checkpoints / "probe"))
    outcomes = []
    for fail_at in range(total):
        folder = checkpoints / "step-2"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, checkpoints, fail_at=fail_at)
            with pytest.raises(Died):
                save(folder)
        assert disk.dead
        outcomes.append(folder.exists())
        if folder.exists():
            assert is_complete(folder)
            shutil.rmtree(folder)
        save(folder)  # whatever the dead one left behind is no obstacle
        assert is_complete(folder)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["probe", "step-1", "step-2"]
        shutil.rmtree(folder)
        assert earlier_is_intact(checkpoints)
    assert outcomes == [False] * (total - 1) + [True]  # only the last sync comes after the rename


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_each_operation_refused_once_is_named_and_leaves_nothing(checkpoints, code):
    operations = record(checkpoints / "probe")
    for fail_at, (name, target, _) in enumerate(operations):
        folder = checkpoints / "step-2"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, checkpoints, fail_at=fail_at, error=code)
            with pytest.raises(
                CheckpointError, match=r"cannot write .*step-2.* and run the same command"
            ) as caught:
                save(folder)
        assert os.strerror(code) in str(caught.value), (name, target)
        assert "\n" not in str(caught.value)
        assert earlier_is_intact(checkpoints)
        if fail_at == len(operations) - 1:  # it had its name already: complete, and said not to be durable
            assert "may not survive a power cut" in str(caught.value)
            assert is_complete(folder)
            shutil.rmtree(folder)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["probe", "step-1"]


def test_full_disk_says_to_free_some_space(checkpoints):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, checkpoints, fail_at=4, error=errno.ENOSPC)
        with pytest.raises(CheckpointError, match="free some space there and run the same command again"):
            save(checkpoints / "step-2")


def test_disk_that_stays_full_still_gives_one_error(checkpoints, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save(checkpoints / "step-2")
    assert not (checkpoints / "step-2").exists()


def test_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "file" / "step-2")


# ---- replacing


def replace(folder):
    write_checkpoint(folder, TENSORS, STATE, replace=True)


def test_replaced_folder_is_gone_when_the_new_one_is_there(checkpoints):
    replace(checkpoints / "step-1")
    assert is_complete(checkpoints / "step-1")
    replace(checkpoints / "step-2")  # where there is nothing to replace
    assert is_complete(checkpoints / "step-2")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-1", "step-2"]


def test_death_at_any_operation_of_a_replacement_leaves_the_old_or_the_new(checkpoints):
    folder, before = checkpoints / "step-1", checkpoints.with_name("before")
    shutil.copytree(checkpoints, before)
    outcomes, fail_at = [], 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, checkpoints, fail_at=fail_at)
            with suppress(Died):
                replace(folder)
        if not disk.dead:
            break
        recover_replaced(checkpoints)
        outcomes.append("new" if is_complete(folder) else "old")
        assert outcomes[-1] == "new" or earlier_is_intact(checkpoints)
        replace(folder)  # whatever is left is no obstacle
        assert is_complete(folder)
        assert [path.name for path in checkpoints.iterdir() if path.suffix == ".replaced"] == []
        shutil.rmtree(checkpoints)
        shutil.copytree(before, checkpoints)
        fail_at += 1
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)


def test_refused_replacement_puts_the_old_one_back(checkpoints):
    aside = str(checkpoints / ".step-1.replaced")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, checkpoints)
        replace(checkpoints / "step-1")
    renames = [index for index, operation in enumerate(disk.operations) if operation.kind == "rename"]
    write_checkpoint(checkpoints / "step-1", EARLIER, {"step": 1}, replace=True)
    assert disk.operations[renames[0]].detail == aside
    for fail_at in renames[:2]:
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, checkpoints, fail_at=fail_at, error=errno.EIO)
            with pytest.raises(CheckpointError, match="check the disk"):
                replace(checkpoints / "step-1")
        assert [path.name for path in checkpoints.iterdir()] == ["step-1"]
        assert earlier_is_intact(checkpoints)


def test_link_is_replaced_and_what_it_leads_to_is_not_touched(checkpoints):
    (checkpoints / "link").symlink_to("step-1")
    replace(checkpoints / "link")
    assert not (checkpoints / "link").is_symlink()
    assert is_complete(checkpoints / "link")
    assert earlier_is_intact(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["link", "step-1"]


def test_replacement_that_cannot_be_undone_is_a_named_error(checkpoints):
    (checkpoints / "step-1").rename(checkpoints / ".step-1.replaced")
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, checkpoints, fail_at=0, error=errno.EACCES)
        with pytest.raises(CheckpointError, match=r"step-1 \(Permission denied\): allow writing there"):
            recover_replaced(checkpoints)
    recover_replaced(checkpoints)
    assert earlier_is_intact(checkpoints)
