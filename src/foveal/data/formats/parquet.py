"""Parquet and Arrow tables with a column of images, as in Hugging Face's data sets, or of plain numbers.

How files are read, see ``foveal.data.formats.arrow_files``; what labels are, ``foveal.data.formats.columns``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.formats.arrow_files import GroupCache, open_table
from foveal.data.formats.columns import (
    IMAGE_NAMES,
    Classes,
    Columns,
    LabelEncoder,
    Labels,
    RowKeys,
    RowSource,
    join,
    listing,
)
from foveal.data.formats.encoded import EncodedSource, Inspection, assemble, inspect_images, load_image_file
from foveal.data.formats.index import load_or_build, printable
from foveal.data.formats.parts import find_parts
from foveal.data.source import class_names
from foveal.errors import DataError, ImageError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.arrow_files import TableFile
    from foveal.data.formats.columns import Column
    from foveal.data.source import DataSet, Source

SUFFIXES = (".parquet", ".arrow")


def open_parquet(
    path: Path,
    progress: ProgressReporter | None = None,
    *,
    train: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    image: Column | None = None,
    label: Column | None = None,
    classes: Sequence[str] | int | None = None,
    features: str | Sequence[Column] | None = None,
    hold: bool = True,
) -> DataSet:
    """The labelled images, or rows of numbers, in Parquet or Arrow files.

    An image column holds the bytes of image files, or the paths of files relative to the table's folder, or
    both in the fields ``bytes`` and ``path``. Row groups are read when they are asked for, and the last 512
    MiB of them kept.

    Args:
        path: a file, a folder of files, or a pattern; see ``foveal.data.formats.parts.find_parts``.
        progress: told of what is read.
        train: pattern of the files to learn from; by default names decide.
        validation: pattern of those to make choices on.
        test: pattern of those to test on.
        image: the image column, by name or number; by default the only one that is, or is named as, an image.
        label: the label column; by default the only ``ClassLabel``, or the one named label, labels, class
            or target.
        classes: the class names, or how many there are; by default those of the ``ClassLabel``, or see
            ``foveal.data.formats.columns.Classes.of``.
        features: columns of numbers, listed or as a pattern of names; by default, if there is no image
            column, all numbers but the label: float32 ``[N, 1, 1, columns]``, held in memory.
        hold: decode images of one size into memory, if that is at most 512 MiB.

    Raises:
        DataError: a file is missing or malformed, a column is missing or not of its kind, or a part has a
            label that the train part lacks; or pyarrow is not installed.
        RecipeError: the options cannot be used together.
    """
    if image is not None and features is not None:
        raise RecipeError("data.options: give one of image and features, not both")
    parts = find_parts(path, SUFFIXES, {"train": train, "validation": validation, "test": test})
    files = {name: [open_table(each) for each in parts[name]] for name in parts}
    plan = _plan(files["train"][0], image, label, features)
    read = _read_numbers if plan.image is None else _read_images
    tables = {part: read(some, plan, progress) for part, some in files.items()}
    if classes is None and plan.classes is not None:
        meaning = Classes(plan.classes, by_index=True)
    else:
        meaning = Classes.of(tables["train"].labels, classes, printable(path))
    sources = {part: table.source(meaning) for part, table in tables.items()}
    return assemble(sources, hold=hold, progress=progress)


@dataclass(frozen=True)
class _Plan:
    """What is in which column: labels and the names of their classes; images, or numbers."""

    label: str
    classes: tuple[str, ...] | None
    image: str | None
    numbers: tuple[str, ...] = ()


def _plan(
    file: TableFile, image: Column | None, label: Column | None, features: str | Sequence[Column] | None
) -> _Plan:
    """Decide by the first file what is what in all of them."""
    columns, known = Columns(file.where, tuple(file.schema.names)), _hugging_face(file.schema)
    labels = [name for name in columns.names if known.get(name) == "ClassLabel"]
    target = columns.names[columns.find_label(labels[0] if label is None and len(labels) == 1 else label)]
    classes = _class_names(file.schema, target)
    images = [each.name for each in file.schema if each.name != target and _is_image(each, known)]
    if image is not None:
        return _Plan(target, classes, columns.names[columns.find(image)])
    if features is None and len(images) > 1:
        raise DataError(
            f"{file.where}: which column is the image, {' or '.join(images)}? Give data.options.image"
        )
    if features is None and images:
        return _Plan(target, classes, images[0])
    if features is None:
        numbers = [each.name for each in file.schema if each.name != target and _is_number(each.type)]
    else:
        numbers = [columns.names[each] for each in columns.find_all(features, [columns.find(target)])]
    if not numbers:
        raise DataError(f"{file.where}: has no column of images or of numbers: {listing(columns.names)}")
    if target in numbers:
        raise RecipeError(f"data.options: the label, column {target!r}, is among the features")
    return _Plan(target, classes, None, tuple(numbers))


def _hugging_face(schema: pa.Schema) -> dict[str, Any]:
    """The kinds of columns, by name, that Hugging Face's library writes into a schema."""
    return {name: each.get("_type") for name, each in _features(schema).items()}


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of a ``ClassLabel``, in order."""
    names = _features(schema).get(label, {}).get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return class_names(names)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: each for name, each in described if isinstance(each, dict)}


def _is_image(column: pa.Field, known: Mapping[str, Any]) -> bool:
    from pyarrow import types

    if column.name in known:
        return bool(known[column.name] == "Image")
    if types.is_struct(column.type):
        return bool(column.type.get_field_index("bytes") >= 0)
    return _is_bytes(column.type) or (_is_text(column.type) and column.name.lower() in IMAGE_NAMES)


def _is_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


@dataclass
class _Table:
    """What was read of the files of one part: numbers, or what indexing found of images."""

    groups: _Groups
    labels: Labels
    numbers: list[NDArray[np.float32]]
    image: str | None = None
    found: Inspection | None = None

    def source(self, classes: Classes) -> Source:
        """The examples, with labels as class indices."""
        rows = self.groups.rows
        targets = classes.targets(self.labels, rows)
        if self.image is None or self.found is None:
            return RowSource(join(self.numbers), targets, classes.names, rows=rows)
        return TableImageSource(self.groups, self.image, targets, classes.names, self.found)


def _read_numbers(files: Sequence[TableFile], plan: _Plan, progress: ProgressReporter | None) -> _Table:
    groups, labels = _Groups(files), LabelEncoder()
    numbers = [np.empty((0, 1, 1, len(plan.numbers)), np.float32)]
    for first, table in groups.read([plan.label, *plan.numbers], progress):
        labels.add(_texts(table, plan.label, first, groups))
        values = [_values(table, name, first, groups) for name in plan.numbers]
        numbers.append(np.stack(values, axis=-1)[:, None, None])
    return _Table(groups, labels.labels(), numbers)


def _read_images(files: Sequence[TableFile], plan: _Plan, progress: ProgressReporter | None) -> _Table:
    """Look at all images, or at what is remembered of them."""
    assert plan.image is not None
    image, label = plan.image, plan.label

    def build() -> Mapping[str, NDArray[np.generic]]:
        groups, labels = _Groups(files), LabelEncoder()

        def contents() -> Iterator[bytes | DataError]:
            for first, table in groups.read([image, label], progress):
                labels.add(_texts(table, label, first, groups))
                yield from _Images(table, image, first, groups)

        found, coded = inspect_images(contents(), groups.rows), labels.labels()
        values = np.frombuffer(json.dumps(coded.values).encode(), np.uint8)
        return found.arrays() | {"groups": groups.array(), "codes": coded.codes, "values": values}

    purpose = f"parquet 1 image={image!r} label={label!r}"
    arrays = load_or_build([file.path for file in files], purpose, build)
    groups = _Groups(files, arrays["groups"].tolist())
    labels = Labels(tuple(json.loads(arrays["values"].tobytes())), arrays["codes"].astype(np.int64))
    return _Table(groups, labels, [], image, Inspection.of(arrays, groups.rows))


class _Groups:
    """The groups of rows of several files, numbered through.

    Args:
        files: the files.
        found: file, place and number of rows of every group, if they have been read before.
    """

    def __init__(self, files: Sequence[TableFile], found: Sequence[Sequence[int]] = ()) -> None:
        self.files, self.found = files, list(found)
        self.rows = RowKeys([file.path for file in files])
        if found:
            file, _, rows = self.array().T
            for first in np.cumsum([0, *np.bincount(file, rows, len(files))[:-1]]).tolist():
                self.rows.begin(int(first))

    def read(self, names: Sequence[str], progress: ProgressReporter | None) -> Iterator[tuple[int, pa.Table]]:
        """Read some columns of all files; the number of each group's first row, and its rows."""
        first = 0
        if progress is not None:
            progress.start(f"reading {self.files[0].path.name}", sum(file.size for file in self.files), 0)
        try:
            for number, file in enumerate(self.files):
                self.rows.begin(first)
                columns = Columns(file.where, tuple(file.schema.names))
                for name in names:
                    columns.find(name)
                for place, table in file.groups(names):
                    self.found.append((number, place, table.num_rows))
                    yield first, table
                    first += table.num_rows
                if progress is not None:
                    progress.advance(file.size)
        finally:
            if progress is not None:
                progress.finish()

    def array(self) -> NDArray[np.int64]:
        """What was found, int64 ``[groups, 3]``: file, place, rows."""
        return np.array(self.found, np.int64).reshape(-1, 3)


class TableImageSource(EncodedSource):
    """Images in tables, read when they are asked for: a ``Source``.

    Args:
        groups: where the rows are.
        image: the column.
        targets: int64 ``[N]``, every row's class index.
        classes: class names.
        found: which rows are images, and what.
    """

    def __init__(
        self,
        groups: _Groups,
        image: str,
        targets: NDArray[np.int64],
        classes: Sequence[str],
        found: Inspection,
    ) -> None:
        self._groups, self._image, self._rows = groups, image, groups.rows
        self._starts = np.cumsum([0, *groups.array()[:, 2]])
        self._numbers = np.flatnonzero(found.good)
        self._cache = GroupCache()
        super().__init__(found.table(targets), classes, found.rejected)

    def key(self, index: int) -> str:
        """``FILE row N``, counted from 0 within the file."""
        return self._rows(int(self._numbers[index]))

    def _load(self, indices: NDArray[np.int64]) -> list[bytes]:
        numbers = self._numbers[indices]
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        contents = [b""] * len(indices)
        for group in np.unique(groups).tolist():
            first = int(self._starts[group])
            images = _Images(
                self._cache.get(group, partial(self._read, group)), self._image, first, self._groups
            )
            for place in np.flatnonzero(groups == group).tolist():
                contents[place] = images.load(int(numbers[place]) - first)
        return contents

    def _read(self, group: int) -> pa.Table:
        file, place, rows = self._groups.found[group]
        table = self._groups.files[file].read(place, [self._image])
        if table.num_rows != rows:
            raise DataError(f"{self._groups.files[file].where}: has changed since it was indexed")
        return table


class _Images:
    """The images in a group of rows, whichever way their column holds them."""

    def __init__(self, table: pa.Table, name: str, first: int, groups: _Groups) -> None:
        column, self._first, self._groups = table.column(name), first, groups
        self._rows = table.num_rows
        kind = column.type
        if hasattr(kind, "get_field_index"):  # a struct
            fields = dict(zip((field.name for field in kind), column.flatten(), strict=True))
        else:
            fields = {"bytes" if _is_bytes(kind) else "path": column}
        fields = {name: field for name, field in fields.items() if str(field.type) != "null"}
        self._bytes, self._paths = fields.get("bytes"), fields.get("path")
        wrong_bytes = self._bytes is not None and not _is_bytes(self._bytes.type)
        wrong_paths = self._paths is not None and not _is_text(self._paths.type)
        if wrong_bytes or wrong_paths or self._bytes is self._paths is None:
            raise DataError(f"{groups.rows(first)}: column {name!r} holds {kind}, and no images")

    def __iter__(self) -> Iterator[bytes | DataError]:
        for row in range(self._rows):
            try:
                yield self.load(row)
            except DataError as error:
                yield error

    def load(self, row: int) -> bytes:
        """The bytes of one image."""
        content = None if self._bytes is None else self._bytes[row].as_py()
        if content is not None:
            return bytes(content)
        path = None if self._paths is None else self._paths[row].as_py()
        key = self._groups.rows(self._first + row)
        if path is None:
            raise ImageError(f"{key}: has no image")
        table, _ = self._groups.rows.locate(self._first + row)
        return load_image_file(str(table.parent / path), key)


def _texts(table: pa.Table, name: str, first: int, groups: _Groups) -> list[str]:
    """A label column as text."""
    import pyarrow as pa

    column = table.column(name)
    _check_no_nulls(column, name, first, groups)
    try:
        texts: list[str] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise DataError(f"{groups.rows(first)}: the label column {name!r} holds {column.type}") from None
    return texts


def _values(table: pa.Table, name: str, first: int, groups: _Groups) -> NDArray[np.float32]:
    """A column of numbers."""
    import pyarrow as pa

    column = table.column(name)
    if not _is_number(column.type):
        raise DataError(f"{groups.rows(first)}: column {name!r} holds {column.type}, and no numbers")
    _check_no_nulls(column, name, first, groups)
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float32)
    if (wrong := np.flatnonzero(~np.isfinite(values))).size:
        row = int(wrong[0])
        raise DataError(
            f"{groups.rows(first + row)}: column {name!r}: {column[row]} is not finite in float32"
        )
    return values


def _check_no_nulls(column: pa.ChunkedArray, name: str, first: int, groups: _Groups) -> None:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise DataError(f"{groups.rows(first + row)}: column {name!r} is empty")
