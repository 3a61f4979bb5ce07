"""``foveal bench``: how fast the parts of training are on this machine."""

from __future__ import annotations

import math
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.benchmark import DataBenchmark
    from foveal.model_benchmark import ModelBenchmark, Timing

bench = typer.Typer(
    name="bench",
    rich_markup_mode=None,
    help="Time the parts of training on this machine.",
    epilog="Example: foveal bench data digits",
)


class Mode(StrEnum):
    """What is done with a batch."""

    forward = "forward"
    train = "train"


class Precision(StrEnum):
    """What is computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


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


@bench.command("model")
def bench_model(
    name: Annotated[
        str, typer.Argument(help="A network, a recipe's name, a recipe file (.toml), or a run folder.")
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images at a time; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="How many batches are timed.")] = 100,
    burn_in: Annotated[int, typer.Option(min=0, help="How many go before them.")] = 10,
    mode: Annotated[
        list[Mode] | None, typer.Option(help="Evaluate, or train with an update; may be repeated.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="auto: the quicker one; may be repeated.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of the images.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="How many classes there are.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe; may be repeated."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder or file of the recipe's data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time a network on random images, in one or several ways.

    Of a recipe, size and classes are those of its data; with --size and --classes, no data are needed.

    Example: foveal bench model small_cnn --precision float32 --precision bfloat16
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.model_benchmark import Setting
    from foveal.model_benchmark import bench_model as measure

    changes = list(settings or ())
    if data is not None:
        changes.append(f"data.path={data.resolve()}")
    ways = product(mode or [Mode.forward], batch or [32], precision or [Precision.auto])
    result = measure(
        name,
        [Setting(count, each.value, number.value, compiled) for each, count, number in ways],
        steps=steps,
        burn_in=burn_in,
        size=size,
        classes=classes,
        changes=changes,
        device=device,
        progress=DownloadBar(),
        report=lambda text: typer.echo(text, err=True),
    )
    if json:
        print_json(result.report())
    else:
        _print_timings(result)


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


def _print_timings(result: ModelBenchmark) -> None:
    from foveal.cli.output import print_table, printable, shape_text

    for timing in result.timings:
        typer.echo(_sentence(timing, several=len(result.timings) > 1))
    typer.echo("")
    print_table(
        (
            "mode", "precision", "batch", "median", "5%", "95%", "images/s", "GFLOP/image", "GFLOP/s",
            "of best", "memory",
        ),
        [_row(timing) for timing in result.timings],
        texts=2,
    )  # fmt: skip
    threads = f", {result.threads} thread{'s' if result.threads > 1 else ''}" * (result.device == "cpu")
    typer.echo(
        f"\n{printable(result.name)}: images of {shape_text(result.image_shape)}, {result.classes} classes, "
        f"{result.parameters:,} parameters; {result.device}{threads}"
    )
    best = {timing.setting.precision: timing.best for timing in result.timings}
    for precision, rate in best.items():
        typer.echo(f"best rate in {precision}: {rate.per_second / 1e9:,.0f} GFLOP/s ({rate.what})")


def _sentence(timing: Timing, *, several: bool) -> str:
    """``Forward across 100 steps, 0.952 +/- 0.010 sec / batch``."""
    from foveal.model_benchmark import describe

    what = "Forward" if timing.setting.mode == "forward" else "Training"
    digits = max(3, 2 - math.floor(math.log10(timing.mean)))  # at least three that say something
    which = f" ({describe(timing.setting)})" if several else ""
    return (
        f"{what} across {len(timing.seconds)} steps, "
        f"{timing.mean:.{digits}f} +/- {timing.deviation:.{digits}f} sec / batch{which}"
    )


def _row(timing: Timing) -> tuple[str, ...]:
    from foveal.cli.output import size

    setting = timing.setting
    return (
        setting.mode + (" compiled" if setting.compiled else ""),
        setting.precision,
        str(setting.batch_size),
        *(_time(timing.percentile(percent)) for percent in (50, 5, 95)),
        f"{timing.images_per_second:,.1f}",
        f"{timing.operations / 1e9:.3g}",
        f"{timing.operations_per_second / 1e9:,.1f}",
        f"{timing.share_of_best:.0%}",
        "-" if timing.peak_memory is None else size(timing.peak_memory),
    )


def _time(seconds: float) -> str:
    """``105 ms``, ``3.56 s``."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"
