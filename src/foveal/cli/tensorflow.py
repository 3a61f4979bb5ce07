"""``foveal tensorflow``: TensorFlow's checkpoints looked into, compared, imported and exported."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
    from foveal.checkpoints.inspection import TensorSummary
    from foveal.checkpoints.tensorflow_import import Imported
    from foveal.checkpoints.tensorflow_inspection import Part
    from foveal.tensorflow.checkpoint import Checkpoint, Listed
    from foveal.tensorflow.name_maps import NameMap

tensorflow = typer.Typer(
    name="tensorflow",
    rich_markup_mode=None,
    help="Look into TensorFlow's checkpoints, compare them, take weights from them and write them.",
    epilog="Example: foveal tensorflow show cifar10_train",
)

_Source = Annotated[
    Path,
    typer.Argument(
        metavar="PREFIX|DIR",
        help="A checkpoint, by what the names of its files begin with (model.ckpt-300); or a folder of some, "
        "which stands for its latest.",
    ),
]
_Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="REGEX", help="Only variables in whose names this expression is found."),
]
_Names = Annotated[
    Path | None,
    typer.Option(metavar="FILE.toml", help="A name map of your own: which variable is which tensor."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@tensorflow.command("list")
def list_(
    path: Annotated[
        Path, typer.Argument(metavar="PREFIX|DIR", help="A folder, or the prefix of a checkpoint in it.")
    ],
    json: _Json = False,
) -> None:
    """List the checkpoints of a folder: step, format, size, age, and which is the latest.

    Example: foveal tensorflow list cifar10_train
    """
    from foveal.tensorflow.checkpoint import Checkpoint, list_checkpoints

    folder = path if path.is_dir() else Checkpoint(path).path.parent
    listed, now = list_checkpoints(folder), time.time()
    if json:
        print_json({"path": str(folder), "checkpoints": [_describe(each, now) for each in listed]})
    elif listed:
        _print_list(listed, folder, now)
    else:
        typer.echo(f"{folder}: no checkpoint")


@tensorflow.command()
def show(
    path: _Source,
    filter: _Filter = None,  # noqa: A002 - the option's name
    values: Annotated[bool, typer.Option("--values", help="Print the numbers too, shortened.")] = False,
    json: _Json = False,
) -> None:
    """Describe variables: dtype, shape, what each is for, mean, deviation, range, norm, fraction of zeros.

    Every variable that is shown is read, and so its checksum is verified.

    Example: foveal tensorflow show cifar10_train --filter conv1
    """
    from foveal.checkpoints.tensorflow_inspection import summarise_variables
    from foveal.tensorflow.checkpoint import Checkpoint

    checkpoint = Checkpoint(path)
    shown = list(summarise_variables(checkpoint, filter, values=values))
    if json:
        print_json(_report(checkpoint, shown))
        return
    summaries = [summary for _, summary in shown]
    if summaries:
        print_summaries(summaries, [str(part) for part, _ in shown])
    _print_total(checkpoint, summaries)


@tensorflow.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="The prefix of a checkpoint, or a folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    filter: _Filter = None,  # noqa: A002
    json: _Json = False,
) -> None:
    """Say which variables differ, and by how much; exit code 1 if any does.

    Example: foveal tensorflow diff run/model.ckpt-100 run/model.ckpt-200
    """
    from foveal.checkpoints.tensorflow_inspection import compare_checkpoints
    from foveal.tensorflow.checkpoint import Checkpoint

    a, b = Checkpoint(first), Checkpoint(second)
    result = compare_checkpoints(a, b, filter)
    if json:
        print_json({"first": str(a.path), "second": str(b.path), **asdict(result)})
    else:
        if result.differences:
            print_differences(result.differences)
        typer.echo(f"{result.equal:,} variables are equal, {len(result.differences):,} differ")
    if result.differences:
        raise typer.Exit(1)


@tensorflow.command("import")
def import_(
    path: _Source,
    out: Annotated[Path, typer.Option(help="The file to write (ends in .safetensors).")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The network of ours whose weights they are.")
    ] = None,
    names: _Names = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take a variable's moving average where it has one.")
    ] = False,
    json: _Json = False,
) -> None:
    """Write the weights of a network as a .safetensors file, under PyTorch's names and in its layout.

    Example: foveal tensorflow import cifar10_train --model cifar10_cnn --ema --out cifar10.safetensors
    """
    from foveal.checkpoints.tensorflow_import import find_name_map, import_tensors
    from foveal.checkpoints.weights_file import require_new, write_weights
    from foveal.errors import UsageError
    from foveal.tensorflow.checkpoint import Checkpoint

    if (model is None) == (names is None):
        raise UsageError("which variable is which tensor? give either --model NAME or --names FILE.toml")
    require_new(out)
    name_map = find_name_map(model or "", names)
    checkpoint = Checkpoint(path)
    imported = import_tensors(checkpoint, name_map, ema=ema)
    _require_all(checkpoint, name_map, imported)
    write_weights(out, imported.tensors)
    averaged = checkpoint.averages.keys() if ema else set()
    averages = sum(placement.variable in averaged for placement in name_map.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in imported.tensors.values())
    if json:
        report = {
            "path": str(checkpoint.path),
            "out": str(out),
            "global_step": checkpoint.global_step,
            "tensors": list(imported.tensors),
            "averages": averages,
            "unused": imported.unused,
            "bytes": nbytes,
        }
        print_json(report)
        return
    taken = f", {averages:,} of them moving averages" if ema else ""
    typer.echo(f"{out}: {len(imported.tensors):,} tensors{taken}, {size(nbytes)}, of {_origin(checkpoint)}")
    if imported.unused:
        typer.echo(f"unused variables: {', '.join(map(printable, imported.unused))}")


@tensorflow.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option(metavar="PREFIX", help="What the names of the files begin with.")],
    checkpoint: Annotated[str, typer.Option(help="latest, best, or a step.")] = "latest",
    names: _Names = None,
    json: _Json = False,
) -> None:
    """Write a run's checkpoint as one that TensorFlow restores: weights, averages, slots and the step.

    Example: foveal tensorflow export runs/mnist --out exported/model.ckpt-1440
    """
    from foveal.checkpoints.tensorflow_export import export_run
    from foveal.cli.evaluate import parse_checkpoint
    from foveal.tensorflow.name_maps import read_name_map

    result = export_run(run, out, parse_checkpoint(checkpoint), read_name_map(names) if names else None)
    if json:
        report = {
            "path": str(result.prefix),
            "checkpoint": str(result.checkpoint),
            "step": result.step,
            "weights": result.weights,
            "averages": result.averages,
            "slots": result.slots,
            "bytes": result.nbytes,
        }
        print_json(report)
        return
    typer.echo(
        f"{result.prefix}: {result.weights:,} weights, {result.averages:,} moving averages, "
        f"{result.slots:,} slots, {size(result.nbytes)}, of {result.checkpoint}"
    )


# ---- list


def _describe(each: Listed, now: float) -> dict[str, object]:
    return {
        "path": str(each.path),
        "step": each.step,
        "format": each.format,
        "bytes": each.nbytes,
        "age": _age(each.path, now),
        "latest": each.latest,
    }


def _age(prefix: Path, now: float) -> float | None:
    """Seconds since a checkpoint was written; None where its files are gone."""
    from foveal.tensorflow.v1 import files_of

    times = []
    for path in (prefix.with_name(f"{prefix.name}.index"), *files_of(prefix)):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(0.0, now - max(times)) if times else None


def _print_list(listed: Iterable[Listed], folder: Path, now: float) -> None:
    rows = [
        (
            printable(str(each.path.relative_to(folder) if each.path.is_relative_to(folder) else each.path)),
            each.format,
            "-" if each.step is None else str(each.step),
            size(each.nbytes),
            duration(_age(each.path, now)),
            "latest" if each.latest else "",
        )
        for each in listed
    ]
    print_table(("checkpoint", "format", "step", "size", "age", ""), rows, texts=2)


# ---- show


def _report(checkpoint: Checkpoint, shown: Iterable[tuple[Part, TensorSummary]]) -> dict[str, object]:
    rows = [asdict(summary) | asdict(part) for part, summary in shown]
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "global_step": checkpoint.global_step,
        "optimizer": checkpoint.optimizer,
        "tensors": rows,
        "elements": sum(summary.elements for _, summary in shown),
        "bytes": sum(summary.nbytes for _, summary in shown),
    }


def _print_total(checkpoint: Checkpoint, summaries: Sequence[TensorSummary]) -> None:
    counts = f"{len(summaries):,} variables, {sum(each.elements for each in summaries):,} numbers"
    optimizer = f", {checkpoint.optimizer}" if checkpoint.optimizer else ""
    nbytes = sum(each.nbytes for each in summaries)
    typer.echo(f"{_origin(checkpoint)}: {counts}, {size(nbytes)}{optimizer}")


def _origin(checkpoint: Checkpoint) -> str:
    """Path, format and step, where there is one."""
    step = "" if checkpoint.global_step is None else f", step {checkpoint.global_step}"
    return f"{printable(str(checkpoint.path))} ({checkpoint.format}{step})"


# ---- import


def _require_all(checkpoint: Checkpoint, names: NameMap, imported: Imported) -> None:
    """Refuse a checkpoint that has not all of a network's weights."""
    from foveal.errors import CheckpointError

    if imported.missing:
        first, more = imported.missing[0], len(imported.missing) - 1
        raise CheckpointError(
            f"{checkpoint.path}: has no variable {names.tensors[first].variable!r} for {first!r}"
            f"{f', and {more} more are missing' if more else ''}: foveal tensorflow show lists those it has"
        )
