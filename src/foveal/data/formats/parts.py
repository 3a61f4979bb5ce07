"""Which files are the train, validation and test parts of a data set: a file, a folder or a pattern."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foveal.data.formats.index import printable
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# What a file or folder calls a part, and what it is called here.
WORDS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
_LETTER = r"[^\W\d_]"
_WORD = re.compile(
    rf"(?<!{_LETTER})({'|'.join(WORDS)})(?!{_LETTER})", re.IGNORECASE
)  # with no letter beside it
_SHARD = re.compile(r"-\d+-of-\d+$")
_WILDCARD = re.compile(r"[*?\[]")


def find_parts(
    path: Path, suffixes: Sequence[str], patterns: Mapping[str, str | Sequence[str] | None]
) -> dict[str, list[Path]]:
    """The files of each part, sorted by name (numbers in names by value).

    Args:
        path: a file; a folder; or a glob pattern (``data/train-*.csv``), each with all its files. What exists
            under that very name is not a pattern. Hidden files, and folders, do not count.
        suffixes: what such files' names end in (``.csv``); among those of a folder only these count. A
            shard's ending (``x.tfrecord-00003-of-00010``) counts as its name's without it;
            ``-00000-of-00000`` stands for any shard.
        patterns: the user's own, by ``train``, ``validation`` and ``test``, relative to the folder ``path``
            (or that of the file or pattern ``path``), or None. Without one, ``train`` is what others leave.
            Where all are None, the words train, val, valid, validation, dev, test and eval decide, as the
            name of the nearest folder or the first of them in the file's; where there is none, all is
            ``train``.

    Returns:
        Lists of files by ``"train"``, ``"validation"``, ``"test"``: only the parts there are, train always.

    Raises:
        DataError: nothing is there, or nothing of the kind, or a pattern matches nothing, or a file is in two
            parts, or in none.
    """
    asked = {part: [own] if isinstance(own, str) else list(own) for part, own in patterns.items() if own}
    if not asked:
        return _by_name(path, _find(path, suffixes))
    base = path if _is_folder(path) else path.parent
    parts = {
        part: _sorted({file for each in given for file in _find(base / each, suffixes)})
        for part, given in asked.items()
    }
    taken: dict[str, str] = {}
    for part, files in parts.items():
        for file in files:
            if (other := taken.setdefault(os.path.realpath(file), part)) != part:
                raise DataError(f"{printable(file)}: is in the {other} and in the {part} part")
    if "train" not in parts:
        rest = [file for file in _find(path, suffixes) if os.path.realpath(file) not in taken]
        if not rest:
            raise DataError(f"{printable(path)}: the patterns leave nothing to train on")
        parts["train"] = rest
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


class Folder(NamedTuple):
    """A folder's path, and the names in it: of folders, of files, and of links that lead nowhere."""

    path: str
    folders: list[str]
    files: list[str]
    broken: list[str]


def walk(folder: str) -> Iterator[Folder]:
    """A folder and all below it, in order; names that begin with a dot are left out.

    Links to folders are followed, except to one that the link, or ``folder``, is in.

    Raises:
        DataError: a folder cannot be read.
    """
    outside = frozenset(_place(str(parent)) for parent in Path(folder).resolve().parents)
    pending = [(folder, outside)]
    while pending:
        path, above = pending.pop()
        try:
            if (place := _place(path)) in above:
                continue
            with os.scandir(path) as found:
                entries = sorted((each for each in found if each.name[0] != "."), key=lambda each: each.name)
        except OSError as error:
            raise DataError(f"{printable(path)}: the folder cannot be read: {error.strerror}") from None
        kinds: dict[str, list[str]] = {"folder": [], "file": [], "broken": [], "device": []}
        for entry in entries:
            kinds[_kind(entry)].append(entry.name)
        yield Folder(path, kinds["folder"], kinds["file"], kinds["broken"])
        pending.extend((f"{path}/{name}", above | {place}) for name in reversed(kinds["folder"]))


def _place(path: str) -> tuple[int, int]:
    """What is the same for all paths to a folder."""
    now = os.stat(path)  # noqa: PTH116 - names are kept as str: there may be a million
    return now.st_dev, now.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        return "broken"
    return "broken" if entry.is_symlink() else "device"


def _find(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a file, a folder or a pattern, sorted."""
    if _is_folder(path):
        endings = tuple(suffix.lower() for suffix in suffixes)
        found = [
            Path(folder.path, name)
            for folder in walk(str(path))
            for name in folder.files + folder.broken
            if _SHARD.sub("", name).lower().endswith(endings)
            or _SHARD.sub("-00000-of-00000", name).endswith(endings)
        ]
        if not found:
            raise DataError(f"{printable(path)}: no file in it ends in {' or '.join(suffixes)}")
        return _sorted(found)
    if path.exists():
        return [path]
    found = [file for file in _glob(path) if file.is_file() and not file.name.startswith(".")]
    if not found:
        what = "no file matches this" if _WILDCARD.search(str(path)) else "there is no such file or folder"
        raise DataError(f"{printable(path)}: {what}")
    return _sorted(found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the folder above is closed to us
        raise DataError(f"{printable(path)}: cannot be opened: {error.strerror}") from None


def _glob(pattern: Path) -> list[Path]:
    """What a pattern matches; ``**`` follows no links."""
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if _WILDCARD.search(part)), len(parts))
    if fixed == len(parts):
        return []
    try:
        return list(Path(*parts[:fixed]).glob(str(Path(*parts[fixed:]))))
    except ValueError as error:
        raise DataError(f"{printable(pattern)}: not a pattern: {error}") from None


def _by_name(path: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Parts by the words in the names."""
    if path.is_file():
        return {"train": list(files)}
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_part(file, path), []).append(file)
    without = found.pop("", [])
    if not without and "train" not in found and not path.is_dir() and len(found) == 1:
        return {"train": list(files)}  # a pattern means what it matches, whatever that is called
    if without and "train" in found:
        raise DataError(
            f"{printable(without[0])}: its name tells no part, that of {printable(found['train'][0])} does: "
            "give patterns for the parts"
        )
    train = found.get("train", without)
    if not train:
        raise DataError(f"{printable(path)}: has a {' and a '.join(found)} part, and none to train on")
    return {"train": train} | {part: found[part] for part in ("validation", "test") if part in found}


def _part(file: Path, path: Path) -> str:
    """The part that a file belongs to by its folders, nearest first, or its name; or ``""``."""
    folders = file.relative_to(path).parts[:-1] if path.is_dir() else file.parts[-2:-1]
    for folder in reversed(folders):
        if (word := folder.lower()) in WORDS:
            return WORDS[word]
    first = _WORD.search(file.name)
    return WORDS[first[1].lower()] if first else ""


def _sorted(files: Sequence[Path] | set[Path]) -> list[Path]:
    return sorted(files, key=lambda file: ([_natural(part) for part in file.parts], file))


def _natural(name: str) -> list[str | int]:
    """A key in which numbers stand by value: text and number in turn."""
    pieces: list[str | int] = list(re.split(r"(\d+)", name))
    pieces[1::2] = map(int, pieces[1::2])
    return pieces
