"""``foveal evaluate``."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.evaluation import Evaluation


_WIDEST = 20  # classes whose confusion matrix is shown whole


class Split(StrEnum):
    """A part of the data."""

    test = "test"
    validation = "validation"
    train = "train"


class Weights(StrEnum):
    """Which of the weights a checkpoint holds."""

    ema = "ema"
    raw = "raw"


class Tta(StrEnum):
    """Test-time augmentation: of how many views of an image the answer is the mean."""

    none = "none"
    flip = "flip"
    flip_shift = "flip+shift"
    ten_crop = "10-crop"


TtaOption = Annotated[
    Tta | None, typer.Option(help="Average over views of each image; default: as the recipe says.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Use torch.compile: up to a minute first, then quicker.")
]


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="A run folder; several are one ensemble.")
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="latest, best, or a step; default: as the recipe says.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    weights: Annotated[
        Weights | None, typer.Option(help="Averaged or raw; default: averaged where the recipe keeps them.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data's files.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    tta: TtaOption = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A further metric: f1_score, auroc, cohen_kappa, ...; may be repeated."),
    ] = None,
    compiled: CompileOption = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Evaluate every checkpoint once, as they come, until training has ended."
        ),
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="With --follow: end after so long without a new one: '10 min'."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a run's accuracy on a part of its data; or that of the mean probabilities of several runs.

    With --follow, measure every checkpoint of a run once, beside the process that trains it or afterwards;
    exit code 1 if one was damaged.

    Example: foveal evaluate runs/digits --split validation
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.errors import UsageError

    if follow:
        if len(runs) > 1 or checkpoint is not None:
            raise UsageError(
                "--follow evaluates every checkpoint of one run: leave out the others, and --checkpoint"
            )
        if tta is not None:
            raise UsageError("--follow evaluates as the recipe says: leave out --tta, or set evaluation.tta")
        if compiled:
            raise UsageError("--compile would compile for every checkpoint of --follow: leave it out")
        seconds = None if timeout is None else parse_duration(timeout)
        _follow(runs[0], split, weights, data, device, metric or (), timeout=seconds, json=json)
        return
    if timeout is not None:
        raise UsageError("--timeout says how long to wait with --follow: give both, or leave it out")

    from foveal.evaluation import evaluate as run_evaluation

    result = run_evaluation(
        runs,
        checkpoint=None if checkpoint is None else parse_checkpoint(checkpoint),
        split=split.value,
        weights=weights.value if weights else None,
        data=data,
        device=device,
        tta=tta.value if tta else None,
        metrics=metric or (),
        compiled=compiled,
        report=lambda text: typer.echo(text, err=True),
        progress=DownloadBar(),
    )
    if json:
        print_json(result.report())
    else:
        _print(result)


def _follow(
    run: Path,
    split: Split,
    weights: Weights | None,
    data: Path | None,
    device: str | None,
    metrics: Sequence[str],
    *,
    timeout: float | None,
    json: bool,
) -> None:
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.following import follow
    from foveal.training.console import evaluation_line

    result = follow(
        run,
        split=split.value,
        weights=weights.value if weights else None,
        data=data,
        device=device,
        metrics=metrics,
        timeout=timeout,
        report=lambda text: typer.echo(text, err=True),
        evaluated=lambda record: typer.echo(evaluation_line(record), err=json),
        progress=DownloadBar(),
    )
    if json:
        print_json(result.report())
    else:
        typer.echo(result.summary())
    if result.stopped:
        typer.echo(f"stopped by {result.stopped}: run the same command to continue", err=True)
        raise typer.Exit(3)
    if result.unusable:
        raise typer.Exit(1)


def parse_duration(text: str) -> float:
    """Seconds that ``--timeout`` names: ``"90 s"``, ``"10 min"``, ``"2 h"``; a number alone is seconds.

    Raises:
        UsageError: it is something else.
    """
    from foveal.errors import UsageError

    found = re.fullmatch(r"([0-9]+|[0-9]*\.[0-9]+) *(s|min|h|)", text.strip())
    if not found:
        raise UsageError(f"--timeout {text}: should be a time such as '90 s', '10 min' or '2 h'")
    return float(found[1]) * {"": 1, "s": 1, "min": 60, "h": 3600}[found[2]]


def parse_checkpoint(text: str) -> str | int:
    """What ``--checkpoint`` names.

    Raises:
        UsageError: it is neither a word nor a step.
    """
    from foveal.errors import UsageError

    if text in ("latest", "best"):
        return text
    if not text.isdigit():
        raise UsageError(f"--checkpoint {text}: should be latest, best, or the number of a step")
    return int(text)


def _print(result: Evaluation) -> None:
    from foveal.cli.output import print_table

    rows = [
        (row["label"], _percent(row["precision"]), _percent(row["recall"]), f"{row['examples']:,}")
        for row in result.report()["classes"]
    ]
    print_table(("class", "precision", "recall", "examples"), rows)
    typer.echo("")
    if len(result.classes) <= _WIDEST:
        counts = [
            (label, *map(str, row)) for label, row in zip(result.classes, result.confusion, strict=True)
        ]
        print_table(("true \\ predicted", *result.classes), counts)
    else:
        pairs = result.most_confused(_WIDEST)
        print_table(
            ("most confused: true", "predicted", "examples"), [(a, b, str(n)) for a, b, n in pairs], texts=2
        )
    if result.members:
        typer.echo("")
        print_table(
            ("member", "weights", "step", "accuracy", "loss"),
            [
                (each.run, str(each.weights), str(each.step), f"{each.accuracy:.2%}", f"{each.loss:.4f}")
                for each in result.members
            ],
            texts=2,
        )
    top5 = f"  top-5 {result.top5_accuracy:.2%}" if result.top5_accuracy is not None else ""
    further = "".join(f"  {name} {value:.4f}" for name, value in result.metrics.items())
    typer.echo(
        f"\naccuracy {result.accuracy:.2%}{top5}  loss {result.loss:.4f}{further}\n"
        f"{result.examples:,} {result.split} examples, {_weights(result)}"
    )


def _weights(result: Evaluation) -> str:
    if result.members:
        return f"mean probabilities of {len(result.members)} runs"
    return f"{result.weights} weights of step {result.step}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
