"""Any source as TFRecord files of Examples, with TF-Slim's names for the features, which TensorFlow reads."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from foveal.data.decode import read_header
from foveal.data.formats.tfrecords import LABELS_FILE
from foveal.data.source import Batch, DataSet, Encoded
from foveal.errors import DataError, UsageError
from foveal.files import write_atomically
from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.source import Source

_BATCH = 64  # examples read at once
_SHARD_LIMIT = 4096  # files of a part
_NAME = re.compile(r"(.*?)((?:\.tfrec(?:ords?)?)?(?:\.gz|\.zlib)?)", re.DOTALL)
_FORMATS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


def convert(
    data: DataSet | Source,
    out: Path,
    *,
    shards: int = 1,
    progress: ProgressReporter | None = None,
    compression: Literal["gzip", "zlib"] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a data set as TFRecord files, and its class names as ``labels.txt`` beside them.

    Image files are copied byte for byte; pixels become PNG, which loses nothing; rows of float32 numbers
    become the feature ``features``. The order is that of the source: nothing is shuffled. Each file appears
    under its name when it is complete; those that were written before a failure are removed again.

    Args:
        data: the parts, or one source, which counts as the train part.
        out: ``NAME.tfrecord``. A single part in a single shard is that file; else a part's shards are
            ``NAME-PART-00000-of-00004.tfrecord``.
        shards: files of each part; record ``i`` of ``N`` is in shard ``i * shards // N``.
        progress: told of images, not bytes, that have been written.
        compression: of each file as a whole.
        overwrite: replace files that are there.

    Returns:
        The files, in the order of parts and shards.

    Raises:
        UsageError: the number of shards is impossible, or a file is there already.
        DataError: an example cannot be read or stored, or a file cannot be written.
    """
    parts = data.parts() if isinstance(data, DataSet) else {"train": data}
    plan = _plan(parts, out, shards)
    labels = out.with_name(LABELS_FILE)
    if not overwrite and (there := [path for path in (labels, *(s.path for s in plan)) if path.exists()]):
        raise UsageError(f"{there[0]}: is there already: choose another name, or overwrite it")
    classes = plan[0].source.classes
    names = "".join(f"{number}:{name}\n" for number, name in enumerate(classes))
    if len(names.splitlines()) != len(classes):
        raise DataError(f"{labels}: a class name has several lines")
    if progress is not None:
        progress.start(f"writing {out.name}", sum(map(len, parts.values())), 0)
    try:
        _write(plan, compression, progress)
        write_atomically(labels, names.encode())
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if progress is not None:
            progress.finish()
    return [shard.path for shard in plan]


class _Shard(NamedTuple):
    """A file, and the examples that it gets."""

    path: Path
    source: Source
    start: int
    stop: int


def _plan(parts: Mapping[str, Source], out: Path, shards: int) -> list[_Shard]:
    """The files of all parts, in order."""
    most = min(_SHARD_LIMIT, *map(len, parts.values()))
    if not 1 <= shards <= most:
        raise UsageError(f"{shards} shards: from 1 to {most} of these data")
    if len(parts) == shards == 1:
        return [_Shard(out, source, 0, len(source)) for source in parts.values()]
    match = _NAME.fullmatch(out.name)
    assert match is not None
    plan = []
    for part, source in parts.items():
        for shard in range(shards):
            start, stop = (len(source) * edge // shards for edge in (shard, shard + 1))
            name = f"{match[1]}-{part}-{shard:05}-of-{shards:05}{match[2]}"
            plan.append(_Shard(out.with_name(name), source, start, stop))
    return plan


def _write(
    plan: Sequence[_Shard],
    compression: Literal["gzip", "zlib"] | None,
    progress: ProgressReporter | None,
) -> None:
    """Write all files, or leave none."""
    written: list[Path] = []
    try:
        for path, source, start, stop in plan:
            with RecordWriter(path, compression) as writer:
                for record in _records(source, start, stop):
                    writer.write(record)
                    if progress is not None:
                        progress.advance(1)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _records(source: Source, start: int, stop: int) -> Iterator[bytes]:
    for first in range(start, stop, _BATCH):
        indices = np.arange(first, min(first + _BATCH, stop))
        batch = source.read(indices)
        for row, index in enumerate(indices.tolist()):
            yield build_example(_features(batch, row, source, source.key(index)))


def _features(batch: Batch, row: int, source: Source, key: str) -> Mapping[str, Any]:
    target = int(batch.targets[row])
    label = {"image/class/label": target, "image/class/text": source.classes[target].encode()}
    if isinstance(batch.images, Encoded):
        content = batch.images.contents[row]
    elif batch.images.dtype == np.float32:
        if batch.images.shape[1:3] != (1, 1):
            raise DataError(
                f"{key}: images of float32 cannot be stored without loss: only rows of numbers can"
            )
        return {"features": batch.images[row].ravel(), **label}
    else:
        content = _png(batch.images[row], key)
    form = next((form for magic, form in _FORMATS if content.startswith(magic)), "webp")
    header = read_header(content, key)
    return {
        "image/encoded": content,
        "image/format": form.encode(),
        "image/height": header.height,
        "image/width": header.width,
        "image/channels": header.channels,
        "image/filename": key.encode(errors="backslashreplace"),
        **label,
    }


def _png(pixels: NDArray[np.uint8], key: str) -> bytes:
    channels = pixels.shape[2]
    if channels not in (1, 3):
        raise DataError(f"{key}: {channels} channels: PNG files have 1 (grey) or 3 (red, green, blue)")
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "png")
    return file.getvalue()
