"""``foveal review``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def review(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="latest, best, or a step; default: as the recipe says.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data's files.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    shown: Annotated[int, typer.Option(min=0, help="Images to name, at most.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what to expect of a run, and which images to look at.

    Example: foveal review runs/photos
    """
    from foveal.cli.evaluate import parse_checkpoint
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.reviewing import review as run_review

    found = run_review(
        run,
        checkpoint=None if checkpoint is None else parse_checkpoint(checkpoint),
        data=data,
        device=device,
        shown=shown,
        report=lambda text: typer.echo(text, err=True),
        progress=DownloadBar(),
    )
    if json:
        print_json(found.report())
    else:
        for line in found.lines():
            typer.echo(line)
