"""A checkpoint of TensorFlow's as a whole, in any of its formats: its tensors, and what they are for.

Source: TensorFlow's ``python/training/checkpoint_utils.py`` and
``python/checkpoint/checkpoint_management.py``. The formats are read in ``bundle.py``, ``v1.py`` and
``object_graph.py``.
"""

from __future__ import annotations

import difflib
import re
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from foveal.errors import CheckpointError, UsageError
from foveal.tensorflow.bundle import Bundle
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.object_graph import GRAPH_KEY, ObjectGraph, damaged_graph, read_object_graph
from foveal.tensorflow.roles import Roles, find_object_roles, find_roles, step_candidates
from foveal.tensorflow.state_file import CheckpointState, is_checkpoint, read_state, write_state
from foveal.tensorflow.table import Table, is_table
from foveal.tensorflow.v1 import V1Checkpoint, files_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Checkpoint", "Format", "Listed", "list_checkpoints", "save_checkpoint"]

Format = Literal["V1", "V2", "V2 objects"]

_STATE: Final = "checkpoint"  # the name of the state file
_INDEX: Final = ".index"
_DATA: Final = re.compile(r"(.+)\.data-[0-9]{5,}-of-[0-9]{5,}", re.DOTALL)
_V1_SHARD: Final = re.compile(r"(.+-)[0-9]{5}(-of-[0-9]{5})", re.DOTALL)
_STEP: Final = re.compile(r"-([0-9]{1,18})(?:-\?{5}-of-[0-9]{5})?$")


class Checkpoint:
    """A checkpoint that can be read; threads may share one. To iterate over it gives its names.

    In an object-based checkpoint of TensorFlow 2 the names are attribute paths, as ``model/layers/0``; what
    is no variable there keeps its whole key, as ``model/.ATTRIBUTES/OBJECT_CONFIG_JSON``.

    Attributes:
        path: the prefix of its files; of a V1 checkpoint the file, or the pattern of its files.
        format: ``V1``, ``V2``, or ``V2 objects``: a V2 checkpoint with an object graph.
    """

    def __init__(self, path: Path | str) -> None:
        """Find a checkpoint and read what it holds; tensors are read when they are asked for.

        Args:
            path: a prefix, a V1 checkpoint's file or the pattern of its files, or a folder: the latest there
                by the state file or, without one, by step and time. The folder may be a SavedModel. Any file
                of a checkpoint may be named for it.

        Raises:
            DamagedCheckpointError: a file is damaged; says where.
            CheckpointError: there is no checkpoint, it cannot be opened, or needs a newer reader.
        """
        with _named_errors(Path(path)):
            self.path = _locate(Path(path))
            is_v2 = _index(self.path).is_file()
        self._tensors = Bundle(self.path) if is_v2 else V1Checkpoint(self.path)
        names = self._tensors.names()
        self._keys = dict(zip(names, names, strict=True))
        self._graph: ObjectGraph | None = None
        if is_v2 and GRAPH_KEY in self._keys:
            self._graph = self._read_graph()
            self._keys = self._attribute_paths(self._graph)
        self.format: Format = "V1" if not is_v2 else "V2" if self._graph is None else "V2 objects"

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def names(self) -> list[str]:
        """The names of all tensors, in order."""
        return list(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return self._tensors.shape(self._key(name))

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a tensor; that of strings, which are bytes, is object.

        Raises:
            CheckpointError: there is no such tensor, or it has a dtype that is not supported.
        """
        return self._tensors.dtype(self._key(name))

    def get(self, name: str) -> NDArray[Any]:
        """Read a tensor and verify its checksum.

        Returns:
            A new array of its shape and dtype.

        Raises:
            DamagedCheckpointError: a file is damaged; says where.
            CheckpointError: there is no such tensor, it has a dtype that is not supported, its file cannot be
                opened, or it does not fit in memory.
        """
        return self._tensors.get(self._key(name))

    def read(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, NDArray[Any]]:
        """Read several tensors at once and verify their checksums.

        Args:
            names: of the tensors; all without them.
            threads: that read; without it as many as there are processors, but no more than gain. A V1
                checkpoint, whose tensors are one stream, is read by one.

        Returns:
            The tensors in the order of their names, as ``get`` gives them; small ones may share memory.

        Raises:
            DamagedCheckpointError: a file is damaged; says where.
            CheckpointError: as ``get`` raises it, for any of them.
            UsageError: the threads are less than one.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads cannot read a checkpoint: give 1 or more")
        keys = {name: self._key(name) for name in (self if names is None else names)}
        if isinstance(self._tensors, V1Checkpoint):
            return {name: self._tensors.get(key) for name, key in keys.items()}
        found = self._tensors.read(keys.values(), threads)
        return {name: found[key] for name, key in keys.items()}

    def files(self) -> list[Path]:
        """The files it consists of that are there, the index or the V1 checkpoint's own first.

        As TensorFlow does when it deletes one, all that are called as data files of its prefix are taken.
        """
        with _named_errors(self.path):
            return _files(self.path)

    @cached_property
    def global_step(self) -> int | None:
        """The value of the integer that counts the steps of the training; None without one.

        That is ``global_step``, an optimizer's ``iterations``, or an object graph's ``step``.

        Raises:
            CheckpointError: it cannot be read.
        """
        for name in step_candidates(self):
            if self.shape(name) == () and self.dtype(name).kind in "iu":
                return int(self.get(name))
        return None

    @property
    def averages(self) -> Mapping[str, str]:
        """By variable the name of its moving average."""
        return self._roles.averages

    @property
    def slots(self) -> Mapping[str, Mapping[str, str]]:
        """By the name of an optimizer's slot (momentum; m, v; rms, ...): by variable the name of its slot."""
        return self._roles.slots

    @property
    def optimizer(self) -> str | None:
        """The optimizer that the slots are of: Momentum, Adam, RMSProp, ...; None without slots."""
        return self._roles.optimizer

    @property
    def variables(self) -> list[str]:
        """The names that are no averages, slots, scalars of an optimizer, step or other counters."""
        return [name for name in self._keys if name not in self._roles.others]

    @cached_property
    def _roles(self) -> Roles:
        shapes = {name: self.shape(name) for name in self._keys}
        return find_roles(shapes) if self._graph is None else find_object_roles(shapes, self._graph)

    def _key(self, name: str) -> str:
        if (key := self._keys.get(name)) is not None:
            return key
        near = difflib.get_close_matches(name, self._keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of those it has"
        raise CheckpointError(f"{self.path}: no tensor is named {name!r}: {hint}")

    def _read_graph(self) -> ObjectGraph:
        content = self._tensors.get(GRAPH_KEY)
        graph = content.item() if content.shape == () else None
        if not isinstance(graph, bytes):
            damaged_graph(_index(self.path), "it is not one string")
        return read_object_graph(graph, self._keys, _index(self.path))

    def _attribute_paths(self, graph: ObjectGraph) -> dict[str, str]:
        """The keys of the tensors, by their names and in the order of these; the graph is none of them."""
        keys = sorted((graph.names.get(key, key), key) for key in self._keys if key != GRAPH_KEY)
        paths = dict(keys)
        if len(paths) < len(keys):
            damaged_graph(_index(self.path), "it calls a tensor as another is called")
        return paths


class Listed(NamedTuple):
    """A checkpoint of a folder.

    Attributes:
        path: its prefix; of a V1 checkpoint the file, or the pattern of its files.
        step: the number at the end of its name; None without one.
        format: of its files.
        nbytes: their size together.
        latest: whether it is the one that a training would go on from.
    """

    path: Path
    step: int | None
    format: Format
    nbytes: int
    latest: bool


def list_checkpoints(folder: Path | str) -> list[Listed]:
    """The checkpoints of a folder: those of its state file that are there, and all others that lie in it.

    Returns:
        They, from the oldest to the newest: by step, then by time. The latest is what the state file says or,
        without one, the newest.

    Raises:
        DamagedCheckpointError: the state file is damaged.
        CheckpointError: it is no folder, or cannot be read.
    """
    folder = Path(folder)
    with _named_errors(folder):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder: name the one that the checkpoints are in")
        state = read_state(folder) if (folder / _STATE).is_file() else None
        found = _lying(folder)
        named = state.paths if state else ()
        found |= {path: _files(path) for path in named if path not in found and is_checkpoint(path)}
        sizes = {path: sum(file.stat().st_size for file in found[path]) for path in _oldest_first(found)}
    latest = state.latest if state else next(reversed(sizes), None)
    return [
        Listed(path, _step(path), _format(path), nbytes, path == latest) for path, nbytes in sizes.items()
    ]


def save_checkpoint(prefix: Path | str, tensors: Mapping[str, ArrayLike], *, state: bool = True) -> None:
    """Write a V2 checkpoint, as TensorFlow's ``Saver`` does.

    Args:
        prefix: what the names of its files begin with; folders that do not exist are made.
        tensors: by name; strings are arrays of objects, which are bytes. None may change meanwhile.
        state: the state file of the folder is to call it the latest; of the others those stay in it that are
            still there.

    Raises:
        UsageError: the prefix is a folder.
        DamagedCheckpointError: the folder's state file is damaged; nothing was changed.
        CheckpointError: a tensor or its name cannot be stored, and nothing was changed; or the state file
            cannot be written.
        OSError: the disk is full, for example.
    """
    prefix = Path(prefix)
    if prefix.is_dir():
        raise UsageError(f"{prefix} is a folder: name a checkpoint in it, as {prefix / 'model.ckpt'}")
    old = read_state(prefix.parent) if state and (prefix.parent / _STATE).is_file() else None
    write_bundle(prefix, tensors)
    if state:
        write_state(prefix.parent, _with_latest(old, prefix))


def _with_latest(old: CheckpointState | None, latest: Path) -> CheckpointState:
    """A state with another checkpoint as the latest, and without those that are gone."""
    if old is None:
        return CheckpointState(latest, (latest,), (time.time(),))
    kept = [number for number, path in enumerate(old.paths) if path != latest and is_checkpoint(path)]
    times = (*(old.timestamps[number] for number in kept), time.time()) if old.timestamps else ()
    return CheckpointState(
        latest, (*(old.paths[number] for number in kept), latest), times, old.last_preserved
    )


# ---- finding checkpoints


def _locate(path: Path) -> Path:
    """The prefix of the checkpoint that a path means."""
    if path.is_dir():
        return _newest(path)
    if path.is_file() and not _index(path).is_file():
        path = _of_file(path)
    if not is_checkpoint(path):
        raise CheckpointError(f"there is no checkpoint {path}: {_hint(path.parent)}")
    return path


def _of_file(path: Path) -> Path:
    """The prefix of the checkpoint that a file is of."""
    if path.name == _STATE:
        return _newest(path.parent)
    if path.suffix == ".meta":
        prefix = path.with_suffix("")
        raise CheckpointError(f"{path} is a graph, without values: name the checkpoint, as {prefix}")
    if path.suffix == _INDEX:
        return path.with_suffix("")
    if part := _DATA.fullmatch(path.name):
        return path.with_name(part[1])
    return _v1_pattern(path)


def _v1_pattern(path: Path) -> Path:
    """The pattern of a V1 checkpoint's files if the name of one is of that kind, else the file itself."""
    shard = _V1_SHARD.fullmatch(path.name)
    return path.with_name(f"{shard[1]}?????{shard[2]}") if shard else path


def _newest(folder: Path) -> Path:
    """The latest checkpoint of a folder, by its state file or, without one, by step and time."""
    if (folder / _STATE).is_file():
        latest = read_state(folder).latest
        if not is_checkpoint(latest):
            problem = f"names {str(latest)!r:.300} as the latest, which is not there"
            raise CheckpointError(f"{folder / _STATE} {problem}: {_hint(folder)}")
        return latest
    if found := _oldest_first(_lying(folder)):
        return found[-1]
    raise CheckpointError(f"there is no checkpoint in {folder}: name a folder that has one, or a prefix")


def _hint(folder: Path) -> str:
    """What to name where a checkpoint is not there."""
    found = _oldest_first(_lying(folder)) if folder.is_dir() else []
    return f"name another, as {found[-1]}" if found else "name another"


def _lying(folder: Path) -> dict[Path, list[Path]]:
    """The checkpoints in a folder, or else in its ``variables`` if it is a SavedModel, with their files."""
    variables = folder / "variables"
    return _lying_in(folder) or (_lying_in(variables) if is_checkpoint(variables / "variables") else {})


def _lying_in(folder: Path) -> dict[Path, list[Path]]:
    data, found = _data_files(folder), {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == _INDEX:
            found[path.with_suffix("")] = [path, *data[path.stem]]
        elif (v1 := _v1_pattern(path)) not in found and _is_v1(path) and is_checkpoint(v1):
            found[v1] = _files(v1)
    return found


def _files(path: Path) -> list[Path]:
    """The files of a checkpoint that are there."""
    if _index(path).is_file():
        return [_index(path), *_data_files(path.parent)[path.name]]
    return [file for file in files_of(path) if file.is_file()]


def _data_files(folder: Path) -> defaultdict[str, list[Path]]:
    """The data files of the V2 checkpoints in a folder, in order, by the names of the checkpoints."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if part := _DATA.fullmatch(path.name):
            found[part[1]].append(path)
    return found


def _is_v1(path: Path) -> bool:
    """Whether a file is a V1 checkpoint, or one of its files."""
    try:
        if not is_table(path):
            return False
        V1Checkpoint(path)
    except CheckpointError:
        return False
    return True


def _format(path: Path) -> Format:
    """The format of a checkpoint; a damaged one's as it seems to be."""
    if not _index(path).is_file():
        return "V1"
    try:
        wanted = GRAPH_KEY.encode()
        found = next((key for key, _ in Table(_index(path)) if key >= wanted), b"")
    except CheckpointError:
        return "V2"
    return "V2 objects" if found == wanted else "V2"


def _oldest_first(found: Mapping[Path, list[Path]]) -> list[Path]:
    """Checkpoints by step, then by the time of their first file; those without a step come first."""

    def age(path: Path) -> tuple[int, float]:
        step = _step(path)
        return -1 if step is None else step, found[path][0].stat().st_mtime

    return sorted(found, key=age)


def _step(path: Path) -> int | None:
    """The step at the end of a checkpoint's name."""
    found = _STEP.search(path.name)
    return int(found[1]) if found else None


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}{_INDEX}")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
