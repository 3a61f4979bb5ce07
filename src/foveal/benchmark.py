"""Timing the parts of training on their own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from foveal.data.catalog import open_data
from foveal.data.input import training_pipeline, training_sampler, training_source
from foveal.data.loader import Loader
from foveal.data.source import Encoded
from foveal.data.stream import StreamSource
from foveal.device import configured, resolve_machine
from foveal.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.pipeline import Prepared
    from foveal.data.source import Batch, Source
    from foveal.recipe import Recipe


@dataclass(frozen=True)
class DataBenchmark:
    """How fast a recipe's batches are made when nothing else is to be done.

    Attributes:
        recipe: its name.
        threads: the loader's.
        batch_size: examples in a batch.
        images: how many were prepared in the time measured.
        bytes: of these images as they are stored.
        seconds: the time measured, from the first batch on.
        first_batch_seconds: from the start of the loader to its first batch.
        waiting: share of the time in which no batch was ready.
        stages: share of the threads' time that each stage took.
    """

    recipe: str
    threads: int
    batch_size: int
    images: int
    bytes: int
    seconds: float
    first_batch_seconds: float
    waiting: float
    stages: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Prepared images."""
        return self.images / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Stored bytes of them that were read."""
        return self.bytes / self.seconds

    @property
    def slowest_stage(self) -> str:
        """What the threads spend most of their time on."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    def report(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""
        rates = ("images_per_second", "bytes_per_second", "slowest_stage")
        return vars(self) | {name: getattr(self, name) for name in rates}


def bench_data(
    recipe: Recipe, *, seconds: float = 5.0, progress: ProgressReporter | None = None
) -> DataBenchmark:
    """Time the loader as training uses it, with a consumer that takes no time.

    Args:
        recipe: what to prepare batches for; ``loader_threads`` is how many threads do it.
        seconds: how long to measure, after the first batch; at least one more batch is prepared.
        progress: told of downloads and of indexing.

    Raises:
        DataError: the data cannot be read.
        RecipeError: the recipe does not fit them.
        UsageError: the data are a stream, which cannot be read out of order.
    """
    source = training_source(recipe, open_data(recipe.data, progress=progress))
    recipe = resolve_machine(recipe, decodes=source.image_shape is None)
    if isinstance(source, StreamSource):
        raise UsageError(f"{recipe.name}: its data are a stream: there is no loader to time but its own code")
    counted: Any = _Counted(source)
    pipeline = training_pipeline(recipe, counted)
    sampler = training_sampler(recipe, source)
    threads, images = int(recipe.loader_threads), 0
    ordering: list[float] = []  # seconds of each step: appending is safe from all threads

    def prepare(step: int) -> Prepared:
        start = time.perf_counter()
        sample = sampler.sample(step)
        ordering.append(time.perf_counter() - start)
        return pipeline(sample)

    started = time.perf_counter()
    with (
        configured(recipe),
        Loader(prepare, count(), threads=threads) as batches,
    ):
        next(batches)
        begun = time.perf_counter()
        before = {"order": sum(ordering), **pipeline.seconds}
        waited, read = batches.waited, counted.bytes
        elapsed = 0.0
        while not images or elapsed < seconds:
            images += len(next(batches).targets)
            elapsed = time.perf_counter() - begun
        spent = {"order": sum(ordering), **pipeline.seconds}
        return DataBenchmark(
            recipe.name,
            threads,
            recipe.batch_size,
            images,
            counted.bytes - read,
            elapsed,
            begun - started,
            (batches.waited - waited) / elapsed,
            {name: (spent[name] - before.get(name, 0.0)) / (threads * elapsed) for name in spent},
        )


class _Counted:
    """A source that counts the bytes read from it; in all else the one it is given.

    Attributes:
        bytes: of the images that were read, as they are stored.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        batch = self._source.read(indices)
        images = batch.images
        size = sum(map(len, images.contents)) if isinstance(images, Encoded) else images.nbytes
        with self._lock:
            self.bytes += size
        return batch
