"""``foveal train``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FOLDER",
            help="A recipe's name, a recipe file (ends in .toml), or a folder of images (./photos), with a "
            "folder for each class.",
        ),
    ],
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: runs/NAME. A run in it is continued.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data's files; default: $FOVEAL_DATA/NAME, the cache, a download."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps to train.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sets seed.init and seed.data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|MODEL",
            help="Start from the weights of a run, a checkpoint, a .safetensors file or a PyTorch state "
            "dict, or of a pretrained model (efficientnet-lite0, timm/NAME); or go on from a TensorFlow "
            "checkpoint (its prefix or its folder).",
        ),
    ] = None,
    init_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="The network's names for that TensorFlow checkpoint's variables."
        ),
    ] = None,
    init_map: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=REPLACEMENT", help="Rename the tensors of that file; may be repeated."),
    ] = None,
    init_skip: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Tensors that keep their first values; may be repeated."),
    ] = None,
    init_partial: Annotated[
        bool, typer.Option("--init-partial", help="Accept that tensors are missing or of another shape.")
    ] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Parameters that do not learn; may be repeated."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an old run aside and begin anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a recipe, or what knows ImageNet on your images; the same command again goes on where it stopped.

    Example: foveal train digits --run runs/first --set optimizer.learning_rate=0.01

    Example: foveal train ./photos
    """
    from foveal import recipes
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.errors import UsageError

    given = {
        "steps": steps,
        "seed.init": seed,
        "seed.data": seed,
        "device": device,
        "data.path": data and str(data.resolve()),
        "init.path": init_from and _starting_point(init_from),
        "init.names": init_names and str(init_names.resolve()),
        "init.map": init_map or None,
        "init.skip": init_skip or None,
        "init.partial": init_partial or None,
        "freeze": freeze or None,
    }
    changes = [*(settings or ()), *(_change(key, value) for key, value in given.items() if value is not None)]
    if data is not None and recipes.is_path(recipe):
        raise UsageError(f"{recipe} and --data both say where the images are: leave one out")
    chosen = recipes.choose(recipe, changes)

    from foveal.training.console import Console
    from foveal.training.loop import train as run_training

    result = run_training(chosen, run, fresh=fresh, console=Console(), progress=DownloadBar())
    if json:
        print_json(result.report())
    else:
        typer.echo(result.summary())
    if not result.finished:
        raise typer.Exit(3)
    if recipes.is_path(recipe) and not json:
        from foveal.reviewing import review

        for line in review(result.run, device=device).lines():
            typer.echo(line)
        typer.echo(f"Next: foveal predict {quote(str(result.run))} PHOTO")


def _starting_point(text: str) -> str:
    """What ``--init-from`` names: a pretrained model, or else an absolute path."""
    from foveal.checkpoints.transfer import is_named

    return text if is_named(text) else str(Path(text).resolve())


def _change(key: str, value: object) -> str:
    """``KEY=VALUE`` as for ``--set``, whatever characters are in the value."""
    import tomli_w

    return f"{key}={tomli_w.dumps({'value': value}).removeprefix('value = ')}"
