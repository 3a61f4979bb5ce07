"""Rows of different lengths as sparse tensors, which is what TensorFlow makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.errors import UsageError
from foveal.tensorflow.example import Ragged

if TYPE_CHECKING:
    from torch import Tensor


def sparse(ragged: Ragged) -> Tensor:
    """A ``Ragged`` of numbers as a sparse tensor, as ``tf.io.VarLenFeature`` gives it.

    Args:
        ragged: values ``[V]`` of float32 or int64.

    Returns:
        sparse COO ``[rows, longest row]``, coalesced: value ``i`` of a row stands in column ``i``.

    Raises:
        UsageError: the values are bytes, or rows themselves.
    """
    values = ragged.values
    if isinstance(values, Ragged) or values.ndim != 1 or values.dtype == object:
        raise UsageError("only rows of single numbers can be a sparse tensor, not bytes and not rows of rows")
    lengths = np.diff(ragged.row_splits)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    used = values[ragged.row_splits[0] : ragged.row_splits[-1]]
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns])),
        torch.tensor(used),
        (len(lengths), int(lengths.max(initial=0))),
        is_coalesced=True,
        check_invariants=True,
    )
