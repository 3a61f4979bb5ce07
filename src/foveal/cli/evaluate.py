"""``foveal evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="A run folder; several are one ensemble.")
    ],
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    weights: Annotated[
        Weights | None, typer.Option(help="Averaged or raw; default: averaged where the recipe keeps them.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data's files.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A further metric: f1_score, auroc, cohen_kappa, ...; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a run's accuracy on a part of its data; or that of the mean probabilities of several runs.

    Example: foveal evaluate runs/digits --split validation
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.evaluation import evaluate as run_evaluation

    result = run_evaluation(
        runs,
        checkpoint=parse_checkpoint(checkpoint),
        split=split.value,
        weights=weights.value if weights else None,
        data=data,
        device=device,
        metrics=metric or (),
        report=lambda text: typer.echo(text, err=True),
        progress=DownloadBar(),
    )
    if json:
        print_json(result.report())
    else:
        _print(result)


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
