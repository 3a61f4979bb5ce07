"""From the indices of examples to what the network sees: read, decode, distort, normalise.

Everything here is a function of (source, recipe, sample): it runs on any of the loader's threads and keeps
nothing but the times it took.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from foveal.data.augmentation.augment import Augmentation, sizing
from foveal.data.corrupt import CorruptRecord
from foveal.data.resident import make_resident
from foveal.data.sampler import Sample
from foveal.data.source import Encoded, channels_of, keys
from foveal.data.stream import StreamSource
from foveal.errors import CorruptRecordError, DataError
from foveal.seeding import Draws

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.data.source import Source
    from foveal.recipe import Normalization, Transform

_TRIES = 100  # of finding a good example in the place of a damaged one


@dataclass(frozen=True)
class Prepared:
    """A batch, ready for the network.

    Attributes:
        images: float32 ``[B, H, W, C]``: an array, or a tensor of the device where torch made it.
        targets: int64 ``[B]``, or float32 ``[B, classes]`` where images were mixed.
        sample: which examples were asked for.
        corrupt: those of them that were replaced or left out.
    """

    images: Any
    targets: Any
    sample: Sample
    corrupt: tuple[CorruptRecord, ...] = ()


class _Pixels(NamedTuple):
    """Images of one size, uint8 or float32 ``[B, H, W, C]``, and their classes, int64 ``[B]``."""

    images: Any  # an array, or a tensor of the device
    targets: NDArray[np.int64]


class Pipeline:
    """What a recipe does to the images of one source.

    Args:
        source: the examples.
        transforms: what is done to them, in order.
        normalization: what is done at the end.
        seed: the recipe's data seed.
        backend: ``numba`` or ``torch``.
        device: where torch computes.
        corrupt: what becomes of a damaged record: ``error``; ``replace``, by another example that is computed
            from its position; or ``leave_out``, and the batch is smaller.
        field: the recipe's field the transforms stand in, for messages.
        resident_bytes: images of up to so many bytes in all are kept on the device, where torch computes.

    Attributes:
        seconds: what all threads together have spent on reading, decoding and distorting, by these names.

    Raises:
        RecipeError: the transforms do not fit the images.
    """

    def __init__(
        self,
        source: Source,
        transforms: Sequence[Transform],
        normalization: Normalization,
        seed: int,
        *,
        backend: str = "numba",
        device: str = "cpu",
        corrupt: Literal["error", "replace", "leave_out"] = "error",
        field: str = "augmentation",
        resident_bytes: int = 0,
    ) -> None:
        self._source, self._seed, self._corrupt = source, seed, corrupt
        self._by_decoding = source.image_shape is None or (
            sizing(transforms) is not None and _is_encoded(source)
        )
        self._augment = Augmentation(
            transforms,
            normalization,
            None if self._by_decoding else source.image_shape,
            channels=channels_of(source),
            backend=backend,
            device=device,
            field=field,
        )
        keep = backend == "torch" and resident_bytes > 0
        self._resident = make_resident(source, device, resident_bytes) if keep else None
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what comes out."""
        return self._augment.output_shape

    def __call__(self, sample: Sample) -> Prepared:
        """Prepare a batch.

        Raises:
            CorruptRecordError: a record is damaged, and damaged ones are errors.
            DataError: the data have changed, or too many records are damaged to find a good one.
            OSError: the device failed.
        """
        batch, sample, corrupt = self._pixels(sample)
        draws = self._draws(sample)
        start = time.perf_counter()
        images: Any = self._augment(batch.images, draws)
        targets: Any = batch.targets
        if self._augment.mixes:
            images, targets = self._augment.mix(images, targets, len(self._source.classes), draws)
        self._count("distort", start)
        return Prepared(images, targets, sample, corrupt)

    def distort(self, sample: Sample) -> NDArray[np.float32]:
        """What distortion makes of a batch, before normalisation: float32 ``[B, H, W, C]`` from 0 to 255."""
        batch, sample, _ = self._pixels(sample)
        return self._augment.distort(batch.images, self._draws(sample))

    def _draws(self, sample: Sample) -> Draws:
        return Draws(self._seed, sample.positions, sample.indices, sample.epochs)

    def _pixels(self, sample: Sample) -> tuple[_Pixels, Sample, tuple[CorruptRecord, ...]]:
        """The batch with images of one size, what it consists of, and what was damaged."""
        try:
            return self._read(sample), sample, ()
        except CorruptRecordError:
            if self._corrupt == "error":
                raise
        return self._one_by_one(sample)

    def _read(self, sample: Sample) -> _Pixels:
        start = time.perf_counter()
        if self._resident is not None:
            found = _Pixels(*self._resident.read(sample.indices))
            self._count("read", start)
            return found
        batch = self._source.read(sample.indices)
        start = self._count("read", start)
        images = batch.images
        if not isinstance(images, Encoded):
            return _Pixels(images, batch.targets)
        from foveal.data.decode import decode_batch, read_header

        names = keys(self._source, sample.indices)
        windows = None
        if self._by_decoding:
            sizes: Any = images.sizes
            if sizes is None:  # from a stream, or a source of the user's own
                sizes = [read_header(*each)[:2] for each in zip(images.contents, names, strict=True)]
            windows = self._augment.windows(np.array(sizes, np.int64), self._draws(sample)).tolist()
        shape, method = self._augment.decoded_shape, self._augment.method
        pixels = decode_batch(images.contents, shape, windows, names, method)
        self._count("decode", start)
        return _Pixels(pixels, batch.targets)

    def _one_by_one(self, sample: Sample) -> tuple[_Pixels, Sample, tuple[CorruptRecord, ...]]:
        """As ``_pixels``, for a batch in which something is damaged."""
        good: list[_Pixels] = []
        rows: list[int] = []
        indices: list[int] = []
        corrupt: list[CorruptRecord] = []
        for row, index in enumerate(sample.indices.tolist()):
            place = slice(row, row + 1)
            for candidate in self._candidates(index, sample.positions[place]):
                one = Sample(sample.positions[place], np.array([candidate]), sample.epochs[place])
                try:
                    good.append(self._read(one))
                except CorruptRecordError as error:
                    corrupt.append(CorruptRecord(self._source.key(candidate), str(error)))
                else:
                    rows.append(row)
                    indices.append(candidate)
                    break
            else:
                if self._corrupt == "replace":
                    raise DataError(f"{corrupt[-1].reason}; nor could {_TRIES} others in its place be read")
        used = Sample(sample.positions[rows], np.array(indices, np.int64), sample.epochs[rows])
        if not good:
            nothing = np.zeros((0, *self._augment.decoded_shape), np.uint8)
            return _Pixels(nothing, np.zeros(0, np.int64)), used, tuple(corrupt)
        images, targets = (np.concatenate(column) for column in zip(*good, strict=True))
        return _Pixels(images, targets), used, tuple(corrupt)

    def _candidates(self, index: int, position: NDArray[np.int64]) -> Iterator[int]:
        """The example itself, then those that may stand in for it: a function of the position alone."""
        yield index
        if self._corrupt == "replace":
            draws = Draws(self._seed, position)
            for attempt in range(_TRIES):
                yield int(draws.integers(f"replacement/{attempt}", 0, len(self._source) - 1)[0])

    def _count(self, stage: str, start: float) -> float:
        """Add the time since ``start`` to a stage's; the time now."""
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - start
        return now


def _is_encoded(source: Source) -> bool:
    """Whether it gives encoded images although they all have one size; told by the first that can be read."""
    if isinstance(source, StreamSource):  # of which nothing can be read twice
        return False
    for index in range(min(_TRIES, len(source))):
        try:
            return isinstance(source.read(np.array([index])).images, Encoded)
        except CorruptRecordError:
            continue
    return False
