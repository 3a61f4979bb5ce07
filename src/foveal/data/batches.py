"""Batches joined, and examples picked out of them: pixels, encoded images and other columns alike."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.source import Batch, Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foveal.tensorflow.example import Ragged


def join(batches: Sequence[Batch]) -> Batch:
    """The examples of several batches of one kind (see :func:`kind`), one batch after another."""
    images: Any = [batch.images for batch in batches]
    if isinstance(images[0], Encoded):
        known = all(each.sizes is not None for each in images)
        joined: Any = Encoded(
            tuple(chain.from_iterable(each.contents for each in images)),
            np.concatenate([each.sizes for each in images]) if known else None,
        )
    else:
        joined = np.concatenate(images)
    return Batch(
        joined,
        np.concatenate([batch.targets for batch in batches]),
        {name: _join_columns([each.features[name] for each in batches]) for name in batches[0].features},
    )


def pick(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    """The examples of a batch at ``rows`` (int64 ``[B]``, each in [0, len)), in that order."""
    images = batch.images
    if isinstance(images, Encoded):
        contents = tuple(images.contents[row] for row in rows.tolist())
        picked: Any = Encoded(contents, None if images.sizes is None else images.sizes[rows])
    else:
        picked = images[rows]
    features = {name: _pick_rows(column, rows) for name, column in batch.features.items()}
    return Batch(picked, batch.targets[rows], features)


def kind(batch: Batch) -> str:
    """What a batch consists of, for messages: batches can be joined where this is equal."""
    if isinstance(batch.images, Encoded):
        images = "encoded images"
    else:
        images = f"{batch.images.dtype} images of {' x '.join(map(str, batch.images.shape[1:]))}"
    return f"{images} with {', '.join(sorted(batch.features))}" if batch.features else images


def _join_columns(columns: Sequence[NDArray[Any] | Ragged]) -> NDArray[Any] | Ragged:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)  # type: ignore[arg-type]  # all are what the first is
    lengths = np.concatenate([np.diff(column.row_splits) for column in columns])  # type: ignore[union-attr]
    return _ragged(_join_columns([_used_values(column) for column in columns]), lengths)


def _pick_rows(column: NDArray[Any] | Ragged, rows: NDArray[np.int64]) -> NDArray[Any] | Ragged:
    if isinstance(column, np.ndarray):
        return column[rows]
    starts, lengths = column.row_splits[rows], np.diff(column.row_splits)[rows]
    shifts = starts - (np.cumsum(lengths) - lengths)  # from a value's place among the picked to that it had
    return _ragged(_pick_rows(column.values, np.arange(lengths.sum()) + np.repeat(shifts, lengths)), lengths)


def _used_values(column: Any) -> NDArray[Any] | Ragged:
    """The values of a ragged column that belong to its rows: there may be others before and after."""
    return _pick_rows(column.values, np.arange(column.row_splits[0], column.row_splits[-1]))


def _ragged(values: NDArray[Any] | Ragged, lengths: NDArray[np.int64]) -> Ragged:
    from foveal.tensorflow.example import Ragged

    return Ragged(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
