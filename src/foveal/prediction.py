"""Classifying image files with a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.data.augment import Normalizer
from foveal.data.decode import read_image
from foveal.data.loader import Loader
from foveal.device import autocast, configured
from foveal.errors import CheckpointError, ImageError
from foveal.inference import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from foveal.inference import TrainedRun, Weights

_BATCH = 32


@dataclass(frozen=True)
class Guess:
    """A class an image may belong to."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image file shows, or why that cannot be said.

    Attributes:
        file: the path as it was given.
        top: the most probable classes, best first; empty if the file could not be read.
        error: why it could not.
    """

    file: str
    top: tuple[Guess, ...] = ()
    error: str | None = None

    def report(self) -> dict[str, Any]:
        """As plain values."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        return {"file": self.file, "top": [vars(guess) for guess in self.top]}


def predict(
    run: str | Path,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    checkpoint: str | int = "latest",
    weights: Weights | None = None,
    device: str | None = None,
    invert: bool = False,
    report: Callable[[str], None] = lambda _text: None,
) -> Iterator[Prediction]:
    """Classify image files of any common format and size.

    Args:
        run: the run folder.
        images: paths of files.
        top: how many classes to name.
        checkpoint: ``"latest"``, ``"best"`` or a step.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        device: overrides the recipe's.
        invert: exchange dark and light first (digits in black ink, for a network that learnt white on black).
        report: told, in a line each, of damaged checkpoints.

    Yields:
        A prediction for each file, in order; a file that cannot be read has its error.

    Raises:
        FovealError: the run or its checkpoint cannot be used.
    """
    trained = open_run(run, checkpoint=checkpoint, weights=weights, device=device, report=report)
    height, width, channels = trained.state["image_shape"]
    normalize = Normalizer(trained.recipe.normalization, channels)
    files = [str(image) for image in images]

    def prepare(first: int) -> list[NDArray[np.float32] | str]:
        return [read(file) for file in files[first : first + _BATCH]]

    def read(file: str) -> NDArray[np.float32] | str:
        try:
            pixels = read_image(Path(file), (height, width, channels))
        except ImageError as error:
            return str(error)
        image: NDArray[np.float32] = normalize((255 - pixels if invert else pixels)[None])[0]
        return image

    with configured(trained.recipe), Loader(prepare, range(0, len(files), _BATCH), threads=2) as batches:
        for number, batch in enumerate(batches):
            names = files[number * _BATCH :]
            good = [image for image in batch if not isinstance(image, str)]
            guesses = iter(_classify(trained, good, top) if good else ())
            for file, image in zip(names, batch, strict=False):
                if isinstance(image, str):
                    yield Prediction(file, error=image)
                else:
                    yield Prediction(file, top=next(guesses))


def _classify(trained: TrainedRun, images: list[NDArray[np.float32]], top: int) -> list[tuple[Guess, ...]]:
    classes = trained.state["classes"]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(trained.device)
    with torch.inference_mode(), autocast(trained.device, trained.recipe.precision):
        logits = trained.network(batch)
    best = logits.float().softmax(dim=1).topk(min(top, len(classes)))
    if not best.values.isfinite().all():
        raise CheckpointError(
            "the network's answer is not a number: training diverged; use another --checkpoint"
        )
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        tuple(Guess(classes[index], index, value) for index, value in zip(indices, values, strict=True))
        for indices, values in rows
    ]
