"""Several networks on the same examples: whether they go together, their batches, and their joint answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.data.input import evaluation_pipeline
from foveal.data.loader import Loader
from foveal.data.sampler import EvaluationBatches, Sample
from foveal.errors import RunError, UsageError
from foveal.recipe import CentralCrop, Invert, Resize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.pipeline import Prepared
    from foveal.data.source import Source
    from foveal.inference import TrainedRun
    from foveal.recipe import Recipe


@dataclass(frozen=True)
class SharedBatch:
    """The same examples as each of several networks is to see them.

    Attributes:
        images: for each network, float32 ``[B, C, H, W]``, channels_last; their sizes may differ.
        targets: int64 ``[B]``.
        corrupt: records that were left out.
    """

    images: tuple[Tensor, ...]
    targets: Tensor
    corrupt: tuple[CorruptRecord, ...]


def shared_batches(
    source: Source,
    recipes: Sequence[Recipe],
    report: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Loader[SharedBatch]:
    """Every example once, in order, prepared ahead for networks of these recipes.

    Recipes that prepare images alike share the work. A damaged record that one of them leaves out is left
    out for all.

    Args:
        source: the examples.
        recipes: resolved; the first says how many examples a batch has, and how many threads prepare them.
        report: told of retries and stalls, in a line each.
        stopped: asked while a batch is waited for; when it says yes, the iteration ends.

    Raises:
        RecipeError: a recipe does not fit the examples.
    """
    numbered = EvaluationBatches(len(source), recipes[0].evaluation.batch_size)
    first_alike = [next(i for i, other in enumerate(recipes) if _alike(recipe, other)) for recipe in recipes]
    pipelines = {number: evaluation_pipeline(recipes[number], source) for number in set(first_alike)}

    def prepare(number: int) -> SharedBatch:
        indices = numbered[number]
        sample = Sample(indices, indices, np.zeros_like(indices))
        prepared = {number: pipeline(sample) for number, pipeline in pipelines.items()}
        good = reduce(np.intersect1d, (each.sample.indices for each in prepared.values()))
        seen = {number: _select(each, good) for number, each in prepared.items()}
        damaged = {record.key: record for each in prepared.values() for record in each.corrupt}
        return SharedBatch(
            tuple(seen[number][0] for number in first_alike), seen[0][1], tuple(damaged.values())
        )

    threads = int(recipes[0].loader_threads)
    return Loader(prepare, range(len(numbered)), threads=threads, report=report, stopped=stopped)


def mean_answer(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the networks' probabilities; of one network, its logits.

    Args:
        logits: of each network, float32 ``[B, classes]``.

    Returns:
        float32 ``[B, classes]``, whose softmax is the mean of the softmaxes.
    """
    if len(logits) == 1:
        return logits[0]
    answers = [each.to(logits[0].device).log_softmax(dim=1) for each in logits]
    return torch.stack(answers).logsumexp(dim=0) - math.log(len(answers))


def check_ensemble(runs: Sequence[TrainedRun], *, same_data: bool) -> None:
    """Whether the probabilities of these runs can be averaged.

    Args:
        runs: the members.
        same_data: they must have been trained on the same data, too.

    Raises:
        UsageError: a run is named twice.
        RunError: they know other classes, or learnt from other data.
    """
    first = runs[0]
    for number, run in enumerate(runs[1:], 1):
        if run.folder.resolve() in (other.folder.resolve() for other in runs[:number]):
            raise UsageError(f"{run.folder} is named twice: an ensemble has each run once")
        if difference := _difference(first.state["classes"], run.state["classes"]):
            raise RunError(
                f"{first.folder} and {run.folder} know other classes ({difference}): an ensemble needs the "
                "same ones, in the same order"
            )
        if same_data and not _same_data(first, run):
            raise RunError(
                f"{first.folder} and {run.folder} were trained on other data: name what to evaluate them on "
                "with --data"
            )


def _alike(recipe: Recipe, other: Recipe) -> bool:
    """Whether both make the same of an image."""
    drawn = not all(isinstance(each, CentralCrop | Invert | Resize) for each in recipe.preprocessing)
    mine, theirs = (
        (
            each.preprocessing,
            each.normalization,
            each.device,
            each.data.backend,
            each.data.on_corrupt,
            each.seed.data if drawn else None,
        )
        for each in (recipe, other)
    )
    return mine == theirs


def _select(prepared: Prepared, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` and targets of those examples of a batch that are among ``indices``."""
    images = torch.as_tensor(prepared.images).permute(0, 3, 1, 2)
    targets = torch.as_tensor(prepared.targets)
    if len(indices) == len(targets):
        return images, targets
    rows = torch.from_numpy(np.isin(prepared.sample.indices, indices).nonzero()[0])
    return images[rows.to(images.device)], targets[rows]


def _difference(classes: Sequence[str], others: Sequence[str]) -> str | None:
    """In what two lists of classes differ."""
    if len(classes) != len(others):
        return f"{len(classes)} and {len(others)}"
    pairs = zip(classes, others, strict=True)
    return next((f"number {i} is {a!r} and {b!r}" for i, (a, b) in enumerate(pairs) if a != b), None)


def _same_data(run: TrainedRun, other: TrainedRun) -> bool:
    """Whether the training examples were equal, or at least came from the same place in the same way."""
    if run.state["data"] == other.state["data"]:
        return True
    mine, theirs = (
        (part.name, part.options, part.path, part.validation, part.split)
        for part in (run.recipe.data, other.recipe.data)
    )
    return mine == theirs
