from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

import pytest

from foveal.errors import RunError
from foveal.files import exclusive_lock, remove_folder, write_atomically

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    for content in (b"one", b"another"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_gone_with_all_that_an_earlier_deletion_left(tmp_path: Path) -> None:
    for name in ("a", ".a.deleted"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("x")
    remove_folder(tmp_path / "a")
    assert names(tmp_path) == []


def hold(path: Path, ready: Connection) -> None:
    with exclusive_lock(path, "held"):
        ready.send(True)
        signal.pause()


def test_a_lock_is_refused_to_another_process_and_released_by_death(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=hold, args=(tmp_path / "lock", theirs))
    process.start()
    assert ours.recv()
    with (
        pytest.raises(RunError, match="held elsewhere"),
        exclusive_lock(tmp_path / "lock", "held elsewhere"),
    ):
        pass
    process.kill()
    process.join()
    with exclusive_lock(tmp_path / "lock", "held elsewhere"):
        pass
