"""One step of a run, done again: its batch, its loss and its gradients, to the last digit.

What a step trains on follows from the recipe and the step's number; the weights it starts from, from a
checkpoint and the steps after it. Run folders are only read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.data.inspection.sheet import class_caption, draw_sheet, save_png
from foveal.data.source import keys
from foveal.device import configured, find_device
from foveal.errors import UsageError
from foveal.reproducibility.history import advance, open_learner, read_history, restore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from foveal.data.download import ProgressReporter
    from foveal.recipe import Normalization
    from foveal.reproducibility.history import Report
    from foveal.training.learner import Learner
    from foveal.training.step import PreparedBatch


@dataclass(frozen=True)
class Example:
    """An example of a batch.

    Attributes:
        key: where it comes from: file and record.
        index: its number in the training data.
        epoch: the pass over the data, from 0.
        classes: what it is trained towards, by name; several of them, with their shares, where images are
            mixed.
    """

    key: str
    index: int
    epoch: int
    classes: Mapping[str, float]

    @property
    def label(self) -> str:
        """The class, or the classes and their shares."""
        return _label(self.classes.items())


@dataclass(frozen=True)
class Replay:
    """A step, done again.

    Attributes:
        run: the run folder.
        step: from 1.
        total_steps: of the run.
        start: the step of the checkpoint that was gone on from; 0 for the first weights.
        same_device: whether it is the run's, so that every bit must be the same.
        examples: the batch, in its order.
        loss: the batch's mean loss.
        logged_loss: the same as the run logged it; None if it did not.
        gradients: the L2 norm of each learning parameter's gradient, without weight decay, the largest first.
        picture: the contact sheet that was written; None if none was asked for, or there is nothing to see.
    """

    run: Path
    step: int
    total_steps: int
    start: int
    same_device: bool
    examples: Sequence[Example]
    loss: float
    logged_loss: float | None
    gradients: Mapping[str, float]
    picture: Path | None = None

    @property
    def equal(self) -> bool | None:
        """Whether the loss is the logged one to the last bit; None if that step was not logged."""
        return None if self.logged_loss is None else self.loss == self.logged_loss

    @property
    def gradient_norm(self) -> float:
        """The L2 norm of all gradients together."""
        return math.hypot(*self.gradients.values())

    def report(self) -> dict[str, Any]:
        """As plain values, with the ten largest gradients; a number that is not finite is None."""
        return {
            "run": str(self.run),
            "step": self.step,
            "total_steps": self.total_steps,
            "checkpoint": self.start,
            "loss": _finite(self.loss),
            "logged_loss": self.logged_loss,
            "equal": self.equal,
            "same_device": self.same_device,
            "gradient_norm": _finite(self.gradient_norm),
            "gradients": {name: _finite(norm) for name, norm in list(self.gradients.items())[:10]},
            "picture": None if self.picture is None else str(self.picture),
            "examples": [{**vars(each), "classes": dict(each.classes)} for each in self.examples],
        }


def replay(
    run: str | Path,
    step: int,
    *,
    data: str | Path | None = None,
    device: str | None = None,
    picture: Path | None = None,
    count: int = 100,
    report: Report = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Replay:
    """Do a step of a run again, trained forward from the nearest checkpoint before it.

    Args:
        run: the run folder; nothing in it is changed.
        step: which one, from 1, as in ``metrics.jsonl``. It may be one that the run did not log: the one at
            which it diverged, for example.
        data: the folder of the data's files, if not where the run found them.
        device: overrides the recipe's; rounding differs then.
        picture: the PNG file to draw the batch's images into, as the network sees them.
        count: of how many of them.
        report: told, in a line each, of damaged checkpoints and logs and of what is done.
        progress: told of downloads, and of the steps on the way.

    Raises:
        UsageError: the run has no such step.
        FovealError: the run, its data or its checkpoints cannot be used.
    """
    history = read_history(Path(run), report)
    device = str(find_device(device)) if device else history.recipe.device
    same_device = device == history.recipe.device
    history = replace(history, recipe=history.recipe.model_copy(update={"device": device}))
    with configured(history.recipe):
        learner = open_learner(history, data=data, progress=progress)
        if not 1 <= step <= learner.total_steps:
            raise UsageError(f"--step {step}: {run} has the steps 1 to {learner.total_steps}")
        if step > history.last:
            report(f"the run has recorded nothing after step {history.last}")
        batch = learner.prepare(step - 1)
        for record in batch.corrupt:
            report(f"another example stands in: {record.reason}")
        drawn = picture and _draw(f"{history.path.resolve().name}, step {step}", learner, batch, count)
        if picture and drawn:  # before the work, which a name that cannot be written would waste
            save_png(drawn, picture)
        start = restore(learner, history, step - 1, report)
        if start >= step:
            raise UsageError(
                f"--step {step}: {run} began after step {start}, where its first weights are from"
            )
        report(f"going on from {f'the checkpoint of step {start}' if start else 'the first weights'}")
        advance(learner, step - 1, progress)
        loss, gradients = _learn(learner, batch)
    return Replay(
        run=history.path,
        step=step,
        total_steps=learner.total_steps,
        start=start,
        same_device=same_device,
        examples=_examples(learner, batch),
        loss=loss,
        logged_loss=history.losses.get(step),
        gradients=gradients,
        picture=picture if drawn else None,
    )


def _learn(learner: Learner, batch: PreparedBatch) -> tuple[float, dict[str, float]]:
    """Do a step; its loss and the norm of each gradient, the largest first."""
    norms: dict[str, float] = {}

    def measure(*_: object) -> None:
        for name, parameter in learner.model.named_parameters():
            if parameter.grad is not None:
                norms[name] = torch.linalg.vector_norm(parameter.grad.cpu(), dtype=torch.float64).item()

    with learner.train_step.optimizer.register_step_pre_hook(measure):
        loss = learner.learn(batch).item()
    return loss, dict(sorted(norms.items(), key=lambda item: -item[1]))


def _examples(learner: Learner, batch: PreparedBatch) -> list[Example]:
    names, sample = learner.source.classes, batch.sample
    return [
        Example(key, index, epoch, {names[target]: share for target, share in _shares(targets)})
        for key, index, epoch, targets in zip(
            keys(learner.source, sample.indices),
            sample.indices.tolist(),
            sample.epochs.tolist(),
            batch.targets.cpu(),
            strict=True,
        )
    ]


def _shares(target: Tensor) -> list[tuple[int, float]]:
    """The classes of a target (int64 ``[]``, float32 ``[classes]``) and their shares, the largest first."""
    if not target.ndim:
        return [(int(target), 1.0)]
    return sorted(((n, share) for n, share in enumerate(target.tolist()) if share), key=lambda item: -item[1])


def _label(classes: Iterable[tuple[str, float]]) -> str:
    return ", ".join(name if share == 1 else f"{name} {share:.0%}" for name, share in classes)


def _draw(title: str, learner: Learner, batch: PreparedBatch, count: int) -> Image | None:
    """The contact sheet of a batch; None where the examples are no images of 1 or 3 channels."""
    height, width, channels = learner.image_shape
    if height * width == 1 or channels not in (1, 3):
        return None
    pixels = _pixels(batch.images[:count], learner.recipe.normalization)
    names = learner.source.classes
    cells = [
        (image, _label((class_caption(names, number), share) for number, share in _shares(target)))
        for image, target in zip(pixels, batch.targets[:count].cpu(), strict=True)
    ]
    if len(cells) < len(batch.images):
        title += f": the first {len(cells)} of {len(batch.images)}"
    columns = math.isqrt(len(cells) - 1) + 1
    return draw_sheet(title, [cells[first : first + columns] for first in range(0, len(cells), columns)])


def _pixels(images: Tensor, normalization: Normalization) -> NDArray[np.uint8]:
    """Images ``[B, C, H, W]`` as the network sees them, as pixels ``[B, H, W, C]``: normalisation is undone.

    Where that was by each image's own mean and deviation, its values are stretched from black to white.
    """
    values: NDArray[np.float32] = images.cpu().permute(0, 2, 3, 1).numpy()
    if normalization.per_image:
        low, high = (bound(values, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
        values = (values - low) / np.where(high > low, high - low, 1)
    else:
        values = values * np.array(normalization.deviation) + np.array(normalization.mean)
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
