"""Columns of tables, whatever file they are in: which is which, and labels as class indices."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.formats.index import printable
from foveal.data.source import CLASS_LIMIT, ArraySource, class_names
from foveal.errors import DataError, RecipeError, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Column = str | int  # a name, or a number from 0; -1 is the last

LABEL_NAMES = ("label", "labels", "class", "target")
IMAGE_NAMES = ("image", "img", "path", "file", "filename", "file_name", "image_path")

_SHOWN = 200  # characters of names in a message, and names that are gone through for one like it
_SQUARE_SIDE = 8  # so many columns squared, or more, are taken for pixels; the digits have 8 x 8


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    Attributes:
        where: the file, for messages.
        names: what its header calls them, or their numbers as text.
        numbered: it has no header.
    """

    where: str
    names: tuple[str, ...]
    numbered: bool = False

    def find(self, wanted: Column) -> int:
        """The number of a column.

        Raises:
            DataError: there is none, or there are two of that name.
            RecipeError: ``wanted`` is neither a name nor a number.
        """
        if isinstance(wanted, bool) or not isinstance(wanted, Column):
            raise RecipeError(f"column {wanted!r}: a name or a number")
        width = len(self.names)
        if isinstance(wanted, int):
            if not -width <= wanted < width:
                raise DataError(f"{self.where}: has no column {wanted}: there are {width}, from 0")
            return wanted % width
        places = self._places.get(wanted, [])
        if len(places) > 1:
            raise DataError(f"{self.where}: {len(places)} columns are named {shorten(wanted)}: give a number")
        if not places:
            header = " (it has no header; `header = true` if it does)" if self.numbered else ""
            hint = suggestion(wanted, list(filter(None, self.names[:_SHOWN])))
            raise DataError(f"{self.where}: has no column {shorten(wanted)}{header}: {hint[:_SHOWN]}")
        return places[0]

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            places.setdefault(name, []).append(number)
        return places

    def find_all(self, wanted: str | Sequence[Column], without: Iterable[int] = ()) -> list[int]:
        """The numbers of several columns: as they are listed, or all but some that match a pattern.

        Columns without a name match no pattern.

        Raises:
            DataError: one is missing, or none matches.
        """
        if not isinstance(wanted, str):
            return [self.find(column) for column in wanted]
        others = {*range(len(self.names))}.difference(without)
        found = [
            number for number in sorted(others) if (name := self.names[number]) and fnmatchcase(name, wanted)
        ]
        if not found:
            raise DataError(f"{self.where}: no column's name matches {wanted!r}")
        return found

    def known(self, names: Sequence[str]) -> int | None:
        """The only column with one of these names, in capitals or not; None if it is not the only one."""
        found = [number for number, name in enumerate(self.names) if name.lower() in names]
        return found[0] if len(found) == 1 else None

    def find_label(self, wanted: Column | None) -> int:
        """The number of the label column: the one asked for, or the one that is called so.

        Raises:
            DataError: there is none.
        """
        if wanted is not None:
            return self.find(wanted)
        if (found := self.known(LABEL_NAMES)) is None:
            names = "no header" if self.numbered else f"the columns {listing(self.names)}"
            raise DataError(
                f"{self.where}: which column is the label? It has {names}: "
                "give data.options.label, a name or a number from 0"
            )
        return found

    def reference(self, number: int) -> Column:
        """What finds a column in this file, and in others of its kind: its name, if only it has that name."""
        name = self.names[number]
        return number if self.numbered or not name or len(self._places[name]) > 1 else name

    def describe(self, number: int) -> str:
        """A column's name for messages."""
        return f"column {number}" if self.numbered else f"column {shorten(self.names[number])}"


def square(columns: int) -> tuple[int, int, int] | None:
    """The shape of a square grey image of so many pixels; None if that is no square of 8 x 8 or larger."""
    side = math.isqrt(columns)
    return (side, side, 1) if side * side == columns and side >= _SQUARE_SIDE else None


@dataclass(frozen=True)
class Labels:
    """A label column.

    Attributes:
        values: the distinct labels, as text.
        codes: int64 ``[N]``, indices into them.
    """

    values: tuple[str, ...]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """What labels stand for.

    Attributes:
        names: the class names.
        by_index: labels are indices of names, and not names.
    """

    names: tuple[str, ...]
    by_index: bool = False

    @classmethod
    def of(cls, labels: Labels, given: Sequence[str] | int | None, where: str) -> Classes:
        """The classes of the training part's labels.

        Args:
            labels: the labels.
            given: the class names, or how many there are. By default the distinct labels, sorted: by value if
                all are whole numbers, else as text. If no label is among the names given, and all are whole
                numbers, they are indices.
            where: the files, for messages.

        Raises:
            DataError: the labels are numbers with fractions, or too many.
        """
        numbers = [_whole(value) for value in labels.values]
        if given is not None:
            names = class_names(given)
            spelled = {*labels.values, *map(str, numbers)}
            return cls(names, by_index=None not in numbers and spelled.isdisjoint(names))
        if len(labels.values) > CLASS_LIMIT:
            raise DataError(f"{where}: {len(labels.values):,} different labels: is this the label column?")
        if None not in numbers:
            return cls(tuple(str(number) for number in sorted({n for n in numbers if n is not None})))
        if all(math.isfinite(_value(label)) for label in labels.values):
            odd = labels.values[numbers.index(None)]
            raise DataError(
                f"{where}: the label {odd} is neither a whole number nor a name: is this the label column? "
                "(If it is, give data.options.classes.)"
            )
        return cls(tuple(sorted(labels.values)))

    def targets(self, labels: Labels, key: Callable[[int], str]) -> NDArray[np.int64]:
        """Class indices, int64 ``[N]``.

        Raises:
            DataError: a label is none of the classes; ``key`` names its row.
        """
        places = {name: index for index, name in enumerate(self.names)}
        found = np.array([self._place(value, places) for value in labels.values], np.int64)
        targets = found[labels.codes]
        if (wrong := np.flatnonzero(targets < 0)).size:
            row = int(wrong[0])
            label = shorten(labels.values[labels.codes[row]])
            raise DataError(
                f"{key(row)}: label {label} is none of the {len(self.names)} classes: {listing(self.names)}"
            )
        return targets

    def _place(self, value: str, places: dict[str, int]) -> int:
        if (number := _whole(value)) is None or value in places:
            return places.get(value, -1)
        if self.by_index:
            return number if 0 <= number < len(self.names) else -1
        return places.get(str(number), -1)


class LabelEncoder:
    """Collects a label column, a piece at a time; memory for each distinct label once."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._pieces: list[NDArray[np.int64]] = [np.empty(0, np.int64)]

    def add(self, labels: Sequence[str]) -> None:
        """Append labels."""
        codes = self._codes
        coded = (codes.setdefault(label, len(codes)) for label in labels)
        self._pieces.append(np.fromiter(coded, np.int64, len(labels)))

    def labels(self) -> Labels:
        """All of them."""
        return Labels(tuple(self._codes), np.concatenate(self._pieces))


class RowKeys:
    """Rows numbered through several files; called with a number, the name of that row, for messages."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._starts: list[int] = []

    def begin(self, number: int) -> None:
        """Say that the next file begins with row ``number``."""
        self._starts.append(number)

    def locate(self, number: int) -> tuple[Path, int]:
        """A row's file, and its own number in that, from 0."""
        file = bisect_right(self._starts, number) - 1
        return self._paths[file], number - self._starts[file]

    def __call__(self, number: int) -> str:
        """``FILE row N``, counted from 0 in each file."""
        path, row = self.locate(number)
        return f"{printable(path)} row {row}"


@dataclass(frozen=True, kw_only=True)
class RowSource(ArraySource):
    """Rows of numbers, as images held in memory.

    Attributes:
        rows: where each comes from.
    """

    rows: RowKeys

    def key(self, index: int) -> str:
        """``FILE row N``, counted from 0 within the file."""
        return self.rows(index)


def join(pieces: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate at least one array, emptying the list: at no time is everything there twice."""
    whole: NDArray[Any] = np.empty((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype)
    stop = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[stop - len(piece) : stop] = piece
        stop -= len(piece)
    return whole


def shorten(text: str) -> str:
    """A field in quotes, for messages."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def listing(names: Sequence[str]) -> str:
    """The first of some names, for messages."""
    some = ", ".join(names[:8])
    return f"{some[:_SHOWN]}, ..." if len(names) > 8 or len(some) > _SHOWN else some


def is_number(text: str) -> bool:
    """Whether ``text`` is a number, finite or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(text: str) -> float:
    """The value of a number; NaN of anything else."""
    return float(text) if is_number(text) else math.nan


def _whole(text: str) -> int | None:
    """The value of a whole number, however it is written: ``5``, ``05``, ``5.0``, ``5e0``."""
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    value = _value(text)
    return int(value) if abs(value) < 2**53 and value.is_integer() else None
