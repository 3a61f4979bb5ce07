"""Results on standard output, and how they are written for people."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from foveal.checkpoints.inspection import TensorSummary
    from foveal.checkpoints.tensor_difference import TensorDifference


def print_json(document: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """Columns as wide as their contents; the first ``texts`` are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (
            cell.ljust(width) if number < texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def print_summaries(summaries: Sequence[TensorSummary], roles: Sequence[str] | None = None) -> None:
    """A table of what tensors hold, then the values of those that have them.

    Args:
        summaries: a row each.
        roles: what each is for; by default that column is left out.
    """
    role = ("role",) if roles is not None else ()
    headers = ("tensor", "dtype", "shape", *role, "mean", "std", "min", "max", "norm", "zeros", "NaN", "inf")
    rows = []
    for number, each in enumerate(summaries):
        what = (printable(each.name), each.dtype, shape_text(each.shape))
        role = (printable(roles[number]),) if roles is not None else ()
        statistics = map(_number, (each.mean, each.std, each.min, each.max, each.norm))
        zeros = "-" if each.zeros is None else f"{each.zeros:.1%}"
        rows.append((*what, *role, *statistics, zeros, str(each.nan), str(each.inf)))
    print_table(headers, rows, texts=3 + len(role))
    for each in summaries:
        if each.values is not None:
            sys.stdout.write(f"\n{printable(each.name)} =\n{each.values}\n")


def print_differences(differences: Iterable[TensorDifference]) -> None:
    """A table of the tensors that are not the same in two places."""
    rows = []
    for each in differences:
        first, second = (form or "-" for form in each.forms)
        what = each.kind if each.kind == "values" or "only" in each.kind else f"{first} / {second}"
        count = "-" if each.elements is None else f"{each.elements:,}"
        sizes = ("-", "-") if not each.elements else (_number(each.max_abs), _number(each.max_relative))
        rows.append((printable(each.name), what, count, *sizes))
    print_table(("tensor", "differs in", "elements", "at most", "relative"), rows, texts=2)


def printable(text: str) -> str:
    """The text, with what could steer a terminal written as escapes."""
    return text if text.isprintable() else repr(text)


def size(nbytes: int) -> str:
    """``1.5 MB``: in powers of 1000."""
    value, units = float(nbytes), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{nbytes:,} bytes" if unit == "bytes" else f"{value:.3g} {unit}"


def duration(seconds: float | None) -> str:
    """``3 h``, from two of a unit on; ``-`` where it is not known."""
    if seconds is None:
        return "-"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def shape_text(shape: tuple[int, ...]) -> str:
    """``3 x 3``; ``-`` for that of a single number."""
    return " x ".join(map(str, shape)) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
