"""``foveal bench``: how fast the parts of training are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.benchmark import DataBenchmark

bench = typer.Typer(
    name="bench",
    rich_markup_mode=None,
    help="Time the parts of training on this machine.",
    epilog="Example: foveal bench data digits",
)


@bench.callback()
def _group() -> None:
    """Keep ``data`` a command of its own while it is the only one."""


@bench.command("data")
def bench_data(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe file (ends in .toml).")],
    data: Annotated[Path | None, typer.Option(help="Folder or file of the data.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to measure.")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Sets loader_threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time the loader of a recipe's training batches, with nothing to wait for.

    Example: foveal bench data digits --threads 2
    """
    from foveal import recipes
    from foveal.benchmark import bench_data as measure
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar

    changes = list(settings or ())
    if data is not None:
        changes.append(f"data.path={data.resolve()}")
    if threads is not None:
        changes.append(f"loader_threads={threads}")
    result = measure(recipes.choose(recipe, changes), seconds=seconds, progress=DownloadBar())
    if json:
        print_json(result.report())
    else:
        _print(result)


def _print(result: DataBenchmark) -> None:
    from rich.filesize import decimal

    from foveal.cli.output import print_table

    rows = [(stage, f"{share:.1%}") for stage, share in result.stages.items()]
    rows.append(("idle", f"{max(0.0, 1 - sum(result.stages.values())):.1%}"))
    print_table(("stage", "of the threads' time"), rows)
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    typer.echo(
        f"\n{result.images_per_second:,.0f} images/s, {decimal(int(result.bytes_per_second))}/s read\n"
        f"{threads}, batches of {result.batch_size}, {result.images:,} images in {result.seconds:.1f} s; "
        f"the first batch after {result.first_batch_seconds:.3f} s\n"
        f"waiting {result.waiting:.0%} of the time; slowest stage: {result.slowest_stage}"
    )
