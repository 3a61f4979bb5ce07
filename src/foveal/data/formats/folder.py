"""Image folders: a folder for each class, with or without folders for the parts of the data set above."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, overload

import numpy as np

from foveal.data.formats.encoded import EncodedSource, Inspection, assemble, inspect_files, load_image_file
from foveal.data.formats.index import load_or_build, printable
from foveal.data.formats.parts import WORDS, walk
from foveal.errors import DataError, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.encoded import ImageTable
    from foveal.data.formats.parts import Folder
    from foveal.data.source import DataSet

# Files that lie about in such folders and are not meant to be images: not even reported.
_OTHERS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".pdf",
    ".py", ".ipynb", ".db", ".ini", ".log", ".mat", ".npy", ".npz", ".pkl", ".zip", ".tar", ".gz", ".xz",
)  # fmt: skip


def open_folder(
    path: Path,
    progress: ProgressReporter | None = None,
    *,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    hold: bool = True,
) -> DataSet:
    """A folder of images, ``[PART/]CLASS/.../FILE``.

    Folders named train, val, valid, validation, dev, test or eval are the parts, if one is to train on. All
    images below the folder of a class, however deep, are of that class; a folder with no image is none.
    Hidden files, and those whose names end in .txt, .json and the like, are left out. What else cannot be
    read as an image is not fatal: the sources list it in ``rejected``.

    Args:
        path: the folder.
        progress: is told how far indexing and decoding are, in bytes.
        train: the subfolder that is the train part, where its name does not tell.
        validation: that of the validation part.
        test: that of the test part.
        classes: the names of the classes, in order; if None, those of the folders of the train part, sorted.
        hold: decode images that are small and of one size into memory; see ``preload``.

    Raises:
        DataError: there is no such folder, it has no images, or those of one class only; a folder cannot be
            read; or a part has a class that is not in the train part.
    """
    roots = _find_parts(path, {"train": train, "validation": validation, "test": test})
    parts = {part: _open_part(root, progress) for part, root in roots.items()}
    names = list(classes) if classes is not None else parts["train"].classes()
    if len(names) < 2:
        what = f"has images of one class only, {names[0]!r}" if names else "has no images"
        raise DataError(f"{printable(roots['train'])}: {what}: there must be a folder of them for each class")
    sources = {part: each.source(names) for part, each in parts.items()}
    return assemble(sources, hold=hold, progress=progress)


class FolderSource(EncodedSource):
    """Images in files of their own.

    Args:
        paths: the files.
        table: what indexing found out about them.
        classes: class names.
        rejected: path and reason of what are no images.
    """

    def __init__(
        self,
        paths: Sequence[str],
        table: ImageTable,
        classes: Sequence[str],
        rejected: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._paths = paths
        super().__init__(table, classes, rejected)

    def key(self, index: int) -> str:
        """The path of the file."""
        return printable(self._paths[index])

    def _load(self, indices: NDArray[np.int64]) -> list[bytes]:
        return [load_image_file(self._paths[index], self.key(index)) for index in indices.tolist()]


class PathList(Sequence[str]):
    """Paths, each in as many bytes as it has and eight for its place: a million in tens of megabytes."""

    def __init__(self, paths: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q", [0])
        for path in paths:
            joined += os.fsencode(path)
            ends.append(len(joined))
        self._joined, self._ends = bytes(joined), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """A path, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._joined[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[str]:
        """All paths, in order."""
        return (os.fsdecode(self._joined[start:stop]) for start, stop in pairwise(self._ends))


@dataclass(frozen=True)
class _Part:
    """The images below one root; the targets of ``table`` are indices into ``folders``."""

    root: Path
    folders: list[str]
    paths: PathList
    table: ImageTable
    rejected: list[tuple[str, str]]

    def classes(self) -> list[str]:
        """The names of the folders that have images."""
        return [printable(self.folders[label]) for label in np.unique(self.table.targets).tolist()]

    def source(self, classes: Sequence[str]) -> FolderSource:
        for name in self.classes():
            if name not in classes:
                raise DataError(
                    f"{printable(self.root / name)}: not one of the classes: {suggestion(name, classes)}"
                )
        numbers = {name: number for number, name in enumerate(classes)}
        targets = np.array([numbers.get(printable(folder), -1) for folder in self.folders])
        table = replace(self.table, targets=targets[self.table.targets])
        return FolderSource(self.paths, table, classes, self.rejected)


def _find_parts(path: Path, given: Mapping[str, str | None]) -> dict[str, Path]:
    """The root of each part."""
    if not path.is_dir():
        what = "is a file, not a folder of images" if path.exists() else "there is no such folder"
        raise DataError(f"{printable(path)}: {what}")
    folders = next(walk(str(path))).folders
    words: dict[str, list[str]] = {}
    for name in folders:
        if (word := name.lower()) in WORDS and next(walk(str(path / name))).folders:
            words.setdefault(WORDS[word], []).append(name)
    named = {part: [name] for part, name in given.items() if name}
    if named:
        named = {"train": words.get("train", [])} | named
    elif "train" in words or (words and sum(map(len, words.values())) == len(folders)):
        named = words
    else:
        return {"train": path}
    if not named.get("train"):
        others = " and a ".join(part for part in named if part != "train")
        raise DataError(f"{printable(path)}: has a {others} part, and no folder named train")
    for part, names in named.items():
        if len(names) > 1:
            raise DataError(f"{printable(path)}: {' and '.join(names)} are both a {part} part: say which is")
    return {part: path / named[part][0] for part in ("train", "validation", "test") if part in named}


def _open_part(root: Path, progress: ProgressReporter | None) -> _Part:
    """Look at the files below a root, or at the index of them."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: there is no such folder")
    top = next(walk(str(root)))
    rejected = [(printable(root / name), "is in no folder of a class") for name in image_names(top)]
    labels = array("q")

    def files() -> Iterator[str]:
        for label, name in enumerate(top.folders):
            for folder in walk(str(root / name)):
                links = (printable(f"{folder.path}/{link}") for link in folder.broken)
                rejected.extend((link, "is a link to nothing") for link in links)
                for file in image_names(folder):
                    labels.append(label)
                    yield f"{folder.path}/{file}"

    paths = PathList(files())
    if not len(paths):
        raise DataError(f"{printable(root)}: has no images: there must be a folder of them for each class")

    def key(number: int) -> str:
        return printable(paths[number])

    arrays = load_or_build(
        paths, "folder 1", lambda: inspect_files(paths, key, progress).arrays(), origin=[root]
    )
    found = Inspection.of(arrays, key)
    if not found.good.all():
        paths = PathList(path for path, kept in zip(paths, found.good.tolist(), strict=True) if kept)
    table = found.table(np.frombuffer(labels, np.int64))
    return _Part(root, top.folders, paths, table, rejected + found.rejected)


def image_names(folder: Folder) -> list[str]:
    """The files of a folder that are meant to be images: all but those that usually lie beside them."""
    return [name for name in folder.files if not name.lower().endswith(_OTHERS)]
