"""``foveal summary``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.summary import NetworkSummary


def summary(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="A recipe's name, a recipe file, or a run folder.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the recipe's data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show a network: its layers, their outputs and multiply-adds; its tensors, and where they are.

    Example: foveal summary digits
    """
    from foveal import recipes
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.errors import UsageError
    from foveal.summary import summarise

    def report(line: str) -> None:
        typer.echo(line, err=True)

    changes = list(settings or ())
    if data is not None:
        changes.append(f"data.path={data.resolve()}")
    named = what in recipes.names() or what.endswith(".toml")
    if not named and ("/" in what or Path(what).is_dir()):
        if changes:
            raise UsageError(f"{what} is a run: its recipe and data are settled; leave out --set and --data")
        result = summarise(what, device=device, report=report)
    else:
        result = summarise(recipes.choose(what, changes), device=device, progress=DownloadBar())
    if json:
        print_json(result.report())
    else:
        _print(result)


def _print(result: NetworkSummary) -> None:
    from foveal.cli.output import print_table, printable, shape_text, size

    rows = [
        (
            printable(each.name or "(network)"),
            each.kind,
            shape_text(each.output or ()),
            each.dtype or "-",
            each.device or "-",
            f"{each.parameters:,}",
            f"{each.multiply_adds:,}",
        )
        for each in result.layers
    ]
    rows.append(("total", "", "", "", "", f"{result.parameters:,}", f"{result.multiply_adds:,}"))
    print_table(("layer", "kind", "output", "dtype", "device", "parameters", "multiply-adds"), rows, texts=5)
    typer.echo("")
    stored = [
        (
            printable(each.name),
            each.role,
            shape_text(each.shape),
            each.dtype,
            each.device,
            f"{each.elements:,}",
        )
        for each in result.tensors
    ]
    print_table(("tensor", "role", "shape", "dtype", "device", "elements"), stored, texts=5)
    height, width, channels = result.image_shape
    typer.echo(
        f"\n{result.name}: images of {height} x {width} x {channels}, {result.classes} classes; "
        f"{result.parameters:,} parameters, {size(result.nbytes)}; {result.multiply_adds:,} multiply-adds an "
        "image (convolutions and matrix products, forward)"
    )
