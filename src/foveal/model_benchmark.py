"""Timing a network: batches that go through it, or that it is trained on, with nothing to wait for."""

from __future__ import annotations

import copy
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from foveal.answering import Answering
from foveal.bench_subject import find_subject
from foveal.compilation import can_compile
from foveal.data.sampler import Sample
from foveal.device import configured, synchronise
from foveal.errors import UsageError
from foveal.inference import undisturbed
from foveal.machine_rate import best_rate
from foveal.peak_memory import PeakMemory
from foveal.training.measure import resolve_speed
from foveal.training.step import PreparedBatch, TrainStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from foveal.bench_subject import Subject
    from foveal.data.download import ProgressReporter
    from foveal.machine_rate import Rate
    from foveal.recipe import Recipe

Mode = Literal["forward", "train"]
Precision = Literal["auto", "float32", "bfloat16"]

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PROGRESS = 10  # steps between two reports
_TOTAL_STEPS = 1_000_000_000  # of the run that steps are timed of: as good as no end


@dataclass(frozen=True)
class Setting:
    """One way to use a network.

    Attributes:
        batch_size: images at a time.
        mode: ``forward`` is what evaluation and prediction do, batch norm folded; ``train`` is a training
            step: forward, backward, update.
        precision: what it computes in; ``auto``: whichever takes less time.
        compiled: with torch.compile.
    """

    batch_size: int = 32
    mode: Mode = "forward"
    precision: Precision = "auto"
    compiled: bool = False


@dataclass(frozen=True)
class Timing:
    """How long the batches took.

    Attributes:
        setting: the precision is not ``auto``.
        seconds: of each step after the burn-in.
        operations: floating-point operations of convolutions and matrix products for an image; a
            multiply-add is two. Winograd's algorithm does fewer, so that rates may be above the best one.
        best: what this machine was measured to reach in this precision.
        peak_memory: bytes, of the GPU or else of the whole process; None where that cannot be known.
    """

    setting: Setting
    seconds: tuple[float, ...]
    operations: int
    best: Rate
    peak_memory: int | None

    @property
    def mean(self) -> float:
        """Seconds of a batch."""
        return statistics.fmean(self.seconds)

    @property
    def deviation(self) -> float:
        """Standard deviation of the batches' seconds."""
        return statistics.pstdev(self.seconds)

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the batches do not exceed; 50: the median."""
        return float(np.percentile(self.seconds, percent))

    @property
    def images_per_second(self) -> float:
        """At the mean time of a batch."""
        return self.setting.batch_size / self.mean

    @property
    def operations_per_second(self) -> float:
        """At the mean time of a batch."""
        return self.operations * self.images_per_second

    @property
    def share_of_best(self) -> float:
        """Of the machine's best rate."""
        return self.operations_per_second / self.best.per_second

    def report(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""
        return {
            **vars(self.setting),
            "steps": len(self.seconds),
            "seconds_per_batch": self.mean,
            "deviation": self.deviation,
            "percentiles": {str(percent): self.percentile(percent) for percent in (5, 25, 50, 75, 95)},
            "images_per_second": self.images_per_second,
            "flops_per_image": self.operations,
            "flops_per_second": self.operations_per_second,
            "best_flops_per_second": self.best.per_second,
            "best_of": self.best.what,
            "share_of_best": self.share_of_best,
            "peak_memory_bytes": self.peak_memory,
        }


@dataclass(frozen=True)
class ModelBenchmark:
    """What was measured of a network.

    Attributes:
        name: of the network, the recipe or the run.
        image_shape: height, width and channels.
        classes: how many it tells apart.
        parameters: numbers in its parameters.
        device: where it was.
        threads: of the processor.
        timings: by the settings, in order.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    parameters: int
    device: str
    threads: int
    timings: tuple[Timing, ...]

    def report(self) -> dict[str, Any]:
        """Plain values: the first setting's on top, those of all in ``results``."""
        results = [timing.report() for timing in self.timings]
        what = {name: value for name, value in vars(self).items() if name != "timings"}
        return {**what, **results[0], "results": results}


def bench_model(
    what: str | Path | Recipe,
    settings: Sequence[Setting] = (Setting(),),
    *,
    steps: int = 100,
    burn_in: int = 10,
    size: int | None = None,
    classes: int | None = None,
    changes: Sequence[str] = (),
    device: str | None = None,
    progress: ProgressReporter | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> ModelBenchmark:
    """Time a network on random images.

    Args:
        what: a network, a recipe or a run, as of :func:`foveal.bench_subject.find_subject`.
        settings: the ways to use it, which are measured one after another; at least one.
        steps: how many batches are timed in each, at least 1.
        burn_in: how many go before them, besides the first one.
        size: height and width of the images, if not those of what is named.
        classes: how many there are, if not those of what is named.
        changes: ``KEY=VALUE`` for the recipe.
        device: overrides the recipe's.
        progress: told of downloads.
        report: told how far it is, in a line every ten steps, and of damaged checkpoints.

    Raises:
        FovealError: there is nothing of that name, or it cannot be used so.
    """
    subject = find_subject(
        what, size=size, classes=classes, changes=changes, device=device, progress=progress, report=report
    )
    if any(setting.compiled for setting in settings) and not can_compile():
        raise UsageError("torch.compile does not work here: it needs a C++ compiler; leave out --compile")
    place = next(subject.network.parameters()).device
    with configured(subject.recipe), torch.random.fork_rng():
        operations = {mode: _operations(subject, mode) for mode in {each.mode for each in settings}}
        measured = [_measure(subject, setting, steps, burn_in, report) for setting in settings]
        precisions = {setting.precision for setting, _, _ in measured}
        rates = {precision: best_rate(place, _DTYPES[precision]) for precision in precisions}
    timings = (
        Timing(setting, seconds, operations[setting.mode], rates[setting.precision], memory)
        for setting, seconds, memory in measured
    )
    parameters = sum(parameter.numel() for parameter in subject.network.parameters())
    threads = int(subject.recipe.threads)
    return ModelBenchmark(
        subject.name, subject.image_shape, subject.classes, parameters, str(place), threads, tuple(timings)
    )


def _measure(
    subject: Subject, setting: Setting, steps: int, burn_in: int, report: Callable[[str], None]
) -> tuple[Setting, tuple[float, ...], int | None]:
    """What was measured, precision chosen: seconds of each step, and the peak of memory."""
    device = next(subject.network.parameters()).device
    memory = PeakMemory(device)
    with _refusals(subject, setting.batch_size):
        precision, step = (_forward if setting.mode == "forward" else _training)(subject, setting)
        setting = replace(setting, precision=precision)
        for _ in range(burn_in):
            step()
        synchronise(device)
        seconds = []
        for number in range(1, steps + 1):
            start = time.perf_counter()
            step()
            synchronise(device)
            seconds.append(time.perf_counter() - start)
            if number % _PROGRESS == 0:
                report(f"{describe(setting)}: step {number} of {steps}, {seconds[-1]:.3g} sec / batch")
    return setting, tuple(seconds), memory.bytes()


def describe(setting: Setting) -> str:
    """A setting in a few words."""
    how = f"{setting.mode}, batch {setting.batch_size}, {setting.precision}"
    return f"{how}, compiled" if setting.compiled else how


def _forward(subject: Subject, setting: Setting) -> tuple[Precision, Callable[[], object]]:
    """The precision, and what answers for a batch as evaluation does; it has been called once."""
    part = subject.recipe.evaluation.model_copy(update={"tta": "none"})
    recipe = subject.recipe.model_copy(update={"precision": setting.precision, "evaluation": part})
    network = Answering(subject.network, recipe, compiled=setting.compiled)
    images = _batch(subject, setting.batch_size).images
    network(images)
    return network.precision, partial(network, images)


def _training(subject: Subject, setting: Setting) -> tuple[Precision, Callable[[], object]]:
    """The precision, and what does a step on a copy of the network; it has been called once."""
    batch = _batch(subject, setting.batch_size)
    wanted = {"precision": setting.precision, "compile": setting.compiled}
    recipe = resolve_speed(subject.recipe.model_copy(update=wanted), subject.network, batch, _TOTAL_STEPS)
    device = batch.images.device
    train_step = TrainStep(copy.deepcopy(subject.network).train(), recipe, _TOTAL_STEPS, device)
    numbers = count(_first_full_step(recipe))

    def step() -> None:
        train_step(next(numbers), batch)

    step()
    return "bfloat16" if recipe.precision == "bfloat16" else "float32", step


def _operations(subject: Subject, mode: Mode) -> int:
    """Floating-point operations for an image."""
    batch = _batch(subject, 2)  # batch norm in training refuses a single value
    plain = {"precision": "float32", "compile": False, "kernels": False}
    recipe = subject.recipe.model_copy(update=plain)
    with _refusals(subject, 2):
        if mode == "forward":
            with undisturbed(subject.network), FlopCounterMode(display=False) as counter:
                subject.network(batch.images)
        else:
            model = copy.deepcopy(subject.network).train()
            train_step = TrainStep(model, recipe, _TOTAL_STEPS, batch.images.device)
            exact = {torch.ops.aten.convolution_backward: _convolution_backward}
            with FlopCounterMode(display=False, custom_mapping=exact) as counter:
                train_step.backward(_first_full_step(recipe), batch)
    return int(counter.get_total_flops()) // 2


def _convolution_backward(
    gradient: list[int],
    images: list[int],
    filters: list[int],
    *arguments: Any,
    out_shape: Any,  # noqa: ARG001 - of FlopCounterMode's formulas
) -> int:
    """Of shapes: as many operations as forward for each gradient that is asked for.

    PyTorch's own formula takes the filters' gradient of a grouped convolution for that of a full one.
    """
    transposed, wanted = arguments[4], arguments[7]
    forward: int = conv_flop_count(images, filters, gradient, transposed=transposed)
    return forward * (int(wanted[0]) + int(wanted[1]))


def _first_full_step(recipe: Recipe) -> int:
    """The first step in which all learns that ever does."""
    return sum(phase.steps for phase in recipe.phases)


def _batch(subject: Subject, size: int) -> PreparedBatch:
    """Random images, channels_last, and classes, on the network's device."""
    height, width, channels = subject.image_shape
    device = next(subject.network.parameters()).device
    images = torch.randn(size, channels, height, width, device=device)
    targets = torch.randint(subject.classes, (size,), device=device)
    numbers = np.arange(size)
    sample = Sample(numbers, numbers, np.zeros_like(numbers))
    return PreparedBatch(images.to(memory_format=torch.channels_last), targets, sample)


@contextmanager
def _refusals(subject: Subject, size: int) -> Iterator[None]:
    """Say in a line what a network cannot take, and what there is no memory for."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        shape = " x ".join(map(str, subject.image_shape))
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"{subject.name} cannot be used on {size} images of {shape}: {reason}") from error
