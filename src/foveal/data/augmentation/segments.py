"""Segments of a list of transforms: built one transform at a time, drawn for a batch, applied in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.augmentation import program as codes
from foveal.data.augmentation.geometry import erased_boxes
from foveal.data.augmentation.program import Drawn, Program, normal_quantiles
from foveal.recipe import Brightness, Clip, Contrast, Cutout, Hue, Noise, RandomOrder, Saturation
from foveal.seeding import Draws, Ranges, bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.recipe import Erasing

Fill = Callable[["NDArray[np.float64]", Draws], None]
Colour = Brightness | Contrast | Saturation | Hue | Noise | Clip


class Segment:
    """A segment, see ``program.py``; first its transforms are added, then it is drawn.

    Args:
        height: of the images that come in.
        width: of the images that come in.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.moves: list[tuple[int, ...]] = []
        self.boxes: list[tuple[int, int]] = []
        self.colours: list[tuple[int, int, int]] = []
        self._rows: list[tuple[str, float, float, bool]] = []
        self._fills: list[Fill] = []  # what makes parameters of draws where a range alone does not
        self._noise: list[str] = []
        self._shuffled: list[tuple[int, tuple[str, ...]]] = []  # where they begin, and what draws the order

    def shift(
        self,
        purpose: str,
        down: tuple[int, int],
        right: tuple[int, int],
        *,
        size: tuple[int, int] | None = None,
        sign: int = 1,
        reflect: bool = False,
    ) -> None:
        """Read output (y, x) at (y, x) + sign * integers drawn from the ranges; ``size`` is of the result."""
        row = self._row(f"{purpose}/down", *down, whole=True)
        self._row(f"{purpose}/right", *right, whole=True)
        self.moves.append((codes.SHIFT, row, sign, int(reflect), self.height, self.width))
        self.height, self.width = size or (self.height, self.width)

    def mirror(self, purpose: str, probability: float) -> None:
        """Mirror left and right with some probability."""
        row = self._row(purpose, 0, 1)
        self._row("", probability, probability)
        self.moves.append((codes.MIRROR, row, 0, 0, self.height, self.width))

    def alternate(self, purpose: str) -> None:
        """Mirror half of the examples, the others in the next epoch."""
        row = self._row("", 0, 0)
        self._row("", 0.5, 0.5)
        self.moves.append((codes.MIRROR, row, 0, 0, self.height, self.width))

        def parity(values: NDArray[np.float64], draws: Draws) -> None:
            if draws.indices is None or draws.epochs is None:
                raise ValueError("alternating_flip needs the indices and epochs of the examples")
            half = (bits(draws.seed, purpose, draws.indices) >> np.uint64(63)).astype(np.int64)
            values[row] = half ^ (draws.epochs & 1)

        self._fills.append(parity)

    def cut(self, purpose: str, transform: Cutout) -> None:
        """Blacken a square whose centre is any pixel."""
        half, side = transform.size // 2, transform.size
        row = self._row(f"{purpose}/top", -half, self.height - 1 - half, whole=True)
        self._row(f"{purpose}/left", -half, self.width - 1 - half, whole=True)
        self._row("", side, side)
        self._row("", side, side)
        self.boxes.append((row, 0))

    def erase(self, purpose: str, transform: Erasing) -> None:
        """Overwrite a rectangle inside the image."""
        row = self._row(f"{purpose}/area", *transform.area)
        self._row(f"{purpose}/aspect", math.log(transform.aspect[0]), math.log(transform.aspect[1]))
        self._row(f"{purpose}/top", 0, 1)
        self._row(f"{purpose}/left", 0, 1)
        self.boxes.append((row, int(transform.fill == "mean")))
        height, width = self.height, self.width

        def place(values: NDArray[np.float64], draws: Draws) -> None:
            del draws
            values[row : row + 4] = erased_boxes(values[row : row + 4], height, width)

        self._fills.append(place)
        self._gate(purpose, transform.probability, row)

    def colour(self, purpose: str, transform: Colour | RandomOrder) -> None:
        """Change light and colour."""
        match transform:
            case RandomOrder(transforms=transforms):
                begin = len(self.colours)
                purposes = tuple(f"{purpose}/{n} {each.name}" for n, each in enumerate(transforms))
                for each_purpose, each in zip(purposes, transforms, strict=True):
                    self.colour(each_purpose, each)
                self._shuffled.append((begin, tuple(f"{each}/order" for each in purposes)))
            case Brightness(delta=delta):
                self._change(codes.BRIGHTNESS, purpose, transform, -delta, delta)
            case Contrast(low=low, high=high):
                self._change(codes.CONTRAST, purpose, transform, low, high)
            case Saturation(low=low, high=high):
                self._change(codes.SATURATION, purpose, transform, low, high)
            case Hue(delta=delta):
                self._change(codes.HUE, purpose, transform, -delta, delta)
            case Noise(deviation=deviation):
                self._change(codes.NOISE, purpose, transform, deviation, deviation)
                self._noise.append(f"{purpose}/values")
            case Clip():
                self.colours.append((codes.CLIP, self._row("", 0, 0), 0))

    def build(self) -> None:
        """No more transforms come: fix what does not depend on the batch."""
        purposes, low, high, whole = zip(*self._rows, strict=True) if self._rows else ((), (), (), ())
        self._ranges = Ranges(purposes, np.array(low, float), np.array(high, float), np.array(whole, bool))
        self._order = np.arange(len(self.colours))[None]
        self.program = Program(
            self.height,
            self.width,
            np.array(self.moves, np.int64).reshape(-1, 6),
            np.array(self.boxes, np.int64).reshape(-1, 2),
            np.array(self.colours, np.int64).reshape(-1, 3),
            normal_quantiles() if self._noise else np.empty(0, np.float32),
        )

    def draw(self, draws: Draws) -> Drawn:
        """The parameters of every image."""
        values = draws.sample(self._ranges)
        for fill in self._fills:
            fill(values, draws)
        order = self._order
        if self._shuffled:
            order = np.repeat(order, len(draws.positions), axis=0)
            for begin, purposes in self._shuffled:
                ranks = np.argsort(draws.words(purposes), axis=0, kind="stable")
                order[:, begin : begin + len(purposes)] = begin + ranks.T
        return Drawn(values, draws.words(tuple(self._noise)), order)

    def _row(self, purpose: str, low: float, high: float, *, whole: bool = False) -> int:
        self._rows.append((purpose, low, high, whole))
        return len(self._rows) - 1

    def _change(
        self,
        code: int,
        purpose: str,
        transform: Brightness | Contrast | Saturation | Hue | Noise,
        low: float,
        high: float,
    ) -> None:
        row = self._row(purpose, low, high)
        self.colours.append((code, row, len(self._noise)))
        self._gate(purpose, transform.probability, row)

    def _gate(self, purpose: str, probability: float, row: int) -> None:
        """Leave out the operation whose parameter is ``row`` where a draw says so."""
        if probability == 1:
            return
        gate = self._row(f"{purpose}/probability", 0, 1)

        def close(values: NDArray[np.float64], draws: Draws) -> None:
            del draws
            values[row, values[gate] >= probability] = np.nan

        self._fills.append(close)
