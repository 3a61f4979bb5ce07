"""CSV files: images as rows of pixels or as names of image files, or plain numbers; each with a label.

How the text is read, see ``delimited.py``; what columns and labels are, ``columns.py``.
"""

from __future__ import annotations

import math
import os
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.formats.columns import (
    IMAGE_NAMES,
    LABEL_NAMES,
    Classes,
    LabelEncoder,
    RowKeys,
    RowSource,
    is_number,
    join,
    square,
)
from foveal.data.formats.delimited import Dialect, read_rows
from foveal.data.formats.encoded import assemble
from foveal.data.formats.image_files import index_image_files
from foveal.data.formats.index import printable
from foveal.data.formats.parts import find_parts
from foveal.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.columns import Column, Columns, Labels
    from foveal.data.formats.delimited import Rows
    from foveal.data.source import DataSet, Source

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_NO_PIXEL = "is not a pixel, a whole number from 0 to 255 (plain numbers: data.options.features = '*')"


def open_csv(
    path: Path,
    progress: ProgressReporter | None = None,
    *,
    train: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    label: Column | None = None,
    image: Column | None = None,
    pixels: str | Sequence[Column] | None = None,
    shape: Sequence[int] | None = None,
    channels_first: bool = False,
    features: str | Sequence[Column] | None = None,
    defaults: Mapping[Column, float | str] | None = None,
    classes: Sequence[str] | int | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    hold: bool = True,
) -> DataSet:
    """The labelled images, or rows of numbers, in CSV files.

    A column is given by its name in the header or by its number from 0 (-1: the last). Several columns are a
    list of these, or a pattern of names: ``"pixel*"``, or ``"*"`` for all but the label. At most one of
    ``image``, ``pixels`` and ``features`` is given. Without any, a column named image, path, file or
    filename has the names of image files; else all columns but the label are pixels, where ``shape`` is given
    or their number is a square from 8 x 8 on; else they are features.

    Args:
        path: a file, a folder of files, or a pattern; see ``foveal.data.formats.parts.find_parts``.
        progress: told of what is read.
        train: pattern of the files to learn from; by default names decide.
        validation: pattern of those to make choices on.
        test: pattern of those to test on.
        label: the label column; by default the one that is named label, labels, class or target.
        image: the column with names of image files, relative to the CSV file's folder.
        pixels: columns of whole numbers from 0 to 255: uint8 ``[N, H, W, C]``, held in memory.
        shape: height, width and channels of these images; by default they are square and grey.
        channels_first: the pixels are stored as [channels, height, width], else [height, width, channels].
        features: columns of any finite numbers: float32 ``[N, 1, 1, columns]``, held in memory.
        defaults: by column, what stands for an empty field, and for a number that is not finite.
        classes: the class names, or how many there are; see ``foveal.data.formats.columns.Classes.of``.
        header: whether the first row names the columns; see ``foveal.data.formats.delimited.Dialect``.
        delimiter: between fields; by default a tab in ``.tsv`` files, else a comma.
        encoding: of the text.
        hold: decode image files of one size into memory, if that is at most 512 MiB.

    Raises:
        DataError: a file is missing or malformed, a column or image is missing, a field is not what its
            column holds, or a part has a label that the train part lacks.
        RecipeError: the options cannot be used together.
    """
    dialect = Dialect(delimiter=delimiter, encoding=encoding, header=header)
    layout = _Layout(label, image, pixels, features, shape, channels_first, defaults or {})
    reader = _Reader(dialect, layout, progress)
    parts = find_parts(path, SUFFIXES, {"train": train, "validation": validation, "test": test})
    tables = {part: reader.read(paths) for part, paths in parts.items()}
    meaning = Classes.of(tables["train"].labels, classes, printable(path))
    sources = {part: table.source(meaning, progress) for part, table in tables.items()}
    return assemble(sources, hold=hold, progress=progress)


@dataclass(frozen=True)
class _Layout:
    """The options that say what the columns are."""

    label: Column | None
    image: Column | None
    pixels: str | Sequence[Column] | None
    features: str | Sequence[Column] | None
    shape: Sequence[int] | None
    channels_first: bool
    defaults: Mapping[Column, float | str]

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("image", "pixels", "features") if getattr(self, kind) is not None]
        if len(kinds) > 1:
            raise RecipeError(f"data.options: give one of {' and '.join(kinds)}, not both")
        if self.shape is not None and (self.image is not None or self.features is not None):
            raise RecipeError(f"data.options.shape is for pixels: leave out {kinds[0]}")
        shape = self.shape
        if shape is not None and (
            len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape)
        ):
            raise RecipeError(f"data.options.shape = {shape}: height, width and channels, each at least 1")

    def expected(self) -> set[str]:
        """Words by which a header is known: those of the options, and the usual ones."""
        lists = [
            each for each in (self.pixels, self.features) if each is not None and not isinstance(each, str)
        ]
        named = [self.label, self.image, *self.defaults, *(column for columns in lists for column in columns)]
        given = {column for column in named if isinstance(column, str) and not column.isdigit()}
        return given | {*LABEL_NAMES, *IMAGE_NAMES}

    def plan(self, columns: Columns) -> _Plan:
        """Decide by the first file what is what in all of them."""
        label = columns.find_label(self.label)
        if (image := self._image(columns, label)) is not None:
            return _Plan(columns.reference(label), columns.reference(image))
        wanted = next((each for each in (self.pixels, self.features) if each is not None), "*")
        numbers = columns.find_all(wanted, without=[label])
        if label in numbers:
            raise RecipeError(
                f"data.options: the label, {columns.describe(label)}, is among the other columns"
            )
        shape = None if self.features is not None else self._shape(columns, len(numbers))
        return _Plan(columns.reference(label), None, tuple(map(columns.reference, numbers)), shape)

    def _image(self, columns: Columns, label: int) -> int | None:
        if self.image is not None:
            return columns.find(self.image)
        if any(each is not None for each in (self.pixels, self.features, self.shape)):
            return None
        known = columns.known(IMAGE_NAMES)
        return None if known == label else known

    def _shape(self, columns: Columns, count: int) -> tuple[int, int, int] | None:
        """The shape of images of ``count`` pixels; None if these are no pixels."""
        if self.shape is None:
            if (shape := square(count)) is None and self.pixels is not None:
                raise RecipeError(
                    f"{columns.where}: {count} pixels are no square image: give data.options.shape"
                )
            return shape
        height, width, channels = self.shape
        if count != height * width * channels:
            raise DataError(
                f"{columns.where}: {count} columns of pixels, but data.options.shape = {list(self.shape)} "
                f"has {math.prod(self.shape)}"
            )
        return height, width, channels


@dataclass(frozen=True)
class _Plan:
    """What is in which column: labels; names of image files, or numbers (pixels if there is a shape)."""

    label: Column
    image: Column | None
    numbers: tuple[Column, ...] = ()
    shape: tuple[int, int, int] | None = None


class _Place:
    """Where the columns of a plan are in one file, and their defaults."""

    def __init__(self, plan: _Plan, columns: Columns, defaults: Mapping[Column, float | str]) -> None:
        self.label = columns.find(plan.label)
        self.image = None if plan.image is None else columns.find(plan.image)
        self.numbers = columns.find_all(plan.numbers)
        self.defaults = {columns.find(column): value for column, value in defaults.items()}
        wanted = {*self.numbers}
        self.fill = {column: _finite(value) for column, value in self.defaults.items() if column in wanted}


@dataclass
class _Table:
    """What was read of the files of one part: images, or the names of image files."""

    paths: Sequence[Path]
    labels: Labels
    rows: RowKeys
    arrays: list[NDArray[Any]]
    image: Column | None  # that has these names
    images: list[str]

    def source(self, classes: Classes, progress: ProgressReporter | None) -> Source:
        """The examples, with labels as class indices."""
        targets = classes.targets(self.labels, self.rows)
        if self.image is None:
            return RowSource(join(self.arrays), targets, classes.names, rows=self.rows)
        return index_image_files(
            self.paths, self.image, self.images, targets, classes.names, self.rows, progress
        )


class _Reader:
    """Reads the files of all parts by one plan, which follows from the first of them."""

    def __init__(self, dialect: Dialect, layout: _Layout, progress: ProgressReporter | None) -> None:
        self._dialect, self._layout, self._progress = dialect, layout, progress
        self._plan: _Plan | None = None

    def read(self, paths: Sequence[Path]) -> _Table:
        """Read the files of a part."""
        labels, keys, count = LabelEncoder(), RowKeys(paths), 0
        arrays: list[NDArray[Any]] = []
        images: list[str] = []
        for path in paths:
            place = None
            keys.begin(count)
            with closing(read_rows(path, self._dialect, self._layout.expected(), self._progress)) as blocks:
                for rows in blocks:
                    self._plan = plan = self._plan or self._layout.plan(rows.columns)
                    place = place or _Place(plan, rows.columns, self._layout.defaults)
                    labels.add(rows.texts(place.label, place.defaults.get(place.label)))
                    if place.image is None:
                        arrays.append(self._images(rows, place, plan.shape))
                    else:
                        names = rows.texts(place.image, place.defaults.get(place.image))
                        images += [os.path.join(path.parent, name) for name in names]  # noqa: PTH118 - one a row
                    count += len(rows)
        assert self._plan is not None  # a file without rows is refused
        return _Table(paths, labels.labels(), keys, arrays, self._plan.image, images)

    def _images(self, rows: Rows, place: _Place, shape: tuple[int, int, int] | None) -> NDArray[Any]:
        """The images of some rows: uint8 ``[n, H, W, C]``, or float32 ``[n, 1, 1, columns]``."""
        values = rows.numbers(place.numbers, place.fill, whole=shape is not None)
        with np.errstate(invalid="ignore", over="ignore"):
            images = values.astype(np.float32 if shape is None else np.uint8)
        wrong = ~np.isfinite(images) if shape is None else images != values
        if wrong.any():
            row, number = np.argwhere(wrong)[0].tolist()
            what = "is beyond the range of float32" if shape is None else _NO_PIXEL
            column = rows.columns.describe(place.numbers[number])
            raise DataError(f"{rows.where(row)}: {column}: {values[row, number]:g} {what}")
        if shape is None or not self._layout.channels_first:
            return images.reshape(len(images), *(shape or (1, 1, -1)))
        height, width, channels = shape
        return np.ascontiguousarray(images.reshape(-1, channels, height, width).transpose(0, 2, 3, 1))


def _finite(value: float | str) -> float:
    """A default as a number."""
    if isinstance(value, bool) or not is_number(str(value)) or not math.isfinite(float(value)):
        raise RecipeError(f"data.options.defaults: {value!r} is no finite number")
    return float(value)
