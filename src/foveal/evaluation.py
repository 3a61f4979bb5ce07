"""Measuring a network on a part of the data: every example once, nothing padded, nothing disturbed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from foveal.data.catalog import open_data
from foveal.data.input import evaluation_pipeline
from foveal.data.loader import Loader
from foveal.data.sampler import EvaluationBatches, Sample
from foveal.device import autocast, configured
from foveal.errors import CheckpointError, DataError, UnknownNameError
from foveal.inference import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.download import ProgressReporter
    from foveal.data.source import Source
    from foveal.inference import Weights
    from foveal.recipe import Recipe

# Metrics of torchmetrics that give more than one number, or need an argument that a name cannot carry.
_SEVERAL = {
    "roc",
    "precision_recall_curve",
    "confusion_matrix",
    "stat_scores",
    "f_beta_score",
    "eer",
    "log_auc",
}

Split = Literal["test", "validation", "train"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        accuracy: share of the examples whose most probable class is theirs.
        loss: mean cross-entropy, without label smoothing.
        examples: how many were evaluated.
        confusion: int64 ``[classes, classes]``, row the true class, column the predicted one.
        classes: class names.
        top5_accuracy: share whose class is among the five most probable; None up to five classes.
        metrics: further ones that were asked for by name.
        step: of the checkpoint.
        weights: ``ema`` (averaged) or ``raw``.
        split: the part of the data.
        corrupt: damaged records, which were left out.
    """

    accuracy: float
    loss: float
    examples: int
    confusion: NDArray[np.int64]
    classes: tuple[str, ...]
    top5_accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    weights: Weights = "raw"
    split: str = "test"
    corrupt: tuple[CorruptRecord, ...] = ()

    @property
    def precision(self) -> NDArray[np.float64]:
        """Per class: of the examples called so, the share that are; NaN where none was."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Per class: of the examples that are so, the share called so; NaN where none is."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    def most_confused(self, count: int) -> list[tuple[str, str, int]]:
        """The commonest mistakes: true class, predicted class, how many examples."""
        mistakes = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(mistakes, axis=None, kind="stable")[::-1][:count]
        pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
        return [(self.classes[a], self.classes[b], int(mistakes[a, b])) for a, b in pairs if mistakes[a, b]]

    def record(self) -> dict[str, Any]:
        """The numbers alone, as the run's log holds them."""
        top5 = {} if self.top5_accuracy is None else {"top5_accuracy": self.top5_accuracy}
        return {
            "step": self.step,
            "split": self.split,
            "weights": self.weights,
            "accuracy": self.accuracy,
            "loss": self.loss,
            **top5,
            **self.metrics,
            "examples": self.examples,
            **({"left_out": len(self.corrupt)} if self.corrupt else {}),
        }

    def report(self) -> dict[str, Any]:
        """Everything, as plain values."""
        rows = zip(self.classes, self.precision, self.recall, self.confusion, strict=True)
        return {
            **self.record(),
            "classes": [
                {
                    "label": label,
                    "precision": None if np.isnan(precision) else float(precision),
                    "recall": None if np.isnan(recall) else float(recall),
                    "examples": int(row.sum()),
                }
                for label, precision, recall, row in rows
            ],
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    run: str | Path,
    *,
    checkpoint: str | int = "latest",
    split: Split = "test",
    weights: Weights | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    metrics: Sequence[str] = (),
    report: Callable[[str], None] = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Evaluation:
    """Evaluate a run's checkpoint on a part of its data, in full.

    Args:
        run: the run folder.
        checkpoint: ``"latest"``, ``"best"`` (highest validation accuracy) or a step.
        split: which part of the data.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        data: the folder of the data's files, if not where the run found them.
        device: overrides the recipe's.
        metrics: names of further metrics, beside the recipe's.
        report: told, in a line each, of damaged checkpoints.
        progress: told of downloads.

    Raises:
        FovealError: the run, its checkpoint or the data cannot be used.
    """
    trained = open_run(run, checkpoint=checkpoint, weights=weights, device=device, report=report)
    recipe, state = trained.recipe, trained.state
    part = recipe.data.model_copy(update={"path": Path(data)}) if data else recipe.data
    source = open_data(part, progress=progress).part(split)
    if list(source.classes) != state["classes"]:
        raise DataError(f"{data or part.name}: other classes than {run} was trained on")
    shape = evaluation_pipeline(recipe, source).image_shape
    if list(shape) != state["image_shape"]:
        wanted, found = (" x ".join(map(str, each)) for each in (state["image_shape"], shape))
        raise DataError(f"{data or part.name}: images of {found}; {run} was trained on {wanted}")
    with configured(recipe):
        return evaluate_network(
            trained.network,
            source,
            recipe,
            metrics=(*recipe.evaluation.metrics, *metrics),
            step=state["step"],
            weights=trained.weights,
            split=split,
        )


def evaluate_network(
    model: nn.Module,
    source: Source,
    recipe: Recipe,
    *,
    metrics: Sequence[str] = (),
    averages: Mapping[str, Tensor] | None = None,
    step: int = 0,
    weights: Weights = "raw",
    split: str = "test",
) -> Evaluation:
    """Evaluate a network that is on its device; weights, statistics and random state stay as they are.

    Args:
        model: the network.
        source: the examples.
        recipe: resolved; says precision, normalisation and batch size.
        metrics: further ones, by name.
        averages: parameters to use instead of the network's own.
        step: passed on to the result, like ``weights`` and ``split``.
        weights: what the result calls them.
        split: what the result calls the part.

    Raises:
        CheckpointError: the loss is not finite.
    """
    classes = len(source.classes)
    device = next(model.parameters()).device
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    top5 = torch.zeros((), dtype=torch.int64, device=device)
    extra = {name: find_metric(name, classes).to(device) for name in metrics}
    counted = 0
    corrupt: list[CorruptRecord] = []
    for images, targets, damaged in _batches(source, recipe):
        corrupt += damaged
        counted += len(targets)
        if not len(targets):
            continue
        labels = targets.to(device)
        logits = _infer(model, images.to(device), recipe.precision, averages)
        loss += functional.cross_entropy(logits, labels, reduction="sum").double()
        pairs = labels * classes + logits.argmax(dim=1)
        confusion += torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        if classes > 5:
            top5 += (logits.topk(5).indices == labels[:, None]).sum()
        for metric in extra.values():
            metric.update(logits.softmax(dim=1), labels)
    if not counted:
        raise DataError(f"{corrupt[0].reason}; nothing of the {split} part can be read")
    if not loss.isfinite():
        raise CheckpointError(
            f"the loss on the {split} part is {loss.item()} with the weights of step {step}: training "
            "diverged; use another --checkpoint, or a lower learning rate"
        )
    return Evaluation(
        accuracy=int(confusion.trace()) / counted,
        loss=float(loss) / counted,
        examples=counted,
        confusion=confusion.cpu().numpy(),
        classes=tuple(source.classes),
        top5_accuracy=int(top5) / counted if classes > 5 else None,
        metrics={name: float(metric.compute()) for name, metric in extra.items()},
        step=step,
        weights=weights,
        split=split,
        corrupt=tuple(corrupt),
    )


def find_metric(name: str, classes: int) -> Any:
    """A metric of ``torchmetrics.classification`` by name: ``f1_score`` is ``MulticlassF1Score``.

    Raises:
        UnknownNameError: it has none of that name that gives one number.
    """
    from torchmetrics import classification

    prefix = "Multiclass"
    known = {
        _snake(key.removeprefix(prefix)): getattr(classification, key)
        for key in vars(classification)
        if key.startswith(prefix)
    }
    known = {name: kind for name, kind in known.items() if name not in _SEVERAL and "_at_" not in name}
    if name not in known:
        raise UnknownNameError("metric", name, known)
    return known[name](num_classes=classes)


def _snake(name: str) -> str:
    """``F1Score`` to ``f1_score``, ``AUROC`` to ``auroc``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _batches(source: Source, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, tuple[CorruptRecord, ...]]]:
    """Every example once, in order: images float32 ``[B, C, H, W]`` channels_last, targets int64 ``[B]``."""
    pipeline = evaluation_pipeline(recipe, source)
    numbered = EvaluationBatches(len(source), recipe.evaluation.batch_size)

    def prepare(number: int) -> tuple[Tensor, Tensor, tuple[CorruptRecord, ...]]:
        indices = numbered[number]
        prepared = pipeline(Sample(indices, indices, np.zeros_like(indices)))
        images = torch.as_tensor(prepared.images).permute(0, 3, 1, 2)
        return images, torch.as_tensor(prepared.targets), prepared.corrupt

    with Loader(prepare, range(len(numbered)), threads=int(recipe.loader_threads)) as batches:
        yield from batches


def _infer(model: nn.Module, images: Tensor, precision: str, averages: Mapping[str, Tensor] | None) -> Tensor:
    """Logits, float32; the network is put back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(images.device, precision):
            if averages is None:
                logits: Tensor = model(images)
            else:
                logits = torch.func.functional_call(model, dict(averages), (images,))
        return logits.float()
    finally:
        model.train(training)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
