"""NumPy's arrays as tensors and back, without copies, also where NumPy has no dtype of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOREIGN: Final = {
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float8_e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: np.dtype(ml_dtypes.float8_e5m2),
}
_BITS: Final = {1: torch.uint8, 2: torch.int16}


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A tensor that shares the memory of an array.

    Args:
        array: of numbers or booleans in the machine's byte order, of any shape; writable, as torch asks.

    Raises:
        TypeError: torch has no such dtype.
    """
    if array.dtype in _FOREIGN.values():
        dtype = next(each for each, foreign in _FOREIGN.items() if foreign == array.dtype)
        bits = np.uint8 if dtype.itemsize == 1 else np.int16
        return torch.from_numpy(array.view(bits)).view(dtype)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """An array that shares the memory of a tensor on the host."""
    tensor = tensor.detach()
    if tensor.dtype in _FOREIGN:
        array: NDArray[Any] = tensor.view(_BITS[tensor.itemsize]).numpy()
        return array.view(_FOREIGN[tensor.dtype])
    return tensor.numpy()
