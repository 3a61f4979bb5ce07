"""The image files that a person names: files, folders of them, and patterns."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foveal.data.formats.folder import image_names
from foveal.data.formats.parts import walk
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class NamedImage(NamedTuple):
    """A file that should be an image, or a name that leads to none, and why."""

    path: str
    error: str | None = None


def find_images(names: Iterable[str]) -> Iterator[NamedImage]:
    """The files that names stand for, in order; nothing of them is read.

    Args:
        names: of files; of folders, which stand for all files below them that may be images (not hidden ones,
            nor those that end in .txt, .json and the like); or patterns (``photos/**/*.jpg``), which stand
            for the files they match. What exists under that very name is not a pattern.
    """
    for name in names:
        if Path(name).is_dir():
            yield from _below(name.rstrip("/") or "/")
        elif glob.has_magic(name) and not Path(name).exists():
            yield from _matching(name)
        else:
            yield NamedImage(name)


def _below(name: str) -> Iterator[NamedImage]:
    found = False
    try:
        for folder in walk(name):
            for file in image_names(folder):
                found = True
                yield NamedImage(f"{folder.path}/{file}")
            for link in folder.broken:
                found = True
                yield NamedImage(f"{folder.path}/{link}", f"{folder.path}/{link}: is a link to nothing")
    except DataError as error:
        yield NamedImage(name, str(error))
        return
    if not found:
        yield NamedImage(name, f"{name}: is a folder without images")


def _matching(pattern: str) -> Iterator[NamedImage]:
    files = [path for path in sorted(glob.glob(pattern, recursive=True)) if not Path(path).is_dir()]  # noqa: PTH207 - the pattern may be absolute
    yield from map(NamedImage, files) if files else [NamedImage(pattern, f"{pattern}: no file matches")]
