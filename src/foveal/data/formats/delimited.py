"""Delimited text, CSV and its kin: rows of fields, with every mistake named by its line.

Specification: RFC 4180, and what is common beyond it: any delimiter, line ends of all systems, blank lines
(left out), blanks around a field (dropped), no header, gzip. Fields in quotes may hold delimiters, line ends
and doubled quotes. Numbers are read from all rows of a block at once, or one by one where something is not as
usual.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import re
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foveal.data.formats.columns import Columns, is_number, shorten
from foveal.data.formats.index import printable, states
from foveal.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter

ROW_LIMIT = 1 << 22  # characters
UNPACKED_LIMIT = 4 << 30  # characters that a compressed file may unpack to
_BLOCK = 1 << 20  # characters of rows that are given at a time

_UNDECODED = re.compile(
    "[\udc80-\udcff]"
)  # what the error handler surrogateescape makes of undecodable bytes


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a file is written.

    Attributes:
        delimiter: one character; None: a tab in files whose name says ``.tsv``, else a comma.
        encoding: of the text; a byte-order mark at its start is dropped.
        header: whether the first row names the columns. None: it does if it has one of the words that the
            caller expects there, or if it has no number and the second row has one.

    Raises:
        RecipeError: the delimiter or the encoding cannot be used.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    header: bool | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise RecipeError(f"delimiter = {self.delimiter!r}: one character, and no quote or line end")
        try:
            io.TextIOWrapper(io.BytesIO(), self.encoding)
        except LookupError as error:
            raise RecipeError(f"encoding = {self.encoding!r}: {error}") from None

    def delimiter_of(self, path: Path) -> str:
        """The delimiter of a file."""
        return self.delimiter or ("\t" if ".tsv" in path.suffixes else ",")

    def has_header(self, rows: Sequence[Sequence[str]], expected: Collection[str]) -> bool:
        """Whether the first of up to two rows names the columns."""
        if self.header is not None:
            return self.header
        if any(field.strip() in expected or field.strip().lower() in expected for field in rows[0]):
            return True
        numbers = [any(map(is_number, row)) for row in rows]
        return numbers == [False, True]


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, one after another.

    Attributes:
        columns: of the file.
        delimiter: between fields.
        lines: the number of each row's line, from 1.
        content: each row: its line if there is no quote in it, else its fields.
    """

    columns: Columns
    delimiter: str
    lines: list[int]
    content: list[str | list[str]]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.columns.where} line {self.lines[row]}"

    def texts(self, column: int, default: object = None) -> list[str]:
        """The fields of a column, without the blanks around them.

        Raises:
            DataError: one is empty, and there is no default.
        """
        texts = [self._field(row, column).strip() for row in self.content]
        if "" not in texts:
            return texts
        if default is None:
            raise DataError(f"{self.where(texts.index(''))}: {self.columns.describe(column)} is empty")
        return [text or str(default) for text in texts]

    def numbers(
        self, columns: Sequence[int], defaults: Mapping[int, float], *, whole: bool = False
    ) -> NDArray[Any]:
        """The values of some columns, float64 or int32 ``[rows, columns]``.

        A field that is empty or not finite has its column's default.

        Args:
            columns: their numbers.
            defaults: by column.
            whole: they are expected to be small whole numbers, which are read in half the time.

        Raises:
            DataError: such a field has none, or a field is no number.
        """
        plain = [row for row in self.content if isinstance(row, str)]
        if len(plain) < len(self):
            return self._numbers_one_by_one(columns, defaults)
        for dtype in (np.int32, np.float64) if whole else (np.float64,):
            try:
                values = np.loadtxt(
                    plain, dtype, comments=None, delimiter=self.delimiter, usecols=columns, ndmin=2
                )
            except ValueError:  # what is wrong is said more exactly below
                continue
            if np.isfinite(values).all():
                return values
        return self._numbers_one_by_one(columns, defaults)

    def _numbers_one_by_one(
        self, columns: Sequence[int], defaults: Mapping[int, float]
    ) -> NDArray[np.float64]:
        values = np.empty((len(self), len(columns)))
        for row, content in enumerate(self.content):
            fields = self._fields(content)
            try:
                values[row] = [float(fields[column]) for column in columns]
            except ValueError:
                values[row] = [self._number(row, column, fields[column], defaults) for column in columns]
        for row, at in np.argwhere(~np.isfinite(values)).tolist():
            field = self._fields(self.content[row])[columns[at]]
            values[row, at] = self._number(row, columns[at], field, defaults)
        return values

    def _number(self, row: int, column: int, field: str, defaults: Mapping[int, float]) -> float:
        value = float(field) if is_number(field) else None
        if value is not None and np.isfinite(value):
            return value
        missing = value is not None or not field.strip()
        if missing and column in defaults:
            return defaults[column]
        what = "is empty" if not field.strip() else f"{shorten(field)} is not a number"
        if value is not None:
            what = f"{shorten(field)} is not finite"
        more = ": data.options.defaults can give what to put in its place" if missing else ""
        if row == 0 and self.lines[0] == 1:
            more = " (if this line is a header: data.options.header = true)"
        raise DataError(f"{self.where(row)}: {self.columns.describe(column)}: {what}{more}")

    def _fields(self, row: str | list[str]) -> list[str]:
        return row.split(self.delimiter) if isinstance(row, str) else row

    def _field(self, row: str | list[str], column: int) -> str:
        """One field; a row of many is not split for one near either end."""
        if not isinstance(row, str):
            return row[column]
        after = len(self.columns.names) - column
        if column < after:
            return row.split(self.delimiter, column + 1)[column]
        return row.rsplit(self.delimiter, after)[-after]


def read_rows(
    path: Path, dialect: Dialect, expected: Collection[str] = (), progress: ProgressReporter | None = None
) -> Generator[Rows]:
    """Read a file from its start to its end, a block of rows at a time.

    Args:
        path: the file, compressed with gzip or not (recognised by content).
        dialect: how it is written.
        expected: words by which a header is known.
        progress: told of the file's bytes.

    Raises:
        DataError: the file is missing, unreadable, no text in that encoding, or damaged; it has no rows; a
            row has more or fewer fields than the first, or more than 4 million characters.
    """
    before = states([path])
    with ExitStack() as stack:
        lines = _Lines(path, dialect, stack)
        rows = lines.rows()
        first = list(islice(rows, 2))
        if not first:
            raise DataError(f"{lines.where}: is empty")
        split = [row.split(lines.delimiter) if isinstance(row, str) else row for _, row in first]
        if dialect.has_header(split, expected):
            columns = Columns(lines.where, tuple(name.strip() for name in split[0]))
            first = first[1:]
        else:
            columns = Columns(lines.where, tuple(map(str, range(len(split[0])))), numbered=True)
        if not first:
            raise DataError(f"{lines.where}: has a header and no rows")
        if progress is not None:
            progress.start(f"reading {path.name}", int(before[0, 0]), 0)
            stack.callback(progress.finish)
        done = 0
        for some in _blocks(chain(first, rows), columns, lines):
            yield some
            if progress is not None:
                progress.advance(lines.position() - done)
                done = lines.position()
    if not np.array_equal(before, states([path])):
        raise DataError(f"{lines.where}: has changed while it was read: try again when nothing writes to it")


def _blocks(rows: Iterator[tuple[int, str | list[str]]], columns: Columns, lines: _Lines) -> Iterator[Rows]:
    """Rows of the right number of fields, about a million characters at a time."""
    block, end = Rows(columns, lines.delimiter, [], []), lines.characters + _BLOCK
    width = len(columns.names)
    for line, row in rows:
        fields = row.count(lines.delimiter) + 1 if isinstance(row, str) else len(row)
        if fields != width:
            raise DataError(f"{lines.where} line {line}: has {fields} fields instead of {width}")
        block.lines.append(line)
        block.content.append(row)
        if lines.characters >= end:
            yield block
            block, end = Rows(columns, lines.delimiter, [], []), lines.characters + _BLOCK
    if block.lines:
        yield block


class _Lines:
    """The lines of a text file, counted and limited."""

    def __init__(self, path: Path, dialect: Dialect, stack: ExitStack) -> None:
        self.where, self.delimiter, self._encoding = (
            printable(path),
            dialect.delimiter_of(path),
            dialect.encoding,
        )
        self.number = self.characters = 0
        try:
            self._raw = stack.enter_context(path.open("rb"))
            packed = self._raw.peek(2).startswith(b"\x1f\x8b")
        except OSError as error:
            raise DataError(f"{self.where}: cannot be opened: {error.strerror}") from None
        self._limit = UNPACKED_LIMIT if packed else math.inf
        content = stack.enter_context(gzip.GzipFile(fileobj=self._raw)) if packed else self._raw
        encoding = "utf-8-sig" if codecs.lookup(self._encoding).name == "utf-8" else self._encoding
        self._text = stack.enter_context(
            io.TextIOWrapper(cast("BinaryIO", content), encoding, "surrogateescape", newline="")
        )

    def position(self) -> int:
        """Bytes read of the file."""
        return self._raw.tell()

    def rows(self) -> Iterator[tuple[int, str | list[str]]]:
        """The line at which each row begins, and the row: without quotes as it stands, else its fields."""
        for line in self:
            if '"' in line:
                start = self.number
                yield start, self._quoted(line, start)
            elif line.strip(" \r\n"):  # a tab may be a delimiter
                yield self.number, line.rstrip("\r\n")

    def _quoted(self, line: str, start: int) -> list[str]:
        """The fields of a row that may go on in the next lines."""

        def lines() -> Iterator[str]:
            limit = self.characters - len(line) + ROW_LIMIT
            for more in chain([line], self):
                if self.characters > limit:
                    raise DataError(
                        f"{self.where} line {start}: the row has more than {ROW_LIMIT:,} characters"
                    )
                yield more

        try:
            return next(csv.reader(lines(), delimiter=self.delimiter, strict=True, skipinitialspace=True))
        except csv.Error as error:
            raise DataError(f"{self.where} line {start}: the quotes in it are wrong: {error}") from None

    def __iter__(self) -> Iterator[str]:
        while line := self._read():
            self.number += 1
            self.characters += len(line)
            wrong = ""
            if len(line) >= ROW_LIMIT:
                wrong = f"has more than {ROW_LIMIT:,} characters"
            elif "\0" in line:
                wrong = f"holds a zero byte: this is no text in {self._encoding}"
            elif not line.isascii() and _UNDECODED.search(line):
                wrong = f"is no text in {self._encoding}: give its encoding in data.options.encoding"
            elif self.characters > self._limit:
                wrong = f"the file unpacks to more than {UNPACKED_LIMIT >> 30} GiB"
            if wrong:
                raise DataError(f"{self.where} line {self.number}: {wrong}")
            yield line

    def _read(self) -> str:
        try:
            return self._text.readline(ROW_LIMIT)
        except UnicodeError:
            raise DataError(
                f"{self.where} after line {self.number}: is no text in {self._encoding}: "
                "give its encoding in data.options.encoding"
            ) from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self.where} after line {self.number}: cannot be read, damaged or cut off: {error}"
            ) from None
