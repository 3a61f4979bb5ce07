"""PyTorch's DataLoader on the work of ``benchmarks/input_pipeline.py``; prints JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import measurement
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = 2
BATCH = 128
PHOTOS = 25


class Cifar(Dataset[tuple[torch.Tensor, int]]):
    """The tutorial's distortion, an example at a time, of the training part held in memory."""

    def __init__(self, folder: str) -> None:
        files = [Path(folder) / f"data_batch_{number}.bin" for number in range(1, 6)]
        stored = np.concatenate([np.fromfile(path, np.uint8) for path in files]).reshape(-1, 3073)
        self.labels = stored[:, 0].tolist()
        self.images = torch.from_numpy(stored[:, 1:].reshape(-1, 3, 32, 32).copy())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """A float32 ``[3, 24, 24]`` and its label."""
        top, left = torch.randint(9, (2,)).tolist()
        flip, brightness, contrast = torch.rand(3).tolist()
        image = self.images[index, :, top : top + 24, left : left + 24]
        if flip < 0.5:
            image = image.flip(2)
        image = image.float() + (brightness * 126 - 63)
        mean = image.mean((1, 2), keepdim=True)
        image = (image - mean) * (0.2 + 1.6 * contrast) + mean
        deviation, mean = torch.std_mean(image, correction=0)
        return (image - mean) / deviation.clamp(min=image.numel() ** -0.5), self.labels[index]


class Photos(Dataset[tuple[torch.Tensor]]):
    """JPEG files to uint8 ``[299, 299, 3]`` with Pillow, whose bilinear resizing is antialiased."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).glob("*/*"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        """Decoded and resized."""
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(image)),)


def endless(dataset: Dataset[tuple[object, ...]], batch_size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches epoch after epoch, from the same workers."""
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    measurement.run(
        {
            "cifar": lambda folder: endless(Cifar(folder), BATCH),
            "photos": lambda folder: endless(Photos(folder), PHOTOS),
        },
        f"torch {torch.__version__}",
    )
