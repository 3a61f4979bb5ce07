"""The index of TFRecord files: one pass over each, in which every checksum is verified."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from foveal.data.formats.columns import LabelEncoder, Labels
from foveal.data.formats.encoded import Inspection, inspect_images
from foveal.data.formats.index import load_or_build, printable, states
from foveal.data.formats.tfrecord_files import RecordFiles
from foveal.errors import DataError
from foveal.processors import processors
from foveal.tensorflow.example import parse_batch
from foveal.tensorflow.records import RecordBlock, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.tfrecord_layout import Layout
    from foveal.tensorflow.records import FileBlock


@dataclass(frozen=True)
class RecordIndex:
    """What one pass over the files of a part found.

    Attributes:
        files: the files with the places of their ``N`` records.
        intact: bool ``[N]``, whether a record's data are what was written; nothing else is known of the
            others.
        labels: those of the intact records; text, or numbers as text.
        found: what the images of the intact records are, where they are image files; else empty.
        checksums: uint32 ``[sum(intact)]``, CRC-32C of the pixels or row of numbers; zeros for image files.
    """

    files: RecordFiles
    intact: NDArray[np.bool_]
    labels: Labels
    found: Inspection
    checksums: NDArray[np.uint32]


def index_files(
    paths: Sequence[Path], plain: Sequence[Path], layout: Layout, progress: ProgressReporter | None
) -> RecordIndex:
    """Go through files, or take what is remembered of them.

    A record whose data are damaged is kept, and is an error when it is read. Bytes that are no image file are
    the inspection's ``rejected``.

    Args:
        paths: the files, as messages name them.
        plain: the same files, or what they unpack to.
        layout: what the features are.
        progress: told how many bytes have been gone through.

    Raises:
        RecordError: a file is cut off, or a length in it is damaged.
        DataError: a record does not have the features of the layout.
    """
    arrays = load_or_build(paths, f"tfrecord 1 {layout}", lambda: _go_through(paths, plain, layout, progress))
    files = RecordFiles(paths, plain, arrays["counts"].tolist(), arrays["places"].astype(np.int64))
    intact = arrays["intact"].astype(np.bool_)
    numbers = np.flatnonzero(intact)
    values = tuple(json.loads(arrays["label_values"].tobytes()))
    return RecordIndex(
        files,
        intact,
        Labels(values, arrays["label_codes"].astype(np.int64)),
        Inspection.of(arrays, lambda number: files.key(int(numbers[number]))),
        arrays["checksums"].astype(np.uint32),
    )


class _Pass:
    """One file on its way into the index."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self.places: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
        self.intact: list[NDArray[np.bool_]] = [np.empty(0, np.bool_)]
        self.labels: list[str] = []
        self.checksums: list[int] = []
        self.inspections: list[Inspection] = []

    def add(self, block: FileBlock) -> None:
        every, good = block.records, block.intact
        self.places.append(np.stack([block.offsets, every.stops - every.starts], axis=1))
        self.intact.append(good)
        numbers = (block.number + np.flatnonzero(good)).tolist()
        records = RecordBlock(every.content, every.starts[good], every.stops[good])
        layout = self._layout

        def key(row: int) -> str:
            return f"{printable(self._path)} record {numbers[row]}"

        wanted = {**layout.labels, **layout.images, **layout.stated_sizes}
        columns: dict[str, Any] = parse_batch(records, wanted, key)
        layout.check_sizes(columns, key)
        labels = columns[layout.label].tolist()
        self.labels += _texts(labels, key) if layout.label_is_text else map(str, labels)
        if layout.is_encoded:
            assert layout.image is not None
            self.inspections.append(inspect_images(columns[layout.image], key))
            self.checksums += [0] * len(records)
        else:
            images = layout.pixels(columns, len(records), key)
            self.checksums += [google_crc32c.value(image.tobytes()) for image in images]


def _texts(labels: Sequence[bytes], key: Callable[[int], str]) -> list[str]:
    texts = []
    for row, label in enumerate(labels):
        try:
            texts.append(label.decode())
        except UnicodeDecodeError:
            raise DataError(f"{key(row)}: the label {label[:40]!r} is not text in UTF-8") from None
    return texts


def _go_through(
    paths: Sequence[Path], plain: Sequence[Path], layout: Layout, progress: ProgressReporter | None
) -> dict[str, NDArray[np.generic]]:
    lock = Lock()

    def go(path: Path, unpacked: Path) -> _Pass:
        found = _Pass(path, layout)
        for block in read_blocks(unpacked, damaged="keep", name=printable(path)):
            found.add(block)
            if progress is not None:
                with lock:
                    progress.advance(int((block.records.stops - block.records.starts + 16).sum()))
        return found

    if progress is not None:
        progress.start(f"indexing {len(paths)} files", int(states(plain)[:, 0].sum()), 0)
    with ThreadPoolExecutor(processors(), thread_name_prefix="index") as pool:
        try:
            passes = list(pool.map(go, paths, plain))
        finally:
            pool.shutdown(cancel_futures=True)
            if progress is not None:
                progress.finish()
    encoder = LabelEncoder()
    for each in passes:
        encoder.add(each.labels)
    labels = encoder.labels()
    return {
        "counts": np.array([sum(map(len, each.places)) for each in passes], np.int64),
        "places": np.concatenate([some for each in passes for some in each.places]),
        "intact": np.concatenate([some for each in passes for some in each.intact]),
        "label_codes": labels.codes,
        "label_values": np.frombuffer(json.dumps(labels.values).encode(), np.uint8),
        "checksums": np.concatenate([np.array(each.checksums, np.uint32) for each in passes]),
        **Inspection.joined([some for each in passes for some in each.inspections]).arrays(),
    }
