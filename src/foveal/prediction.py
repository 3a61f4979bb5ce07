"""Classifying image files with a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.data.decode import read_file
from foveal.data.input import evaluation_pipeline
from foveal.data.loader import Loader
from foveal.data.sampler import Sample
from foveal.data.source import Batch, Encoded
from foveal.device import autocast, configured
from foveal.errors import CheckpointError
from foveal.inference import open_run
from foveal.recipe import Invert
from foveal.views import mean_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from foveal.data.pipeline import Pipeline, Prepared
    from foveal.inference import TrainedRun, Weights
    from foveal.recipe import Recipe
    from foveal.views import Views

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
    tta: Views | None = None,
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
        tta: overrides the recipe's ``evaluation.tta``: "none", "flip" or "flip+shift".
        invert: exchange dark and light first (digits in black ink, for a network that learnt white on black).
        report: told, in a line each, of damaged checkpoints, and of files that are slow to come.

    Yields:
        A prediction for each file, in order; a file that cannot be read has its error.

    Raises:
        FovealError: the run or its checkpoint cannot be used.
    """
    trained = open_run(run, checkpoint=checkpoint, weights=weights, device=device, tta=tta, report=report)
    files = _Files(tuple(map(str, images)), trained.state)
    pipeline = _pipeline(trained.recipe, files, invert=invert)

    def prepare(first: int) -> Prepared:
        indices = np.arange(first, min(first + _BATCH, len(files)))
        return pipeline(Sample(indices, indices, np.zeros_like(indices)))

    numbers = range(0, len(files), _BATCH)
    with (
        configured(trained.recipe),
        Loader(prepare, numbers, threads=2, report=report) as batches,
    ):
        for number, batch in enumerate(batches):
            errors = {record.key: record.reason for record in batch.corrupt}
            guesses = iter(_classify(trained, batch.images, top) if len(batch.images) else ())
            for file in files.paths[number * _BATCH : (number + 1) * _BATCH]:
                if file in errors:
                    yield Prediction(file, error=errors[file])
                else:
                    yield Prediction(file, top=next(guesses))


class _Files:
    """Image files as a ``Source`` without labels; what cannot be read is a damaged record."""

    def __init__(self, paths: tuple[str, ...], state: Mapping[str, Any]) -> None:
        self.paths = paths
        self.classes = tuple(state["classes"])
        self.channels = state["image_shape"][2]
        stored = state.get("stored_shape", state["image_shape"])  # runs before there was preprocessing
        self.image_shape = stored and tuple(stored)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        contents = [read_file(Path(self.paths[index])) for index in indices.tolist()]
        return Batch(Encoded(contents), np.zeros(len(contents), np.int64))

    def key(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self) -> str:
        return ""


def _pipeline(recipe: Recipe, files: _Files, *, invert: bool) -> Pipeline:
    transforms = (*recipe.preprocessing, Invert()) if invert else recipe.preprocessing
    data = recipe.data.model_copy(update={"on_corrupt": "skip"})
    return evaluation_pipeline(recipe.model_copy(update={"preprocessing": transforms, "data": data}), files)


def _classify(trained: TrainedRun, images: Any, top: int) -> list[tuple[Guess, ...]]:
    classes = trained.state["classes"]
    batch = torch.as_tensor(images).permute(0, 3, 1, 2).to(trained.device)
    recipe = trained.recipe
    with torch.inference_mode(), autocast(trained.device, recipe.precision, kernels=recipe.kernels):
        logits = mean_logits(trained.network, batch, recipe.evaluation.tta)
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
