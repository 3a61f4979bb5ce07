"""``foveal predict``."""

from __future__ import annotations

import csv
import json as json_module
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.evaluate import CompileOption, TtaOption, parse_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foveal.prediction import Prediction


class Format(StrEnum):
    """How predictions are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


def predict(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run folder; or a pretrained model, efficientnet-lite0, which knows ImageNet's classes.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files of any common format and size, folders of them, or patterns: 'photos/*.jpg'.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    output: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="latest, best, or a step; default: as the recipe says.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    tta: TtaOption = None,
    invert: Annotated[
        bool,
        typer.Option(
            "--invert", help="Exchange dark and light first: black ink for a network of white digits."
        ),
    ] = False,
    compiled: CompileOption = False,
) -> None:
    """Say what image files show.

    What cannot be read is reported, and the rest done; the exit code is then 1.

    Example: foveal predict runs/digits scan.png --top 3
    """
    import logging
    import warnings

    from foveal.cli.progress import DownloadBar
    from foveal.prediction import predict as run_prediction

    warnings.filterwarnings("ignore", module="PIL")  # of damaged files; our own line says what is wrong
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    shown_later = json or output is Format.json or not sys.stdout.isatty()  # else results show how far it is
    predictions = run_prediction(
        run,
        images,
        top=top,
        checkpoint=None if checkpoint is None else parse_checkpoint(checkpoint),
        device=device,
        tta=tta.value if tta else None,
        invert=invert,
        compiled=compiled,
        report=lambda text: typer.echo(text, err=True),
        progress=DownloadBar() if shown_later and sys.stderr.isatty() else None,
    )
    failed = _print(predictions, Format.json if json else output)
    if failed:
        raise typer.Exit(1)


def _print(predictions: Iterable[Prediction], output: Format) -> bool:
    """Print each as it comes (JSON at the end, being one document); whether any file failed."""
    failed = False
    documents = []
    if output is Format.csv:
        csv.writer(sys.stdout).writerow(("file", "rank", "label", "index", "probability", "error"))
    for prediction in predictions:
        if prediction.error is not None:
            failed = True
            typer.echo(f"error: {prediction.error}", err=True)
        match output:
            case Format.json:
                documents.append(prediction.report())
            case Format.jsonl:
                typer.echo(json_module.dumps(prediction.report()))
            case Format.csv:
                _write_csv(prediction)
            case Format.table:
                _write_table(prediction)
    if output is Format.json:
        from foveal.cli.output import print_json

        print_json({"predictions": documents})
    return failed


def _write_csv(prediction: Prediction) -> None:
    writer = csv.writer(sys.stdout)
    for rank, guess in enumerate(prediction.top, start=1):
        writer.writerow((prediction.file, rank, guess.label, guess.index, guess.probability, ""))
    if prediction.error is not None:
        writer.writerow((prediction.file, "", "", "", "", prediction.error))


def _write_table(prediction: Prediction) -> None:
    if prediction.error is None:
        guesses = "  ".join(f"{guess.label} {guess.probability:.1%}" for guess in prediction.top)
        typer.echo(f"{prediction.file}: {guesses}")
