"""What to expect of a trained run, and which images to look at: for those who will rely on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from foveal.answering import Answering
from foveal.data.catalog import open_data
from foveal.data.grouping import same_pictures
from foveal.data.inspection.verification import rejected
from foveal.data.source import labels_of
from foveal.data.stream import StreamSource
from foveal.device import configured
from foveal.ensemble import shared_batches
from foveal.errors import DataError
from foveal.evaluation import check_data
from foveal.inference import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.source import DataSet, Source
    from foveal.inference import TrainedRun

_CONFIDENCE: Final = 1.96  # of the normal distribution, for 95%
_SURE: Final = 0.9  # the probability from which on an answer counts as sure
_PAIRS: Final = 3  # of classes that are taken for each other
_FEW: Final = 20  # images of a class, below which more of them would help most


@dataclass(frozen=True)
class Mistake:
    """An image that the network takes for another class than its label says.

    Attributes:
        key: where it is from.
        label: what it is called there.
        predicted: what the network takes it for.
        probability: how sure the network is of that.
    """

    key: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Review:
    """What was found out.

    Attributes:
        run: its folder.
        step: of the checkpoint.
        counts: examples of each class by part.
        split: the part that was answered: the test part, or else the validation part.
        examples: how many it has, without those that cannot be read.
        right: how many of them are answered rightly.
        sure: how many are answered with a probability of at least 0.9.
        sure_right: how many of these rightly.
        recall: by class, the share that is answered rightly; None where there is none.
        confused: the commonest mistakes: label, prediction, how many.
        mistakes: the images behind them, the surest first.
        conflicts: pairs of images that look the same and have different labels, before parts were held out.
        unreadable: of all parts, how many images were left out.
    """

    run: Path
    step: int
    counts: dict[str, dict[str, int]]
    split: str
    examples: int
    right: int
    sure: int
    sure_right: int
    recall: dict[str, float | None]
    confused: tuple[tuple[str, str, int], ...]
    mistakes: tuple[Mistake, ...]
    conflicts: tuple[tuple[str, str], ...]
    unreadable: int

    @property
    def accuracy(self) -> float:
        """Share of the examples that are answered rightly."""
        return self.right / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy on new images of the same kind is, in 95% of such cases (Wilson, 1927)."""
        square = _CONFIDENCE**2
        middle = (self.right + square / 2) / (self.examples + square)
        rest = self.accuracy * (1 - self.accuracy) * self.examples + square / 4
        half = _CONFIDENCE * math.sqrt(rest) / (self.examples + square)
        return max(0.0, middle - half), min(1.0, middle + half)

    def report(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **vars(self),
            "run": str(self.run),
            "accuracy": self.accuracy,
            "interval": self.interval,
            "mistakes": [vars(mistake) for mistake in self.mistakes],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        low, high = self.interval
        yield f"What to expect of {self.run} (step {self.step})"
        yield (
            f"  {self.right:,} of {self.examples:,} {self.split} images are recognised: {self.accuracy:.1%}; "
            f"of others like them, {low:.0%} to {high:.0%}"
        )
        if self.split == "validation":
            yield "  these images also decided when training stopped: expect a little less of others"
        if self.sure:
            yield (
                f"  of the {self.sure:,} answers that are at least {_SURE:.0%} sure, {self.sure_right:,} are "
                f"right ({self.sure_right / self.sure:.1%})"
            )
        known = [(share, label) for label, share in self.recall.items() if share is not None]
        worst = [f"{label} {share:.0%}" for share, label in sorted(known)[:3] if share < 1]
        if worst:
            yield f"  recognised least: {', '.join(worst)}"
        for label, predicted, count in self.confused:
            yield f"  {label} taken for {predicted}: {count:,}"
        yield from self._advice()

    def _advice(self) -> Iterator[str]:
        """What to look at, and what would help."""
        yield "What to look at"
        for mistake in self.mistakes:
            guess = f"{mistake.predicted} ({mistake.probability:.0%})"
            yield f"  {mistake.key}: labelled {mistake.label}, taken for {guess}"
        for one, other in self.conflicts:
            yield f"  {one} and {other}: the same picture under two labels"
        if self.unreadable:
            yield f"  files that cannot be read, which foveal data verify names: {self.unreadable:,}"
        few = [f"{label} ({count})" for label, count in self.counts["train"].items() if count < _FEW]
        if few:
            yield f"  classes with few images, of which more would help: {', '.join(few[:10])}"
        if not (self.mistakes or self.conflicts or self.unreadable or few):
            yield "  nothing in particular"


def review(
    run: str | Path,
    *,
    checkpoint: str | int | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    shown: int = 8,
    report: Callable[[str], None] = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Review:
    """Look at what a run answers on its test part, or if it has none, on its validation part.

    Args:
        run: the run folder.
        checkpoint: ``"latest"``, ``"best"`` or a step; by default what the recipe says.
        data: the folder of the data's files, if not where the run found them.
        device: overrides the recipe's.
        shown: how many mistakes, and pairs of images, to name at most.
        report: told, in a line each, of damaged checkpoints, and of data that are slow to come.
        progress: told of downloads, and of images that are compared.

    Raises:
        FovealError: the run, its checkpoint or the data cannot be used; or there is nothing but a train part.
    """
    trained = open_run(run, checkpoint=checkpoint, device=device, report=report)
    part = trained.recipe.data
    if data is not None:
        part = part.model_copy(update={"path": Path(data)})
    opened = open_data(part, progress=progress)
    whole = opened
    if part.split is not None or part.validation is not None:
        whole = open_data(part.model_copy(update={"split": None, "validation": None}), progress=progress)
    split = next((name for name in ("test", "validation") if name in opened.parts()), None)
    if split is None or isinstance(opened.train, StreamSource):
        raise DataError(
            f"{run}: its data have no part that was held out: train it with data.split.validation"
        )
    source = opened.part(split)
    check_data(trained, source, str(data or part.name))
    with configured(trained.recipe):
        answers = _answers(trained, source, report)
    conflicts = _conflicts(whole.train, shown, progress)
    return _review(trained, opened, split, answers, shown, conflicts)


@dataclass(frozen=True)
class _Answers:
    """What the network says of the examples that can be read, int64 or float32 ``[N]``."""

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]


def _answers(trained: TrainedRun, source: Source, report: Callable[[str], None]) -> _Answers:
    network = Answering(trained.network, trained.recipe, temperature=trained.temperature)
    found, missing = [], set()
    with shared_batches(source, [trained.recipe], report, lambda: False) as batches:
        for batch in batches:
            missing |= {record.key for record in batch.corrupt}
            best = network(batch.images[0]).softmax(dim=1).max(dim=1)
            found.append((batch.targets, best.indices.cpu(), best.values.cpu()))
    labels, predicted, probability = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    keys = (source.key(index) for index in range(len(source))) if missing else ()
    unread = np.array([index for index, key in enumerate(keys) if key in missing], np.int64)
    return _Answers(np.delete(np.arange(len(source)), unread), labels, predicted, probability)


def _review(
    trained: TrainedRun,
    data: DataSet,
    split: str,
    answers: _Answers,
    shown: int,
    conflicts: Sequence[tuple[str, str]],
) -> Review:
    source, classes = data.part(split), data.train.classes
    right = answers.predicted == answers.labels
    sure = answers.probability >= _SURE
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (answers.labels, answers.predicted), 1)
    totals, hits = confusion.sum(axis=1).tolist(), np.diag(confusion).tolist()
    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-answers.probability[wrong], kind="stable")][:shown]
    mixed = np.argwhere(confusion - np.diag(np.diag(confusion)))
    commonest = sorted(mixed.tolist(), key=lambda pair: -confusion[*pair])[:_PAIRS]
    parts = data.parts().items()
    counts = {name: np.bincount(labels_of(part), minlength=len(classes)) for name, part in parts}
    return Review(
        run=trained.folder,
        step=trained.state["step"],
        counts={name: dict(zip(classes, each.tolist(), strict=True)) for name, each in counts.items()},
        split=split,
        examples=len(right),
        right=int(right.sum()),
        sure=int(sure.sum()),
        sure_right=int((sure & right).sum()),
        recall={
            label: hit / total if total else None
            for label, hit, total in zip(classes, hits, totals, strict=True)
        },
        confused=tuple((classes[a], classes[b], int(confusion[a, b])) for a, b in commonest),
        mistakes=tuple(
            Mistake(
                source.key(int(answers.indices[row])),
                classes[answers.labels[row]],
                classes[answers.predicted[row]],
                float(answers.probability[row]),
            )
            for row in wrong
        ),
        conflicts=tuple(conflicts),
        unreadable=len(list(rejected(data))) + len(source) - len(right),
    )


def _conflicts(source: Source, shown: int, progress: ProgressReporter | None) -> list[tuple[str, str]]:
    """Pairs of images that look the same and have different labels."""
    labels = labels_of(source)
    pairs = same_pictures(source, progress=progress)
    different = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    return [(source.key(int(one)), source.key(int(other))) for one, other in different[:shown]]
