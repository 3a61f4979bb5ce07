"""How kernels are compiled, and bfloat16 in them.

NumPy has no bfloat16, so kernels are given its 16 bits: :func:`wide` reads them as float32, :func:`narrow`
rounds to them, and both leave float32 as it is. A kernel that uses them works on either dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]
    Values = NDArray[np.float32] | NDArray[np.uint16]
    """float32, or the bits of bfloat16."""

DTYPES = (torch.float32, torch.bfloat16)
_U32 = np.uint32


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for a processor at the first call; other threads run meanwhile, and NaN stays NaN."""
    return numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"contract"}, error_model="numpy")(
        function
    )


@kernel
def clamp(value: np.float32, least: np.float32, most: np.float32) -> np.float32:
    """The value, or the bound that it is beyond; NaN stays, which ``min`` and ``max`` might lose."""
    value = least if value < least else value  # noqa: FURB136
    return most if value > most else value  # noqa: FURB136


def array(values: Tensor) -> Any:
    """The memory of a contiguous tensor on a processor for a kernel."""
    values = values.detach()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def flat(values: Tensor) -> Any:
    """The same, as one row."""
    return array(values.view(-1))


def wide(value: Any) -> Any:
    """A value of an array as float32."""
    return _widened(value) if isinstance(value, np.uint16) else value


def narrow(like: Any, value: Any) -> Any:
    """A float32 as an array like this holds it; halves are rounded to even."""
    return _rounded(like, value) if like.dtype == np.uint16 else value


# Numba chooses when it compiles. It compares the signatures, with their annotations, of what overloads and of
# what that gives back.


@overload(wide)
def _wide(value: Any) -> Any:
    return _widened if value == types.uint16 else _kept


def _widened(value: Any) -> Any:
    return _U32(_U32(value) << _U32(16)).view(np.float32)


def _kept(value: Any) -> Any:
    return value


@overload(narrow)
def _narrow(like: Any, value: Any) -> Any:  # noqa: ARG001
    return _rounded if like.dtype == types.uint16 else _stored


def _rounded(like: Any, value: Any) -> Any:  # noqa: ARG001
    bits = np.float32(value).view(np.uint32)
    even = _U32(_U32(bits >> _U32(16)) & _U32(1))
    # A NaN, and nothing else, differs from itself; rounding could make infinity of it.
    rounded = _U32(bits + _U32(0x7FFF) + even) if value == value else bits | _U32(0x400000)  # noqa: PLR0124
    return np.uint16(_U32(rounded) >> _U32(16))


def _stored(like: Any, value: Any) -> Any:  # noqa: ARG001
    return value
