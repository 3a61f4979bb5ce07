"""Which examples each step trains on: a function of the step, with nothing to remember.

The stream of examples is numbered. Step ``s`` (from 0) covers some positions of it; a position belongs to an
epoch and has a rank in it; a keyed permutation sends the rank to an example. To resume is to set the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from foveal.errors import RecipeError
from foveal.seeding import permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

Batching = Literal["continuous", "drop_last", "keep_last"]


@dataclass(frozen=True)
class Sample:
    """What one step reads.

    Attributes:
        positions: int64 ``[B]``, places in the stream of the whole run; random draws are keyed on them.
        indices: int64 ``[B]``, the examples.
    """

    positions: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The order of examples.

    Attributes:
        size: number of examples in the source.
        batch_size: examples a step.
        seed: the recipe's data seed.
        batching: ``continuous`` lets a batch run on into the next epoch; ``drop_last`` leaves out the
            examples that do not fill a batch; ``keep_last`` makes the last batch of an epoch smaller.
        shuffle: a new order every epoch, or the order of the source.

    Raises:
        RecipeError: ``drop_last`` with fewer examples than one batch.
    """

    size: int
    batch_size: int
    seed: int
    batching: Batching = "continuous"
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batching == "drop_last" and self.size < self.batch_size:
            raise RecipeError(
                f"data.batching = 'drop_last' with {self.size} examples and batch_size = {self.batch_size} "
                "leaves nothing to train on: choose 'continuous' or a smaller batch"
            )

    def steps(self, epochs: float) -> int:
        """How many steps make ``epochs`` passes; rounded up, at least one."""
        if self.batching == "continuous":
            exact = epochs * self.size / self.batch_size
        else:
            exact = epochs * self._steps_per_epoch
        return max(1, math.ceil(exact - 1e-9))  # 2.0 passes computed as 2.0000000000000004 are not three

    def epoch(self, step: int) -> float:
        """How many passes are complete after ``step`` steps."""
        if self.batching == "continuous":
            return step * self.batch_size / self.size
        return step / self._steps_per_epoch

    def sample(self, step: int) -> Sample:
        """What step number ``step`` (from 0) reads; constant time for any step."""
        positions = self._positions(step)
        epochs, ranks = positions // self.size, positions % self.size
        if not self.shuffle:
            return Sample(positions, ranks)
        indices = np.empty_like(ranks)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = permute(ranks[here], self.size, self.seed, f"shuffle/epoch {epoch}")
        return Sample(positions, indices)

    @property
    def _steps_per_epoch(self) -> int:
        """Of the two ways of batching in which an epoch is a whole number of steps."""
        if self.batching == "drop_last":
            return self.size // self.batch_size
        return -(-self.size // self.batch_size)

    def _positions(self, step: int) -> NDArray[np.int64]:
        if self.batching == "continuous":
            first = step * self.batch_size
            return np.arange(first, first + self.batch_size, dtype=np.int64)
        epoch, batch = divmod(step, self._steps_per_epoch)
        first = batch * self.batch_size
        last = min(first + self.batch_size, self.size)
        return epoch * self.size + np.arange(first, last, dtype=np.int64)
