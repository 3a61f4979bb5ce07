"""NumPy's arrays as tensors and back: the same memory, the same values, also of dtypes that NumPy lacks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from foveal.checkpoints.arrays import to_numpy, to_torch

DTYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.float16): torch.float16,
    np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
    np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn,
    np.dtype(ml_dtypes.float8_e5m2): torch.float8_e5m2,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.complex64): torch.complex64,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)], ids=["matrix", "scalar", "empty"])
def test_an_array_is_a_tensor_of_the_same_memory_and_back(dtype, shape):
    array = np.ones(shape, dtype)
    tensor = to_torch(array)
    assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[dtype], shape)
    assert tensor.to(torch.complex128).eq(1).all()
    back = to_numpy(tensor)
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.tobytes() == array.tobytes()
    assert array.size == 0 or back.ctypes.data == array.ctypes.data


def test_a_transposed_array_keeps_its_values():
    array = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T
    assert to_torch(np.asarray(array, order="C")).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_text_is_no_tensor():
    with pytest.raises(TypeError):
        to_torch(np.array([b"a"], object))


def test_a_parameter_becomes_an_array():
    assert to_numpy(torch.nn.Parameter(torch.ones(2))).tolist() == [1, 1]
