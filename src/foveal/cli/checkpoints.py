"""``foveal checkpoints``: what a run has saved, what is in it, and how to keep it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.output import (
    duration,
    print_differences,
    print_json,
    print_summaries,
    print_table,
    printable,
    size,
)

if TYPE_CHECKING:
    from foveal.checkpoints.inspection import Listed

checkpoints = typer.Typer(
    name="checkpoints",
    rich_markup_mode=None,
    help="Look into checkpoints, verify, compare, average and keep them.",
    epilog="Example: foveal checkpoints list runs/digits",
)

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
_SOURCES = "a run (its latest checkpoint), a checkpoint folder, or a .safetensors file"
_Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="REGEX", help="Only tensors in whose names this expression is found."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@checkpoints.command("list")
def list_(run: _Run, json: _Json = False) -> None:
    """List a run's checkpoints: step, age, size, metrics, and why each is kept.

    Example: foveal checkpoints list runs/digits
    """
    from foveal.checkpoints.inspection import list_checkpoints
    from foveal.evaluation import higher_is_better

    listing = list_checkpoints(run, higher_is_better)
    now = time.time()
    if json:
        rows = [asdict(each) | {"age": _age(each, now)} for each in listing.checkpoints]
        print_json({"run": str(run), "checkpoints": rows, "damaged": listing.damaged})
        return
    if listing.checkpoints:
        _print_list(listing.checkpoints, now)
    else:
        typer.echo("no checkpoint yet")
    if listing.damaged:
        names = ", ".join(map(printable, listing.damaged))
        typer.echo(f"damaged, in {run / 'checkpoints' / 'damaged'}: {names}")


@checkpoints.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=f"What to look into: {_SOURCES}.")],
    filter: _Filter = None,  # noqa: A002 - the option's name
    values: Annotated[bool, typer.Option("--values", help="Print the numbers too, shortened.")] = False,
    json: _Json = False,
) -> None:
    """Describe tensors: dtype, shape, mean, deviation, range, norm, fraction of zeros.

    Example: foveal checkpoints show runs/digits --filter 'model/.*weight'
    """
    from foveal.checkpoints.inspection import open_tensors, summarise

    stored = open_tensors(path)
    summaries = list(summarise(stored, filter, values=values))
    elements, nbytes = sum(each.elements for each in summaries), sum(each.nbytes for each in summaries)
    if json:
        rows = [asdict(each) for each in summaries]
        print_json({"path": str(stored.path), "tensors": rows, "elements": elements, "bytes": nbytes})
        return
    if summaries:
        print_summaries(summaries)
    typer.echo(f"{stored.path}: {len(summaries):,} tensors, {elements:,} numbers, {size(nbytes)}")


@checkpoints.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help=f"{_SOURCES.capitalize()}.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    filter: _Filter = None,  # noqa: A002
    json: _Json = False,
) -> None:
    """Say which tensors differ, and by how much; exit code 1 if any does.

    Example: foveal checkpoints diff runs/a runs/b --filter model/
    """
    from foveal.checkpoints.inspection import open_tensors
    from foveal.checkpoints.tensor_difference import compare_stored

    a, b = open_tensors(first), open_tensors(second)
    result = compare_stored(a, b, filter)
    if json:
        print_json({"first": str(a.path), "second": str(b.path), **asdict(result)})
    else:
        if result.differences:
            print_differences(result.differences)
        typer.echo(f"{result.equal:,} tensors are equal, {len(result.differences):,} differ")
    if result.differences:
        raise typer.Exit(1)


@checkpoints.command()
def average(
    sources: Annotated[list[Path], typer.Argument(metavar="A B...", help=f"At least two: each {_SOURCES}.")],
    out: Annotated[Path, typer.Option(help="The file to write (ends in .safetensors).")],
    ema: Annotated[
        bool, typer.Option("--ema", help="Of checkpoints, the averaged weights instead of the raw ones.")
    ] = False,
    json: _Json = False,
) -> None:
    """Write the mean of the weights of several checkpoints of one network.

    Example: foveal checkpoints average runs/a runs/b --out mean.safetensors
    """
    from foveal.checkpoints.averaging import average_weights

    result = average_weights(sources, out, ema=ema)
    if json:
        paths = {"out": str(result.out), "sources": [str(path) for path in result.sources]}
        print_json(asdict(result) | paths)
        return
    typer.echo(
        f"{out}: the mean of {len(result.sources)} in {result.averaged:,} tensors, {result.equal:,} others "
        f"are equal, {size(result.nbytes)}"
    )
    for name in result.last:
        typer.echo(f"{printable(name)}: has no mean and differs: taken from {result.sources[-1]}")


@checkpoints.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, a checkpoint or a .safetensors file.")],
    json: _Json = False,
) -> None:
    """Read all of a run's checkpoints, or one, and say of each whether it is good; exit code 1 if any is not.

    Nothing is moved or changed. A .safetensors file has no checksums: only its structure can be verified.

    Example: foveal checkpoints verify runs/digits
    """
    from foveal.checkpoints.inspection import verify_stored

    problems = verify_stored(path)
    if json:
        print_json({"checkpoints": [{"path": str(p), "problem": text} for p, text in problems.items()]})
    else:
        for place, problem in problems.items():
            typer.echo(printable(problem) if problem else f"{place}: good")
    if any(problems.values()):
        raise typer.Exit(1)


@checkpoints.command()
def keep(
    run: _Run,
    step: Annotated[int, typer.Argument(metavar="STEP", min=0, help="The step of the checkpoint.")],
    release: Annotated[bool, typer.Option("--release", help="Keep it no longer.")] = False,
    json: _Json = False,
) -> None:
    """Keep a checkpoint whatever the recipe says, also while the run is being trained.

    Example: foveal checkpoints keep runs/digits 1000
    """
    from foveal.run_folder import RunFolder

    folder = RunFolder(run)
    folder.recipe()  # refuses what is no run
    manager = folder.checkpoints
    (manager.release if release else manager.keep)(step)
    if json:
        print_json({"run": str(run), "step": step, "kept_by_name": sorted(manager.kept_by_name())})
    else:
        typer.echo(f"{manager.path(step)} is {'no longer' if release else 'now'} kept by name")


def _age(each: Listed, now: float) -> float | None:
    return None if each.saved is None else max(0.0, now - each.saved)


def _print_list(listed: Iterable[Listed], now: float) -> None:
    rows = []
    for each in listed:
        why = (
            f"DAMAGED: {each.problem}" if each.problem else ", ".join(each.kept) or "until the next is saved"
        )
        what = (str(each.step), duration(_age(each, now)), size(each.nbytes), _metrics(each.metrics))
        rows.append((*what, printable(why)))
    print_table(("step", "age", "size", "validation", "kept as"), rows, texts=5)


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{printable(name)} {value:.4g}" for name, value in metrics.items()) or "-"
