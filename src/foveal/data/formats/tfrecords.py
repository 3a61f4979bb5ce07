"""TFRecord files of ``tf.train.Example``: labelled images, or rows of numbers."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.formats.columns import Classes, Labels
from foveal.data.formats.encoded import EncodedSource, ImageTable, preload
from foveal.data.formats.index import printable
from foveal.data.formats.parts import find_parts
from foveal.data.formats.tfrecord_files import MEMORY_LIMIT, plain_file
from foveal.data.formats.tfrecord_index import index_files
from foveal.data.formats.tfrecord_layout import options_of
from foveal.data.source import ArraySource, Batch, DataSet, blocks, check_indices, check_labels, class_names
from foveal.errors import DataError, RecipeError
from foveal.tensorflow.example import parse_example
from foveal.tensorflow.records import read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.tfrecord_index import RecordIndex
    from foveal.data.formats.tfrecord_layout import Layout, LayoutOptions, Specification
    from foveal.data.source import Source

SUFFIXES = (
    *(name + packed for name in (".tfrecord", ".tfrecords", ".tfrec") for packed in ("", ".gz", ".zlib")),
    "-00000-of-00000",  # any shard: TF-Slim's have no other ending
)
LABELS_FILE = "labels.txt"  # beside the files: a class name on each line, or its number and its name
_NUMBERED = re.compile(r"(\d{1,9}):(.*)")


def open_tfrecords(
    path: Path,
    progress: ProgressReporter | None = None,
    *,
    train: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    shape: Sequence[int] | None = None,
    classes: Sequence[str] | int | str | None = None,
    label_offset: int = 0,
    features: Mapping[str, Any] | None = None,
    hold: bool = True,
) -> DataSet:
    """The labelled images, or rows of numbers, in TFRecord files of Examples.

    Files are plain, or gzip- or zlib-compressed, whatever their names are. Each is gone through once, every
    checksum verified, and then read at random, every checksum verified again. A record whose data are damaged
    stays an example, and is a ``CorruptRecordError`` when it is read.

    Args:
        path: a file, a folder of files, or a pattern; see ``foveal.data.formats.parts.find_parts``.
        progress: told of what is read.
        train: pattern of the files to learn from; by default names decide.
        validation: pattern of those to make choices on.
        test: pattern of those to test on.
        image: the feature with the image: the bytes of an image file, or pixels: bytes, or a list of int64
            (0 to 255) or float32; ``""`` if there is none. By default the first record decides, by names that
            are customary.
        label: the feature with the label: an int64, or text. By default as for the image.
        shape: height, width and channels of pixels. By default what features of the first record say, or the
            image is square and grey.
        classes: the class names, how many there are, or the name of a text file with one on each line
            (``name`` or ``number:name``), in the folder of the data. By default the file ``labels.txt``
            there, else the distinct labels of the training part, sorted.
        label_offset: what is taken from labels that are numbers: 1 where they begin at 1.
        features: more features for ``Batch.features``, or, where there is no image, those that make up a row:
            by name ``{"dtype": "float32" | "int64" | "bytes", "shape": [...], "default": ...}``; without a
            shape, any number of values.
        hold: hold images of one size in memory, decoded, if that is at most 512 MiB.

    Raises:
        RecordError: a file is cut off, or the length of a record is damaged.
        DataError: a file is missing or unreadable, or records do not hold what is expected of them.
        RecipeError: an option is malformed.
    """
    options = options_of(image, label, shape, features)
    if type(label_offset) is not int or abs(label_offset) >= 1 << 31:
        raise RecipeError(f"data.options.label_offset = {label_offset!r}: a whole number of 32 bits")
    parts = find_parts(path, SUFFIXES, {"train": train, "validation": validation, "test": test})
    plain = {part: [plain_file(file, progress) for file in files] for part, files in parts.items()}
    layout = _first_layout(parts["train"], plain["train"], options)
    found = {part: index_files(parts[part], plain[part], layout, progress) for part in parts}
    names = _names_given(classes, path if path.is_dir() else parts["train"][0].parent)
    meaning = _Meaning.of(found["train"].labels, names, label_offset, layout, printable(path))
    opened = {}
    for part, index in found.items():
        extra = options.features if layout.image is not None else {}
        opened[part] = _open_part(index, layout, meaning, extra, hold, progress)
    return DataSet(**opened)


def _first_layout(paths: Sequence[Path], plain: Sequence[Path], options: LayoutOptions) -> Layout:
    """The layout by the first record that is not damaged."""
    for path, unpacked in zip(paths, plain, strict=True):
        for block in read_blocks(unpacked, damaged="keep", name=printable(path)):
            for row in np.flatnonzero(block.intact)[:1].tolist():
                key = f"{printable(path)} record {block.number + row}"
                start, stop = block.records.starts[row], block.records.stops[row]
                return options.layout(parse_example(block.records.content[start:stop], key), key)
    raise DataError(f"{printable(paths[0])}: holds no records that are not damaged")


@dataclass(frozen=True)
class _Meaning:
    """What labels stand for: indices into the class names from ``offset`` on, or as ``classes`` says."""

    classes: Classes
    offset: int
    by_number: bool

    @classmethod
    def of(
        cls, labels: Labels, names: tuple[str, ...] | None, offset: int, layout: Layout, where: str
    ) -> _Meaning:
        if layout.label_is_text:
            if offset:
                raise RecipeError(f"data.options.label_offset = {offset}: the label {layout.label!r} is text")
            return cls(Classes.of(labels, names, where), 0, by_number=False)
        if names is not None:
            return cls(Classes(names), offset, by_number=True)
        return cls(Classes.of(_shifted(labels, offset), None, where), offset, by_number=False)

    def targets(self, labels: Labels, key: Callable[[int], str]) -> NDArray[np.int64]:
        """Class indices, int64 ``[N]``."""
        if self.by_number:
            return np.array([int(value) for value in labels.values], np.int64)[labels.codes] - self.offset
        return self.classes.targets(_shifted(labels, self.offset), key)


def _shifted(labels: Labels, offset: int) -> Labels:
    if not offset:
        return labels
    return Labels(tuple(str(int(value) - offset) for value in labels.values), labels.codes)


def _names_given(classes: Sequence[str] | int | str | None, folder: Path) -> tuple[str, ...] | None:
    """The class names of the options, or of the file beside the data."""
    if isinstance(classes, str):
        return _read_names(folder / classes)
    if classes is not None:
        return class_names(classes)
    beside = folder / LABELS_FILE
    return _read_names(beside) if beside.is_file() else None


def _read_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file; where all are ``number:name``, by number.

    Raises:
        DataError: it cannot be read, or numbers are missing or there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(path)}: cannot be read as class names: {error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    names = [line.strip() for line in lines]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if names and all(numbered):
        by_number = {int(match[1]): match[2] for match in numbered if match}
        if sorted(by_number) != list(range(len(names))):
            raise DataError(f"{printable(path)}: its numbers are not 0 to {len(names) - 1}, each once")
        names = [by_number[number] for number in range(len(names))]
    try:
        return class_names(names)
    except RecipeError as error:
        raise DataError(f"{printable(path)}: {error}") from None


def _open_part(
    index: RecordIndex,
    layout: Layout,
    meaning: _Meaning,
    extra: Specification,
    hold: bool,
    progress: ProgressReporter | None,
) -> Source:
    files, intact = index.files, np.flatnonzero(index.intact)
    targets = np.zeros(len(files), np.int64)
    targets[intact] = meaning.targets(index.labels, lambda row: files.key(int(intact[row])))
    names = meaning.classes.names
    hold = hold and not extra and len(intact) == len(files)
    source: _EncodedRecords | _PixelRecords
    if layout.is_encoded:
        source = _EncodedRecords(index, targets, layout, names, extra)
        opened = preload(source, progress=progress) if hold else source
    else:
        source = _PixelRecords(index, targets, layout, names, extra)
        size = len(source) * math.prod(source.image_shape) * layout.pixel_dtype.itemsize
        opened = source.held() if hold and size <= MEMORY_LIMIT else source
    if opened is not source:  # their contents need not be in memory too
        files.release()
    return opened


class _EncodedRecords(EncodedSource):
    """Image files in records."""

    def __init__(
        self,
        index: RecordIndex,
        targets: NDArray[np.int64],
        layout: Layout,
        classes: Sequence[str],
        extra: Specification,
    ) -> None:
        self._files, self._layout, self._extra = index.files, layout, extra
        intact, good = index.intact, index.found.good
        examples = np.ones(len(intact), np.bool_)
        examples[intact] = good
        self._numbers = np.flatnonzero(examples)
        # of damaged records nothing is known: they are given the size of the first image, so as not to matter
        rows = np.zeros((len(intact), 5), np.int64)
        if len(index.found.rows):
            rows[:, :3] = index.found.rows[0, :3]
        rows[np.flatnonzero(intact)[good]] = index.found.rows
        table = ImageTable.of(
            dict(zip(_ROWS, rows[self._numbers].T, strict=True), targets=targets[self._numbers])
        )
        super().__init__(table, classes, index.found.rejected)

    def key(self, index: int) -> str:
        """``FILE record N``, counted from 0 within the file."""
        return self._files.key(int(self._numbers[index]))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, still encoded, and their other features.

        Raises:
            RecordError: a record is damaged.
            DataError: a file has changed since it was indexed.
            IndexError: there is no such example.
        """
        batch = super().read(indices)
        if not self._extra:
            return batch
        features = self._files.columns(self._numbers[indices], self._extra)
        return Batch(batch.images, batch.targets, features)

    def _load(self, indices: NDArray[np.int64]) -> list[bytes]:
        (column,) = self._files.columns(self._numbers[indices], self._layout.images).values()
        contents: list[bytes] = list(column)  # type: ignore[arg-type]
        return contents


_ROWS = ("heights", "widths", "channels", "checksums", "lengths")


class _PixelRecords:
    """Pixels, or rows of numbers, in records: a ``Source``."""

    def __init__(
        self,
        index: RecordIndex,
        targets: NDArray[np.int64],
        layout: Layout,
        classes: Sequence[str],
        extra: Specification,
    ) -> None:
        assert layout.shape is not None
        self.classes, self.targets, self.image_shape = tuple(classes), targets, layout.shape
        self._files, self._layout, self._extra = index.files, layout, extra
        self._checksums = np.zeros(len(index.files), np.uint32)
        self._checksums[index.intact] = index.checksums
        check_labels(targets, classes, self.key)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, and their other features.

        Raises:
            RecordError: a record is damaged.
            DataError: a file has changed since it was indexed.
            IndexError: there is no such example.
        """
        check_indices(indices, len(self))
        columns = self._files.columns(indices, {**self._layout.images, **self._extra})
        images = self._layout.pixels(columns, len(indices), lambda row: self.key(int(indices[row])))
        features = {name: columns[name] for name in self._extra}
        return Batch(images, self.targets[indices], features)

    def key(self, index: int) -> str:
        """``FILE record N``, counted from 0 within the file."""
        return self._files.key(index)

    def digests(self) -> NDArray[np.uint64]:
        """A hash of each image's pixels, uint64 ``[N]``: their CRC-32C."""
        return self._checksums.astype(np.uint64)

    def fingerprint(self) -> str:
        """SHA-256 of the shape, each image's checksum, labels and class names, as 16 hex digits."""
        digest = hashlib.sha256(repr((len(self), self.image_shape, self.classes)).encode())
        for column in (self._checksums, self.targets):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()[:16]

    def held(self) -> Source:
        """The same in memory."""
        images = np.empty((len(self), *self.image_shape), self._layout.pixel_dtype)
        for indices in blocks(len(self)):
            images[indices] = self.read(indices).images
        return _HeldRecords(images, self.targets, self.classes, origin=self)


@dataclass(frozen=True, kw_only=True)
class _HeldRecords(ArraySource):
    """Records in memory, known as what they come from."""

    origin: _PixelRecords

    def key(self, index: int) -> str:
        return self.origin.key(index)

    def digests(self) -> NDArray[np.uint64]:
        return self.origin.digests()

    def fingerprint(self) -> str:
        return self.origin.fingerprint()
