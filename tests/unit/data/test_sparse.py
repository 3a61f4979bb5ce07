"""Sparse tensors out of rows of different lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.data.sparse import sparse
from foveal.errors import UsageError
from foveal.tensorflow.example import Ragged, VariableLength, build_example, parse_batch


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_each_row_fills_the_first_columns(dtype):
    rows = [[3, 1, 4], [], [1, 5]]
    records = [build_example({"x": np.array(row, dtype)}) for row in rows]
    tensor = sparse(parse_batch(records, {"x": VariableLength(dtype)})["x"])
    assert tensor.is_coalesced()
    assert tensor.dtype == torch.from_numpy(np.empty(0, dtype)).dtype
    assert tensor.to_dense().tolist() == [[3, 1, 4], [0, 0, 0], [1, 5, 0]]


def test_zeros_that_were_given_are_values():
    tensor = sparse(Ragged(np.array([0, 7]), np.array([0, 2])))
    assert tensor.values().tolist() == [0, 7]


def test_a_part_of_more_values_begins_where_its_rows_do():
    tensor = sparse(Ragged(np.array([9, 1, 2, 3, 9]), np.array([1, 2, 4])))
    assert tensor.to_dense().tolist() == [[1, 0], [2, 3]]


@pytest.mark.parametrize("splits", [[0], [0, 0, 0]])
def test_nothing_is_an_empty_tensor(splits):
    tensor = sparse(Ragged(np.empty(0, np.float32), np.array(splits)))
    assert tensor.shape == (len(splits) - 1, 0)


@pytest.mark.parametrize(
    "values", [np.array([b"a"], object), Ragged(np.array([1]), np.array([0, 1])), np.zeros((1, 2))]
)
def test_what_is_no_row_of_numbers_is_refused(values):
    with pytest.raises(UsageError, match="single numbers"):
        sparse(Ragged(values, np.array([0, 1])))
