"""``foveal verify-resume``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.reproducibility.verify_resume import Kill, Verification

_SHOWN = 3  # differences of each log and checkpoint


def verify_resume(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe file (ends in .toml).")],
    kills: Annotated[
        int, typer.Option(help="How often to kill it; 7 at least, one for each fault point.")
    ] = 10,
    steps: Annotated[
        int | None, typer.Option(help="How many steps to train; default: the recipe's, but at most 300.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data's files; default: $FOVEAL_DATA/NAME, the cache, a download."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Sets seed.init and seed.data; the kills are drawn from it too.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A new folder for both runs, which is not deleted at the end.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prove that resuming is exact: train undisturbed, and killed and resumed, and compare every bit.

    Exits with 1 if anything differs.

    Example: foveal verify-resume digits --kills 20
    """
    from foveal import recipes
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.reproducibility.verify_resume import verify_resume as verify

    changes = list(settings or ())
    if seed is not None:
        changes += [f"seed.init={seed}", f"seed.data={seed}"]
    if data is not None:
        changes.append(f"data.path={data.resolve()}")
    result = verify(
        recipes.choose(recipe, changes),
        keep,
        kills=kills,
        steps=steps,
        report=lambda text: typer.echo(text, err=True),
        killed=lambda kill: _print_kill(kill, to_stderr=json),
        progress=DownloadBar(),
    )
    if json:
        print_json(result.report())
    else:
        _print(result)
    if not result.identical:
        raise typer.Exit(1)


def _print_kill(kill: Kill, *, to_stderr: bool) -> None:
    first, *others = kill.differences or ("identical so far",)
    more = f" (and {len(others):,} more)" if others else ""
    where = f"{kill.point:<16}  at step {kill.step:>6,}  resumed from {kill.resumed_from:>6,}"
    typer.echo(f"{kill.number:>3}  {where}  {first}{more}", err=to_stderr)


def _print(result: Verification) -> None:
    for point, why in result.not_applicable.items():
        typer.echo(f"  -  {point:<16}  not applicable: {why}")
    counts = ", ".join(f"{count:,} {what}" for what, count in result.comparison.compared.items())
    verdict = "identical" if result.identical else "DIFFERENT"
    typer.echo(f"{result.recipe}: {result.steps:,} steps, killed {len(result.kills)} times: {verdict}")
    typer.echo(f"compared: {counts}")
    places: dict[str, list[str]] = {}
    for line in result.comparison.differences:
        places.setdefault(line.partition(":")[0], []).append(line)
    for place, lines in places.items():
        for line in lines[:_SHOWN]:
            typer.echo(f"  {line}")
        if len(lines) > _SHOWN:
            typer.echo(f"  {place}: {len(lines) - _SHOWN:,} more")
