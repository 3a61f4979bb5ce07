"""foveal's input on the work of ``benchmarks/input_pipeline.py``; prints JSON, as the peers' scripts do."""

from __future__ import annotations

import itertools
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from peers import measurement
from PIL import Image

from foveal.data.augmentation.augment import Augmentation
from foveal.data.catalog import open_path
from foveal.data.decode import decode_batch
from foveal.data.loader import Loader
from foveal.data.pipeline import Pipeline
from foveal.data.sampler import Sample, Sampler
from foveal.data.source import Encoded, keys
from foveal.device import keep_freed_memory
from foveal.recipe import Brightness, Contrast, Flip, Normalization, RandomCrop
from foveal.seeding import Draws
from foveal.tensorflow.example import FixedLength, VariableLength, parse_batch
from foveal.tensorflow.records import RecordFile, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from foveal.data.source import Source

THREADS = 2
BATCH = 128
PHOTOS = 25
PHOTO_SHAPE = (299, 299, 3)
EPOCHS = 20
DISTORTION = (
    RandomCrop(size=(24, 24)),
    Flip(),
    Brightness(delta=63.0),
    Contrast(low=0.2, high=1.8),
)
STANDARDISATION = Normalization(per_image=True)
Specification = dict[str, FixedLength | VariableLength]
DIGITS: Specification = {"image": FixedLength((), bytes), "label": FixedLength((), np.int64)}
NUMBERS: Specification = {"values": FixedLength((4,), np.float32), "label": FixedLength((), np.int64)}


def load(
    prepare: Callable[[Sample], tuple[Any, ...]],
    size: int,
    batch_size: int,
    steps: Iterable[int] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Batches of ``prepare`` in random order from the public loader, without end where no steps are given."""
    sampler = Sampler(size, batch_size, seed=0)
    with Loader(
        lambda step: prepare(sampler.sample(step)), steps or itertools.count(), threads=THREADS
    ) as loader:
        yield from loader


def distorted(source: Source) -> Callable[[Sample], tuple[Any, ...]]:
    """The tutorial's distorted inputs, by a pipeline as training has it."""
    pipeline = Pipeline(source, DISTORTION, STANDARDISATION, seed=0)

    def prepare(sample: Sample) -> tuple[Any, ...]:
        prepared = pipeline(sample)
        return prepared.images, prepared.targets

    return prepare


def cifar(folder: str) -> Iterator[tuple[Any, ...]]:
    """Stored bytes to distorted, standardised batches."""
    source = open_path(Path(folder), format="cifar10").train
    return load(distorted(source), len(source), BATCH)


def cifar_kernel(folder: str) -> Iterator[tuple[Any, ...]]:
    """The same from bytes that are gathered already: draws and kernels alone."""
    source = open_path(Path(folder), format="cifar10").train
    images = source.read(np.arange(BATCH)).images
    assert not isinstance(images, Encoded)
    augment = Augmentation(DISTORTION, STANDARDISATION, source.image_shape)

    def prepare(sample: Sample) -> tuple[Any, ...]:
        return (augment(images, Draws(0, sample.positions, sample.indices, sample.epochs)),)

    return load(prepare, len(source), BATCH)


def photos(folder: str) -> Iterator[tuple[Any, ...]]:
    """JPEG files to uint8."""
    source = open_path(Path(folder), format="folder").train

    def prepare(sample: Sample) -> tuple[Any, ...]:
        encoded = source.read(sample.indices).images
        assert isinstance(encoded, Encoded)
        return (decode_batch(encoded.contents, PHOTO_SHAPE, None, keys(source, sample.indices)),)

    return load(prepare, len(source), PHOTOS)


def records(path: str, specification: Specification) -> Iterator[tuple[Any, ...]]:
    """Examples in random order; both CRCs of each record are checked."""
    file = RecordFile(path, hold=1 << 28)

    def prepare(sample: Sample) -> tuple[Any, ...]:
        return arrays(parse_batch(file.read_block(sample.indices), specification))

    return load(prepare, len(file), BATCH)


def ordered_records(path: str, specification: Specification) -> Iterator[tuple[Any, ...]]:
    """Examples in the order of the file, in the thread that asks for them; CRCs are checked as well."""
    while True:
        for block in read_blocks(path):
            columns: Mapping[str, Any] = parse_batch(block.records, specification)
            for first in range(0, len(block.records), BATCH):
                yield arrays({name: column[first : first + BATCH] for name, column in columns.items()})


def arrays(columns: Mapping[str, Any]) -> tuple[Any, ...]:
    """Images (uint8 ``[B, 784]``) or values, and labels."""
    if "image" in columns:
        return np.frombuffer(b"".join(columns["image"]), np.uint8).reshape(-1, 28 * 28), columns["label"]
    return columns["values"], columns["label"]


def first_batch(folder: str) -> dict[str, Any]:
    """Seconds from the start of the loader to its first batch, in a new process."""
    source = open_path(Path(folder), format="cifar10").train
    prepare = distorted(source)
    start = time.perf_counter()
    next(load(prepare, len(source), BATCH))
    return {"seconds": time.perf_counter() - start}


def memory(folder: str) -> dict[str, Any]:
    """Growth of the resident memory, in bytes: by opening the data and an epoch, and by all other epochs."""
    imported = resident()
    source = open_path(Path(folder), format="cifar10").train
    prepare, steps = distorted(source), len(source) // BATCH
    after = []
    for epoch in range(EPOCHS):
        for _ in load(prepare, len(source), BATCH, range(epoch * steps, (epoch + 1) * steps)):
            pass
        after.append(resident())
    return {"first_epoch": after[0] - imported, "later_epochs": after[-1] - after[0], "epochs": EPOCHS}


def resident() -> int:
    """Resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def fidelity(folder: str) -> dict[str, Any]:
    """PSNR in dB of the photographs against Pillow's antialiased bilinear resizing."""
    found = []
    for path in sorted(Path(folder).glob("*/*")):
        with Image.open(path) as file:
            reference = np.asarray(file.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR))
        found.append(psnr(reference, decode_batch([path.read_bytes()], PHOTO_SHAPE, None, [path.name])[0]))
    return {"lowest": min(found), "mean": float(np.mean(found))}


def psnr(reference: NDArray[np.uint8], image: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit images, in dB; equal ones count as 100."""
    error = float(np.mean((reference.astype(np.float64) - image) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


if __name__ == "__main__":
    keep_freed_memory()  # as training does
    measurement.run(
        {
            "cifar": cifar,
            "cifar-kernel": cifar_kernel,
            "photos": photos,
            "digits": partial(records, specification=DIGITS),
            "digits-ordered": partial(ordered_records, specification=DIGITS),
            "numbers": partial(records, specification=NUMBERS),
            "numbers-ordered": partial(ordered_records, specification=NUMBERS),
        },
        f"foveal {version('foveal')}",
        {"first-batch": first_batch, "memory": memory, "fidelity": fidelity},
    )
