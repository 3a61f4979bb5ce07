"""Classifying image files with a trained run, or with a pretrained model."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.answering import Answering
from foveal.checkpoints.pretrained import PRETRAINED
from foveal.data.decode import read_file
from foveal.data.input import evaluation_pipeline
from foveal.data.listing import find_images
from foveal.data.loader import Loader
from foveal.data.sampler import Sample
from foveal.data.source import Batch, Encoded
from foveal.device import configured
from foveal.errors import CheckpointError, ImageError, UnknownNameError, UsageError
from foveal.inference import open_pretrained, open_run
from foveal.recipe import Invert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.listing import NamedImage
    from foveal.data.pipeline import Pipeline, Prepared
    from foveal.inference import Weights
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
        file: the path, as it was given or found; or the folder or pattern that leads to none.
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
    checkpoint: str | int | None = None,
    weights: Weights | None = None,
    device: str | None = None,
    tta: Views | None = None,
    invert: bool = False,
    compiled: bool = False,
    report: Callable[[str], None] = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Iterator[Prediction]:
    """Classify image files of any common format and size.

    Args:
        run: the run folder; or, as a ``str``, the name of a pretrained model, ``"efficientnet-lite0"``, which
            knows ImageNet's classes.
        images: files, folders, which stand for the images below them, and patterns (``photos/**/*.jpg``).
        top: how many classes to name.
        checkpoint: ``"latest"``, ``"best"`` or a step of a run; by default what its recipe says with
            ``evaluation.use``.
        weights: of a run, ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        device: overrides the recipe's.
        tta: overrides the recipe's ``evaluation.tta``: "none", "flip", "flip+shift" or "10-crop".
        invert: exchange dark and light first (digits in black ink, for a network that learnt white on black).
        compiled: use torch.compile, which takes up to a minute first.
        report: told, in a line each, of damaged checkpoints, and of files that are slow to come.
        progress: told how many files there are, and how many are done.

    Yields:
        A prediction for each file, in order, as soon as its batch is done; a file that cannot be read has its
        error.

    Raises:
        FovealError: the run or its checkpoint, or the model, cannot be used.
    """
    if isinstance(run, str) and run in PRETRAINED:
        if checkpoint is not None or weights is not None:
            raise UsageError(f"{run} is a pretrained model, not a run: it has no checkpoints to choose from")
        trained = open_pretrained(run, device=device, tta=tta)
    else:
        _check_name(str(run))
        trained = open_run(run, checkpoint=checkpoint, weights=weights, device=device, tta=tta, report=report)
    files = _Files(tuple(find_images(map(str, images))), trained.state)
    network = Answering(trained.network, trained.recipe, temperature=trained.temperature, compiled=compiled)
    pipeline = _pipeline(trained.recipe, files, invert=invert)
    with configured(trained.recipe), _told(progress, len(files)) as done:
        for prediction in _predictions(network, pipeline, files, top, report=report):
            yield prediction
            done()


def _predictions(
    network: Answering, pipeline: Pipeline, files: _Files, top: int, *, report: Callable[[str], None]
) -> Iterator[Prediction]:
    """A prediction for each file, in order."""

    def prepare(first: int) -> Prepared:
        indices = np.arange(first, min(first + _BATCH, len(files)))
        return pipeline(Sample(indices, indices, np.zeros_like(indices)))

    numbers = range(0, len(files), _BATCH)
    with Loader(prepare, numbers, threads=2, report=report) as batches:
        for number, batch in enumerate(batches):
            errors = {record.key: record.reason for record in batch.corrupt}
            guesses = iter(_classify(network, batch.images, files.classes, top) if len(batch.images) else ())
            for file, _ in files.images[number * _BATCH : (number + 1) * _BATCH]:
                if file in errors:
                    yield Prediction(file, error=errors[file])
                else:
                    yield Prediction(file, top=next(guesses))


class _Files:
    """Image files as a ``Source`` without labels; what cannot be read is a damaged record."""

    def __init__(self, images: Sequence[NamedImage], state: Mapping[str, Any]) -> None:
        self.images = images
        self.classes = tuple(state["classes"])
        self.channels = state["image_shape"][2]
        stored = state.get("stored_shape", state["image_shape"])  # runs before there was preprocessing
        self.image_shape = stored and tuple(stored)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        contents = [_content(self.images[index]) for index in indices.tolist()]
        return Batch(Encoded(contents), np.zeros(len(contents), np.int64))

    def key(self, index: int) -> str:
        return self.images[index].path

    def fingerprint(self) -> str:
        return ""


def _content(image: NamedImage) -> bytes:
    if image.error is not None:
        raise ImageError(image.error)
    return read_file(Path(image.path))


def _check_name(run: str) -> None:
    """Raise UnknownNameError for what is no folder, and nearly the name of a pretrained model."""
    if not Path(run).exists() and difflib.get_close_matches(run, PRETRAINED, n=1, cutoff=0.6):
        raise UnknownNameError("run folder or pretrained model", run, PRETRAINED)


@contextmanager
def _told(progress: ProgressReporter | None, total: int) -> Iterator[Callable[[], None]]:
    """What to call for each file that is done."""
    if progress is None:
        yield lambda: None
        return
    progress.start("predicting", total, 0)
    try:
        yield lambda: progress.advance(1)
    finally:
        progress.finish()


def _pipeline(recipe: Recipe, files: _Files, *, invert: bool) -> Pipeline:
    transforms = (*recipe.preprocessing, Invert()) if invert else recipe.preprocessing
    data = recipe.data.model_copy(update={"on_corrupt": "skip"})
    return evaluation_pipeline(recipe.model_copy(update={"preprocessing": transforms, "data": data}), files)


def _classify(network: Answering, images: Any, classes: Sequence[str], top: int) -> list[tuple[Guess, ...]]:
    logits = network(torch.as_tensor(images).permute(0, 3, 1, 2))
    best = logits.softmax(dim=1).topk(min(top, len(classes)))
    if not best.values.isfinite().all():
        raise CheckpointError(
            "the network's answer is not a number: training diverged; use another --checkpoint"
        )
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        tuple(Guess(classes[index], index, value) for index, value in zip(indices, values, strict=True))
        for indices, values in rows
    ]
