"""Grain on the work of ``benchmarks/input_pipeline.py``; run by its own Python, prints JSON."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import grain
import measurement
import numpy as np

WORKERS = 2
BATCH = 128


class Cifar:
    """The training part, held in memory."""

    def __init__(self, folder: str) -> None:
        files = [Path(folder) / f"data_batch_{number}.bin" for number in range(1, 6)]
        stored = np.concatenate([np.fromfile(path, np.uint8) for path in files]).reshape(-1, 3073)
        self.labels = stored[:, 0].astype(np.int64)
        self.images = stored[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        """A uint8 ``[32, 32, 3]`` and its label."""
        return self.images[index], self.labels[index]


class Distort(grain.transforms.RandomMap):
    """The tutorial's distortion of an example."""

    def random_map(
        self, element: tuple[np.ndarray, np.int64], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.int64]:
        """A float32 ``[24, 24, 3]`` and its label."""
        image, label = element
        top, left = rng.integers(9, size=2)
        image = image[top : top + 24, left : left + 24]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        image = image.astype(np.float32) + np.float32(rng.uniform(-63, 63))
        mean = image.mean((0, 1))
        image = (image - mean) * np.float32(rng.uniform(0.2, 1.8)) + mean
        deviation = max(image.std(), image.size**-0.5)
        return (image - image.mean()) / deviation, label


def cifar(folder: str, reading: grain.ReadOptions | None = None) -> grain.IterDataset:
    """An example at a time, in worker processes."""
    examples = grain.MapDataset.source(Cifar(folder)).seed(0).shuffle().repeat()
    batches = examples.random_map(Distort()).batch(BATCH).to_iter_dataset(reading)
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=WORKERS))


def cifar_unthreaded(folder: str) -> grain.IterDataset:
    """The same without the threads in each worker, which wait for each other where elements are computed."""
    return cifar(folder, grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


if __name__ == "__main__":
    measurement.run({"cifar": cifar, "cifar-unthreaded": cifar_unthreaded}, f"Grain {version('grain')}")
