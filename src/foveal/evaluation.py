"""Measuring a network on a part of the data: every example once, nothing padded, nothing disturbed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch.nn import functional

from foveal.answering import Answering
from foveal.calibration import fit_temperature
from foveal.data.catalog import open_data
from foveal.data.input import evaluation_pipeline
from foveal.device import configured
from foveal.ensemble import check_ensemble, mean_answer, shared_batches
from foveal.errors import CheckpointError, DataError, UnknownNameError, UsageError
from foveal.faults import fault_point
from foveal.inference import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.download import ProgressReporter
    from foveal.data.source import Source
    from foveal.inference import TrainedRun, Weights
    from foveal.recipe import Recipe
    from foveal.views import Views

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
_BUILT_IN = ("accuracy", "loss", "top5_accuracy")  # measured always, without torchmetrics

T = TypeVar("T")
Split = Literal["test", "validation", "train"]


class EvaluationStopped(Exception):  # noqa: N818 - not an error: it was asked for
    """An evaluation was given up because it was asked to stop."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        accuracy: share of the examples whose most probable class is theirs.
        loss: mean cross-entropy, without label smoothing, at the temperature.
        examples: how many were evaluated.
        confusion: int64 ``[classes, classes]``, row the true class, column the predicted one.
        classes: class names.
        top5_accuracy: share whose class is among the five most probable; None up to five classes.
        metrics: further ones that were asked for by name.
        step: of the checkpoint; None where an ensemble's members differ in it.
        weights: ``ema`` (averaged) or ``raw``; None where an ensemble's members differ in it.
        split: the part of the data.
        temperature: what logits were divided by (:mod:`foveal.calibration`).
        corrupt: damaged records, which were left out.
        run: the run's folder; empty for a network of no run, and for an ensemble.
        members: of an ensemble, what each run alone has reached.
    """

    accuracy: float
    loss: float
    examples: int
    confusion: NDArray[np.int64]
    classes: tuple[str, ...]
    top5_accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = 0
    weights: Weights | None = "raw"
    split: str = "test"
    temperature: float = 1.0
    corrupt: tuple[CorruptRecord, ...] = ()
    run: str = ""
    members: tuple[Evaluation, ...] = ()

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
            **({"temperature": self.temperature} if self.temperature != 1 else {}),
            "examples": self.examples,
            **({"left_out": len(self.corrupt)} if self.corrupt else {}),
        }

    def report(self) -> dict[str, Any]:
        """Everything, as plain values."""
        rows = zip(self.classes, self.precision, self.recall, self.confusion, strict=True)
        members = [{"run": member.run, **member.record()} for member in self.members]
        return {
            **self.record(),
            **({"members": members} if members else {}),
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
    run: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | int | None = None,
    split: Split = "test",
    weights: Weights | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    tta: Views | None = None,
    metrics: Sequence[str] = (),
    compiled: bool = False,
    report: Callable[[str], None] = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Evaluation:
    """Evaluate a run's checkpoint on a part of its data, in full; or several runs together.

    Several runs are an ensemble: the mean of their probabilities is evaluated. Networks, input sizes and
    preprocessing may differ; classes and data must not. All networks are in memory at once.

    Args:
        run: the run folder, or several.
        checkpoint: ``"latest"``, ``"best"`` (by validation) or a step; by default what each run's recipe says
            with ``evaluation.use``.
        split: which part of the data, of the first run's if there are several.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        data: the folder of the data's files, if not where the run found them.
        device: overrides the recipe's.
        tta: overrides the recipe's ``evaluation.tta``: "none", "flip", "flip+shift" or "10-crop".
        metrics: names of further metrics, beside the (first) recipe's.
        compiled: use torch.compile, which takes up to a minute for each network first.
        report: told, in a line each, of damaged checkpoints, and of data that are slow to come.
        progress: told of downloads.

    Raises:
        FovealError: a run, its checkpoint or the data cannot be used, or the runs do not go together.
    """
    folders = [run] if isinstance(run, str | Path) else list(run)
    if not folders:
        raise UsageError("there is no run to evaluate: name one, or several")
    runs = [
        open_run(folder, checkpoint=checkpoint, weights=weights, device=device, tta=tta, report=report)
        for folder in folders
    ]
    check_ensemble(runs, same_data=data is None)
    recipe = runs[0].recipe
    part = recipe.data.model_copy(update={"path": Path(data)}) if data else recipe.data
    source = open_data(part, progress=progress).part(split)
    for trained in runs:
        check_data(trained, source, str(data or part.name))
    with configured(recipe):
        return _evaluate(
            [
                _Member(
                    Answering(each.network, each.recipe, temperature=each.temperature, compiled=compiled),
                    each.recipe,
                    each.state["step"],
                    each.weights,
                    str(each.folder),
                )
                for each in runs
            ],
            source,
            metrics=(*recipe.evaluation.metrics, *metrics),
            split=split,
            stopped=_never,
            report=report,
        )


def _never() -> bool:
    return False


def evaluate_network(
    model: nn.Module,
    source: Source,
    recipe: Recipe,
    *,
    metrics: Sequence[str] = (),
    averages: Mapping[str, Tensor] | None = None,
    temperature: float | None = 1.0,
    step: int = 0,
    weights: Weights = "raw",
    split: str = "test",
    stopped: Callable[[], bool] = _never,
    report: Callable[[str], None] = lambda _text: None,
) -> Evaluation:
    """Evaluate a network that is on its device; it stays as it is, and so do gradients and random state.

    Args:
        model: the network.
        source: the examples.
        recipe: resolved; says precision, normalisation and batch size.
        metrics: further ones, by name.
        averages: parameters and buffers to use instead of the network's own, of any dtype.
        temperature: what logits are divided by; None: what is fitted to these examples.
        step: passed on to the result, like ``weights`` and ``split``.
        weights: what the result calls them.
        split: what the result calls the part.
        stopped: asked between batches, and while one is waited for, whether to give up.
        report: told of data that are slow to come, in a line each.

    Raises:
        CheckpointError: the loss is not finite.
        DataError: the data cannot be read.
        EvaluationStopped: ``stopped`` said so.
    """
    network = Answering(model, recipe, averages, temperature=1.0 if temperature is None else temperature)
    return _evaluate(
        [_Member(network, recipe, step, weights)],
        source,
        metrics=metrics,
        split=split,
        stopped=stopped,
        report=report,
        calibrate=temperature is None,
    )


@dataclass(frozen=True)
class _Member:
    """A network that is evaluated, alone or with others."""

    network: Answering
    recipe: Recipe
    step: int
    weights: Weights
    run: str = ""


def _evaluate(
    members: Sequence[_Member],
    source: Source,
    *,
    metrics: Sequence[str],
    split: str,
    stopped: Callable[[], bool],
    report: Callable[[str], None],
    calibrate: bool = False,
) -> Evaluation:
    """Evaluate the mean of the members' probabilities, and where there are several, each member.

    With ``calibrate``, there is one member, whose answers are divided by the temperature that fits them best.
    """
    several = len(members) > 1
    device = members[0].network.device
    together = _Scores(source.classes, device, metrics)
    alone = [_Scores(source.classes, device) for _ in members] if several else []
    temperature = members[0].network.temperature
    held: list[tuple[Tensor, Tensor]] = []  # answers that wait for the temperature, and their labels
    corrupt: list[CorruptRecord] = []
    with shared_batches(source, [member.recipe for member in members], report, stopped) as batches:
        for batch in batches:
            if stopped():
                break
            corrupt += batch.corrupt
            if len(batch.targets):
                labels = batch.targets.to(device)
                pairs = zip(members, batch.images, strict=True)
                answers = [member.network(images).to(device) for member, images in pairs]
                if calibrate:
                    held.append((answers[0], labels))
                else:
                    together.add(mean_answer(answers), labels)
                for scores, logits in zip(alone, answers, strict=False):
                    scores.add(logits, labels)
            fault_point("evaluation")
    if stopped():
        raise EvaluationStopped
    if held:
        logits, labels = map(torch.cat, zip(*held, strict=True))
        temperature = fit_temperature(logits, labels) if logits.isfinite().all() else 1.0
        together.add(logits / temperature, labels)
    if not together.examples:
        raise DataError(f"{corrupt[0].reason}; nothing of the {split} part can be read")
    results = [
        scores.result(split, member.step, member.weights, corrupt, member.run)
        for scores, member in zip(alone or [together], members, strict=True)
    ]
    if not several:
        return replace(results[0], temperature=temperature)
    step, weights = _common(each.step for each in results), _common(each.weights for each in results)
    return together.result(split, step, weights, corrupt, members=results)


class _Scores:
    """What the logits of a part of the data add up to; nothing waits for the device before :meth:`result`."""

    def __init__(self, classes: Sequence[str], device: torch.device, metrics: Iterable[str] = ()) -> None:
        self.examples = 0
        self._classes = tuple(classes)
        count = len(classes)
        self._confusion = torch.zeros(count, count, dtype=torch.int64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._losses: list[Tensor] = []
        further = [name for name in metrics if name not in _BUILT_IN]
        self._further = {name: find_metric(name, count).to(device) for name in further}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: float32 ``[B, classes]`` and int64 ``[B]``."""
        count = len(self._classes)
        self.examples += len(labels)
        self._losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        pairs = labels * count + logits.argmax(dim=1)
        self._confusion += torch.bincount(pairs, minlength=count * count).view(count, count)
        if count > 5:
            self._top5 += (logits.topk(5).indices == labels[:, None]).sum()
        for metric in self._further.values():
            metric.update(logits.softmax(dim=1), labels)

    def result(
        self,
        split: str,
        step: int | None,
        weights: Weights | None,
        corrupt: Sequence[CorruptRecord],
        run: str = "",
        members: Sequence[Evaluation] = (),
    ) -> Evaluation:
        """What was measured.

        Raises:
            CheckpointError: the loss is not finite.
        """
        loss = math.fsum(torch.stack(self._losses).tolist()) / self.examples
        if not math.isfinite(loss):
            raise CheckpointError(
                f"{f'{run}: ' if run else ''}the loss on the {split} part is {loss} with the weights of step "
                f"{step}: training diverged; use another --checkpoint, or a lower learning rate"
            )
        return Evaluation(
            accuracy=int(self._confusion.trace()) / self.examples,
            loss=loss,
            examples=self.examples,
            confusion=self._confusion.cpu().numpy(),
            classes=self._classes,
            top5_accuracy=int(self._top5) / self.examples if len(self._classes) > 5 else None,
            metrics={name: float(metric.compute()) for name, metric in self._further.items()},
            step=step,
            weights=weights,
            split=split,
            corrupt=tuple(corrupt),
            run=run,
            members=tuple(members),
        )


def check_data(trained: TrainedRun, source: Source, name: str) -> None:
    """Whether a run can be evaluated on these examples, which are called ``name``.

    Raises:
        DataError: it was trained on other classes, or on images of another size.
    """
    if list(source.classes) != trained.state["classes"]:
        raise DataError(f"{name}: other classes than {trained.folder} was trained on")
    shape, wanted = evaluation_pipeline(trained.recipe, source).image_shape, trained.state["image_shape"]
    if list(shape) != wanted:
        sizes = [" x ".join(map(str, each)) for each in (shape, wanted)]
        raise DataError(f"{name}: images of {sizes[0]}; {trained.folder} was trained on {sizes[1]}")


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


def higher_is_better(name: str) -> bool:
    """Whether a metric that evaluation gives is to rise: not the loss, nor an error.

    Raises:
        UnknownNameError: there is no metric of that name.
    """
    if name in _BUILT_IN:
        return name != "loss"
    higher = find_metric(name, classes=2).higher_is_better
    return higher is not False  # torchmetrics says nothing of specificity and the like, which are to rise


def _snake(name: str) -> str:
    """``F1Score`` to ``f1_score``, ``AUROC`` to ``auroc``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _common(values: Iterable[T]) -> T | None:
    """The value that all of these are, if they are equal."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
