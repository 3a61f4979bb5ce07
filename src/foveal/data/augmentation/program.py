"""What the kernels of both back ends are told: numbered operations, and where their draws stand.

A *segment* of a list of transforms is done in one pass: first whole pixels are moved, then rectangles are
erased, then light and colour change, and at the end of the list pixels become what the network sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Kernels that are kept compiled on disk hold these numbers: who changes one here must touch kernels.py too.
# Moves of whole pixels.
SHIFT, MIRROR = range(2)
# Operations of light and colour.
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOISE, CLIP = range(6)
# What is done at the end: nothing; a table of bytes; a line for each channel; per-image standardisation.
PIXELS, TABLE, LINE, PER_IMAGE = range(4)


@dataclass(frozen=True, eq=False)
class Program:
    """What a segment does to every image.

    Attributes:
        height: of the result.
        width: of the result.
        moves: int64 ``[M, 6]``: code, row of ``Drawn.values``, sign, whether to reflect, and the height and
            width of what is moved. A shift reads at (y, x) + sign * (value of row, value of row + 1); a
            mirror applies where the value of row is below that of row + 1.
        boxes: int64 ``[E, 2]``: row of the first of top, left, height and width (the first NaN: not applied);
            whether to fill with the mean or with zero.
        colours: int64 ``[P, 3]``: code, row of its parameter (NaN: not applied), row of ``Drawn.words``.
        quantiles: float32 ``[65536]``, equally likely values of noise; empty where there is none.
    """

    height: int
    width: int
    moves: NDArray[np.int64]
    boxes: NDArray[np.int64]
    colours: NDArray[np.int64]
    quantiles: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for a batch.

    Attributes:
        values: float64 ``[K, B]``.
        words: uint64 ``[N, B]``, seeds of the noise.
        order: int64 ``[B, P]``, or ``[1, P]`` if all images have the same: the order of ``Program.colours``.
    """

    values: NDArray[np.float64]
    words: NDArray[np.uint64]
    order: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Finish:
    """How pixels become what the network sees.

    Attributes:
        kind: ``PIXELS``, ``TABLE``, ``LINE`` or ``PER_IMAGE``.
        table: float32 ``[C, 256]``, for ``TABLE``.
        line: float64 ``[2, C]``, factor and summand of each channel, for ``LINE``.
    """

    kind: int
    table: NDArray[np.float32]
    line: NDArray[np.float64]


@cache
def normal_quantiles() -> NDArray[np.float32]:
    """65,536 equally likely values of the standard normal distribution: 16 random bits choose one."""
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((32768.5 + i) / 65536) for i in range(32768)])
    return np.concatenate([-upper[::-1], upper]).astype(np.float32)
