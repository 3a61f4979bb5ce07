"""A disk that is watched, that refuses, and that loses what was not forced to it when the power fails."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest


class Died(BaseException):
    """The process was killed: what stands on the disk now is all there will be."""


class Operation(NamedTuple):
    """A call that changed the disk: create, write, fsync, rename, mkdir, unlink or rmdir."""

    kind: str
    path: str
    detail: bytes | str = b""  # what was written, or the new name


class Disk:
    """Records every call that changes what is in a folder, and lets one of them fail.

    Args:
        patch: puts back what is replaced.
        root: the folder.
        fail_at: the number of the call that fails; a write then has half of its effect.
        error: the number of the error it fails with; without one, the process dies there.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        root: Path,
        *,
        fail_at: int | None = None,
        error: int | None = None,
    ) -> None:
        self.root, self.fail_at, self.error = root, fail_at, error
        self.operations: list[Operation] = []
        self.dead = False
        self._open = io.open
        patch.setattr(io, "open", self.open)
        patch.setattr(builtins, "open", self.open)
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def begin(self, kind: str, path: str, detail: bytes | str = b"") -> bool:
        """Note a call; True if it is the one to fail."""
        if self.dead:  # a killed process does not clean up either
            raise Died
        self.operations.append(Operation(kind, path, detail))
        return len(self.operations) - 1 == self.fail_at

    def fail(self) -> None:
        """Fail."""
        if self.error is None:
            self.dead = True
            raise Died
        raise OSError(self.error, os.strerror(self.error))

    def open(self, path, mode="r", *args, **kwargs):
        """Open a file; one that is new, and in the folder, is watched."""
        inside = isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self.root)
        if "x" not in mode or not inside:
            return self._open(path, mode, *args, **kwargs)
        if self.begin("create", os.fspath(path)):
            self.fail()
        return _Watched(self, self._open(path, "xb", buffering=0), os.fspath(path))

    def _watched(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(target, *args, **kwargs):
            path = os.fspath(Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else target)
            if (folder := kwargs.get("dir_fd")) is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # noqa: PTH115, PTH118
            if Path(path).is_relative_to(self.root):
                renamed = name in ("rename", "replace")
                if self.begin("rename" if renamed else name, path, os.fspath(args[0]) if renamed else b""):
                    self.fail()
            original(target, *args, **kwargs)

        return call


class _Watched:
    """A file opened for writing."""

    def __init__(self, disk: Disk, file: io.FileIO, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path
        self.flush, self.fileno, self.close = file.flush, file.fileno, file.close

    def write(self, content: bytes | memoryview) -> int:
        if self._disk.begin("write", self._path, bytes(content)):
            self._file.write(bytes(content)[: len(content) // 2])  # torn
            self._disk.fail()
        return self._file.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Node:
    """A file or folder: all states it ever was in, and how far it was forced to the disk.

    The state of a file is its bytes, that of a folder its nodes by name. Each is forced to the disk alone: a
    file does not take its name along, nor a folder what is in it.
    """

    def __init__(self, state: bytes | dict[str, _Node]) -> None:
        self.states = [state]
        self.forced = 0


class PowerCut:
    """What may be on the disk if the power fails after these operations in a folder that was empty.

    Every file and folder is in some state between the one that it was forced to the disk in and the last one;
    a write may be half done. A journal would promise more.
    """

    def __init__(self, root: Path, operations: Sequence[Operation]) -> None:
        self._root = _Node({})
        for operation in operations:
            path = Path(operation.path).relative_to(root).parts
            detail = operation.detail
            if isinstance(detail, str):
                detail = Path(detail).relative_to(root).parts
            getattr(self, f"_{operation.kind}")(path, detail)

    def leave(self, folder: Path, state: Callable[[_Node], int]) -> None:
        """Make the folder as it would be found; ``state`` chooses a state of each file and folder."""
        self._leave(folder, self._root, state)

    def _leave(self, path: Path, node: _Node, state: Callable[[_Node], int]) -> None:
        content = node.states[state(node)]
        if isinstance(content, bytes):
            path.write_bytes(content)
            return
        path.mkdir()
        for name, member in content.items():
            self._leave(path / name, member, state)

    def _find(self, path: tuple[str, ...]) -> _Node:
        node = self._root
        for name in path:
            node = node.states[-1][name]
        return node

    def _enter(self, path: tuple[str, ...], node: _Node | None) -> None:
        folder = self._find(path[:-1])
        entries = dict(folder.states[-1])
        entries.pop(path[-1], None)
        if node is not None:
            entries[path[-1]] = node
        folder.states.append(entries)

    def _create(self, path: tuple[str, ...], _detail: object) -> None:
        self._enter(path, _Node(b""))

    def _mkdir(self, path: tuple[str, ...], _detail: object) -> None:
        self._enter(path, _Node({}))

    def _write(self, path: tuple[str, ...], content: bytes) -> None:
        states = self._find(path).states
        before = states[-1]
        states += [before + content[: len(content) // 2], before + content]

    def _fsync(self, path: tuple[str, ...], _detail: object) -> None:
        node = self._find(path)
        node.forced = len(node.states) - 1

    def _rename(self, path: tuple[str, ...], target: tuple[str, ...]) -> None:
        node, folder = self._find(path), self._find(path[:-1])
        assert path[:-1] == target[:-1]
        entries = {name: member for name, member in folder.states[-1].items() if member is not node}
        folder.states.append(entries | {target[-1]: node})

    def _unlink(self, path: tuple[str, ...], _detail: object) -> None:
        self._enter(path, None)

    _rmdir = _unlink
