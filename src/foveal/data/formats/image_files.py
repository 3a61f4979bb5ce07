"""Images that are files of their own, named in the rows of a table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.formats.encoded import EncodedSource, Inspection, inspect_files, load_image_file
from foveal.data.formats.index import load_or_build, printable
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter
    from foveal.data.formats.columns import Column, RowKeys

_SHOWN = 255  # characters of a path in a message, the last ones


class ImageFileSource(EncodedSource):
    """Image files, read when they are asked for: a ``Source``.

    Args:
        files: the path of every row's image.
        targets: int64 ``[N]``, every row's class index.
        classes: class names.
        rows: the names of the rows.
        found: which of the files are images, and what.
    """

    def __init__(
        self,
        files: Sequence[str],
        targets: NDArray[np.int64],
        classes: Sequence[str],
        rows: RowKeys,
        found: Inspection,
    ) -> None:
        self._files, self._rows, self._numbers = files, rows, np.flatnonzero(found.good)
        super().__init__(found.table(targets), classes, found.rejected)

    def key(self, index: int) -> str:
        """``TABLE row N (IMAGE)``, counted from 0 within the table."""
        return image_key(self._rows, self._files, int(self._numbers[index]))

    def _load(self, indices: NDArray[np.int64]) -> list[bytes]:
        return [
            load_image_file(self._files[number], self.key(index))
            for index, number in zip(indices.tolist(), self._numbers[indices].tolist(), strict=True)
        ]


def index_image_files(
    tables: Sequence[Path],
    column: Column,
    files: Sequence[str],
    targets: NDArray[np.int64],
    classes: Sequence[str],
    rows: RowKeys,
    progress: ProgressReporter | None,
) -> ImageFileSource:
    """Look at all image files that a column of tables names, or at what is remembered of them.

    Files that are no images become the source's ``rejected``.

    Raises:
        DataError: an image file is missing, or none is an image.
    """
    missing = [number for number, file in enumerate(files) if not os.path.isfile(file)]  # noqa: PTH113 - one a row
    if missing:
        more = f" (and so are {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{image_key(rows, files, missing[0])}: the image is missing{more}")

    def key(number: int) -> str:
        return image_key(rows, files, number)

    arrays = load_or_build(
        [*tables, *files],
        f"csv 1 image={column!r}",
        lambda: inspect_files(files, key, progress).arrays(),
        origin=tables,
    )
    return ImageFileSource(files, targets, classes, rows, Inspection.of(arrays, key))


def image_key(rows: RowKeys, files: Sequence[str], number: int) -> str:
    """``TABLE row N (IMAGE)``."""
    return f"{rows(number)} ({printable(files[number])[-_SHOWN:]})"
