"""``foveal data``: what data sets hold, whether all of it can be read, and what recipes make of it."""

from __future__ import annotations

import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.inspection.inspection import Duplicates, Inspection
    from foveal.data.source import DataSet

_NAME = re.compile(r"[\w-]+|[\w.]+:\w+")  # of a known data set, or of a factory
_WIDEST = 20  # classes that are listed one by one
_LISTED = 5  # damaged records that are listed where they are not what was asked for

data = typer.Typer(
    name="data",
    rich_markup_mode=None,
    help="Look at data sets, check them, and convert them.",
    epilog="Example: foveal data info photos",
)

_Path = Annotated[
    str, typer.Argument(metavar="PATH", help="A file, a folder, a pattern, or the name of a known data set.")
]
_Format = Annotated[
    str | None, typer.Option("--format", help="The format; by default it is recognised by contents.")
]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the format; may be repeated."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Compression(StrEnum):
    """How a record file is compressed as a whole."""

    gzip = "gzip"
    zlib = "zlib"


@data.command()
def info(
    path: _Path,
    format: _Format = None,  # noqa: A002 - the option's name
    settings: _Settings = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Look at so many examples of each part only, drawn at random.")
    ] = None,
    json: _Json = False,
) -> None:
    """Say what data hold: classes, sizes, mean and deviation, duplicates, leaks between parts.

    Example: foveal data info photos.csv --set label=species
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.data.inspection.inspection import inspect
    from foveal.processors import processors

    progress = DownloadBar()
    kind, opened = _open(path, format, settings, progress)
    result = inspect(opened, sample=sample, threads=processors(), progress=progress)
    if json:
        print_json({"path": path, "format": kind, **result.report()})
    else:
        _print_inspection(kind, result)


@data.command()
def index(
    path: _Path,
    format: _Format = None,  # noqa: A002
    settings: _Settings = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build it even if it is there and good.")
    ] = False,
    json: _Json = False,
) -> None:
    """Go through data once and keep what is found out in a sidecar file, so that later starts are quick.

    Example: foveal data index 'records/*.tfrecord'
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.data.formats.index import watched

    started = time.perf_counter()
    with watched(rebuild=rebuild) as used:
        kind, opened = _open(path, format, settings, DownloadBar())
    seconds = time.perf_counter() - started
    counts = {name: len(part) for name, part in opened.parts().items()}
    if json:
        indexes = [{"path": str(each.path) if each.path else None, "built": each.built} for each in used]
        print_json({"path": path, "format": kind, "parts": counts, "seconds": seconds, "indexes": indexes})
        return
    typer.echo(f"{kind}: {_count(counts)}, {len(opened.train.classes):,} classes, in {seconds:.1f} s")
    for each in used:
        what = "built" if each.built else "was there and is good"
        typer.echo(f"{each.path or 'no folder can be written to: the index is not kept'}: {what}")
    if not used:
        typer.echo("this format needs no index")


@data.command()
def verify(
    path: _Path,
    format: _Format = None,  # noqa: A002
    settings: _Settings = None,
    json: _Json = False,
) -> None:
    """Read and decode every example, and list those that cannot be used; exit code 1 if there are any.

    Example: foveal data verify train.tfrecord
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.data.inspection.verification import verify as run_verification
    from foveal.data.inspection.verification import verify_unreadable
    from foveal.errors import DataError
    from foveal.processors import processors

    progress = DownloadBar()
    try:
        _, opened = _open(path, format, settings, progress)
    except DataError as error:
        if not Path(path).exists():
            raise
        result = verify_unreadable(path, error)
    else:
        result = run_verification(opened, threads=processors(), progress=progress)
    if json:
        print_json({"path": path, **result.report()})
    else:
        _print_corrupt(result.corrupt)
        typer.echo(f"{_count(result.parts) or 'no examples'}: {len(result.corrupt):,} bad")
    if result.corrupt:
        raise typer.Exit(1)


@data.command()
def convert(
    path: _Path,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: NAME.tfrecord.")],
    format: _Format = None,  # noqa: A002
    settings: _Settings = None,
    shards: Annotated[int, typer.Option(min=1, help="Files that each part is written to.")] = 1,
    compression: Annotated[Compression | None, typer.Option(help="Compress each file as a whole.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    json: _Json = False,
) -> None:
    """Write data as TFRecord files, which foveal and TensorFlow read.

    Example: foveal data convert photos photos.tfrecord --shards 8
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.data.formats.convert import convert as run_conversion

    progress = DownloadBar()
    _, opened = _open(path, format, settings, progress)
    paths = run_conversion(
        opened,
        out,
        shards=shards,
        progress=progress,
        compression=compression.value if compression else None,
        overwrite=overwrite,
    )
    counts = {name: len(part) for name, part in opened.parts().items()}
    if json:
        print_json({"parts": counts, "files": list(map(str, paths))})
    else:
        for written in paths:
            typer.echo(str(written))
        typer.echo(_count(counts))


@data.command()
def preview(
    path: _Path,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a recipe file (ends in .toml).")],
    out: Annotated[Path, typer.Option(help="The picture to write (ends in .png).")],
    format: _Format = None,  # noqa: A002
    settings: _Settings = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many examples.")] = 8,
    versions: Annotated[int, typer.Option(min=1, max=50, help="How many distorted versions of each.")] = 6,
    seed: Annotated[int | None, typer.Option(help="Sets seed.data: other examples, other draws.")] = None,
    json: _Json = False,
) -> None:
    """Draw a contact sheet: training images, and what the recipe's distortions make of each.

    Example: foveal data preview digits --recipe digits --out digits.png
    """
    from foveal import recipes
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.data.inspection.preview import contact_sheet
    from foveal.data.inspection.sheet import save_png

    chosen = recipes.choose(recipe, [] if seed is None else [f"seed.data={seed}"])
    _, opened = _open(path, format, settings, DownloadBar())
    sheet = contact_sheet(opened.train, chosen, count=count, versions=versions)
    save_png(sheet, out)
    if json:
        print_json({"file": str(out), "width": sheet.width, "height": sheet.height})
    else:
        typer.echo(f"{out}: {sheet.width} x {sheet.height} pixels")


def _open(path: str, kind: str | None, settings: list[str] | None, progress: Any) -> tuple[str, DataSet]:
    """The data at a path, or where nothing is, the known data set of that name; and what they are.

    Raises:
        DataError: they cannot be read.
        UsageError: there is neither, or an option is wrong.
    """
    from foveal.data.catalog import KNOWN, open_data, open_path
    from foveal.data.formats.recognise import recognise
    from foveal.data.stream import StreamSource
    from foveal.errors import UsageError, suggestion
    from foveal.recipe import DataPart, parse_settings

    options = parse_settings(settings or ())
    place = Path(path)
    if kind is None and not place.exists() and _NAME.fullmatch(path):
        if path not in KNOWN and ":" not in path:
            raise UsageError(f"{path}: no such file, folder or known data set: {suggestion(path, KNOWN)}")
        kind, opened = path, open_data(DataPart(name=path, options=options), progress=progress)
    else:
        kind = kind or recognise(place)
        opened = open_path(place, format=kind, options=options, progress=progress)
    if isinstance(opened.train, StreamSource):
        raise UsageError(f"{path}: a stream, which nobody can read through but training")
    return kind, opened


def _count(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _print_corrupt(corrupt: Sequence[CorruptRecord]) -> None:
    for each in corrupt:
        typer.echo(f"{each.key}: {each.reason}")


def _print_inspection(kind: str, result: Inspection) -> None:
    total = sum(result.parts.values())
    part = f"; {result.examined:,} of them were looked at" if result.examined < total else ""
    typer.echo(f"{kind}: {total:,} examples ({_count(result.parts)}){part}\n")
    _print_classes(result)
    typer.echo("")
    _print_values(result)
    _print_duplicates("stored in the same bytes", "groups", result.equal)
    if not result.numeric:
        _print_duplicates("look alike", "pairs", result.alike)
    for what, records in (("cannot be read", result.corrupt), ("are no images", result.rejected)):
        if records:
            typer.echo(f"\n{len(records):,} {what} (foveal data verify lists all):")
            _print_corrupt(records[:_LISTED])


def _print_classes(result: Inspection) -> None:
    """How many examples each class has; of many classes, the largest and the smallest."""
    from foveal.cli.output import print_table

    rows = [
        (label, *(f"{counts[number]:,}" for counts in result.counts.values()))
        for number, label in enumerate(result.classes)
    ]
    if len(rows) > _WIDEST:
        order = sorted(range(len(rows)), key=lambda number: -result.counts["train"][number])
        ends = order[: _WIDEST // 2], order[-_WIDEST // 2 :]
        most, least = ([rows[number] for number in numbers] for numbers in ends)
        rows = [*most, ("...", *("" for _ in result.counts)), *least]
    print_table(("class", *result.counts), rows)
    ratio = result.imbalance
    typer.echo(
        f"{len(result.classes):,} classes; "
        + ("one has no training example" if ratio is None else f"the largest is {ratio:.2f} x the smallest")
    )


def _print_values(result: Inspection) -> None:
    """Sizes and statistics, and what to write into a recipe."""
    from foveal.cli.output import print_table

    found = result.statistics
    if found is None:
        return
    if result.numeric:
        columns = zip(found.mean, found.deviation, found.low, found.high, strict=True)
        rows = [(str(n), *(f"{value:.6g}" for value in values)) for n, values in enumerate(columns)]
        print_table(("column", "mean", "deviation", "min", "max"), rows)
    else:
        typer.echo(f"images {_describe_sizes(result.report())}")
        typer.echo(f"colour {len(result.sizes) - result.grey:,} in colour, {result.grey:,} grey")
    mean = ", ".join(f"{value:.4g}" for value in found.mean)
    deviation = ", ".join(f"{value or 1:.4g}" for value in found.deviation)
    typer.echo(f"\n[normalization]  # of the train part\nmean = [{mean}]\ndeviation = [{deviation}]")


def _describe_sizes(report: dict[str, Any]) -> str:
    height, width = report["height"], report["width"]
    if report["sizes"] == 1:
        return f"{height['min']} x {width['min']} pixels (height x width)"
    return (
        f"{report['sizes']:,} sizes; height {height['min']} to {height['max']} (median {height['median']}), "
        f"width {width['min']} to {width['max']} (median {width['median']}) pixels"
    )


def _print_duplicates(text: str, unit: str, found: Duplicates) -> None:
    """Counts, and the first of the worst kind that there is."""
    if not found.all.groups:
        typer.echo(f"\n{text}: none")
        return
    typer.echo(
        f"\n{text}: {found.all.examples:,} examples\n"
        f"  {unit}: {found.all.groups:,}, in several parts {found.leaks.groups:,}, "
        f"with several labels {found.conflicts.groups:,}"
    )
    worst = next(each for each in (found.conflicts, found.leaks, found.all) if each.groups)
    for group in worst.first:
        typer.echo("  " + " = ".join(f"{each['key']} ({each['part']}, {each['label']})" for each in group))
