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
from foveal.seeding import Draws, permute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Batching = Literal["continuous", "drop_last", "keep_last"]
Shuffle = Literal["none", "global", "blocks"]

GROUP = 16  # rows of a batch that no two processes share: mixup and cutmix pair within them


@dataclass(frozen=True)
class Sample:
    """What one step reads.

    Attributes:
        positions: int64 ``[B]``, places in the stream of the whole run; random draws are keyed on them.
        indices: int64 ``[B]``, the examples.
        epochs: int64 ``[B]``, the pass, from 0, that each belongs to.
    """

    positions: NDArray[np.int64]
    indices: NDArray[np.int64]
    epochs: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The order of examples.

    Attributes:
        size: number of examples in the source.
        batch_size: examples a step, of all processes together.
        seed: the recipe's data seed.
        batching: ``continuous`` lets a batch run on into the next epoch; ``drop_last`` leaves out the
            examples that do not fill a batch; ``keep_last`` makes the last batch of an epoch smaller.
        shuffle: ``global`` is a new order every epoch; ``none`` the order of the source; ``blocks`` a new
            order that reads neighbours at about the same time, for storage that is slow at random. Blocks of
            consecutive examples come in a random order, and those of ``window`` blocks, one after another
            in it, are shuffled together.
        block: examples in a block; the last one of the source may have fewer.
        window: blocks in a window.
        rank: which of the processes this is, from 0. Each has a contiguous part of every batch, cut between
            groups of 16 rows; none has over 16 rows more than another.
        world_size: how many processes there are.

    Raises:
        RecipeError: ``drop_last`` with fewer examples than one batch; a batch with nothing for some process;
            a number that is too small.
    """

    size: int
    batch_size: int
    seed: int
    batching: Batching = "continuous"
    shuffle: Shuffle = "global"
    block: int = 1024
    window: int = 8
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if min(self.size, self.batch_size, self.block, self.window) < 1:
            raise RecipeError(
                f"{self.size} examples in batches of {self.batch_size}, blocks of {self.block} and windows "
                f"of {self.window}: each must be at least 1"
            )
        if not 0 <= self.rank < self.world_size:
            raise RecipeError(f"there is no process {self.rank} of {self.world_size}")
        if self.batching == "drop_last" and self.size < self.batch_size:
            raise RecipeError(
                f"data.batching = 'drop_last' with {self.size} examples and batch_size = {self.batch_size} "
                "leaves nothing to train on: choose 'continuous' or a smaller batch"
            )
        groups = _groups(self._smallest_batch)
        if groups < self.world_size:
            raise RecipeError(
                f"a batch of {self._smallest_batch} examples has nothing for some of {self.world_size} "
                f"processes, which get {GROUP} at a time: choose a larger batch_size, "
                "data.batching = 'continuous', or fewer processes"
            )

    def steps(self, epochs: float) -> int:
        """How many steps make ``epochs`` passes; rounded up, at least one."""
        if self.batching == "continuous":
            exact = epochs * self.size / self.batch_size
        else:
            exact = epochs * self._batches_per_epoch
        return max(1, math.ceil(exact - 1e-9))  # 2.0 passes computed as 2.0000000000000004 are not three

    @property
    def steps_per_epoch(self) -> float:
        """How many steps make a pass; not a whole number where batches run on into the next one."""
        return self.size / self.batch_size if self.batching == "continuous" else self._batches_per_epoch

    def epoch(self, step: int) -> float:
        """How many passes are complete after ``step`` steps."""
        if self.batching == "continuous":
            return step * self.batch_size / self.size
        return step / self._batches_per_epoch

    def sample(self, step: int) -> Sample:
        """What step number ``step`` (from 0) reads in this process; constant time for any step."""
        positions = self._positions(step)
        epochs, ranks = positions // self.size, positions % self.size
        if self.shuffle == "none":
            return Sample(positions, ranks, epochs)
        indices = np.empty_like(ranks)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = self._shuffled(ranks[here], epoch)
        return Sample(positions, indices, epochs)

    def _shuffled(self, ranks: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        if self.shuffle == "blocks":
            return _BlockOrder(self.size, self.block, self.window, self.seed, epoch)(ranks)
        return permute(ranks, self.size, self.seed, f"shuffle/epoch {epoch}")

    @property
    def _batches_per_epoch(self) -> int:
        """Of the two ways of batching in which an epoch is a whole number of steps."""
        if self.batching == "drop_last":
            return self.size // self.batch_size
        return -(-self.size // self.batch_size)

    @property
    def _smallest_batch(self) -> int:
        rest = self.size % self.batch_size if self.batching == "keep_last" else 0
        return rest or self.batch_size

    def _positions(self, step: int) -> NDArray[np.int64]:
        if self.batching == "continuous":
            start, rows = step * self.batch_size, self.batch_size
        else:
            epoch, batch = divmod(step, self._batches_per_epoch)
            first = batch * self.batch_size
            start, rows = epoch * self.size + first, min(self.batch_size, self.size - first)
        # Rounded down, which leaves the incomplete group to a rank that has most groups.
        groups = _groups(rows)
        begin, end = (groups * rank // self.world_size * GROUP for rank in (self.rank, self.rank + 1))
        return np.arange(start + begin, start + min(end, rows), dtype=np.int64)


class _BlockOrder:
    """The order of one epoch of blocks: a permutation of ``range(size)``, computed for any rank alone.

    Full blocks are permuted; the short one, if there is one, is put among them at a place that is drawn, so
    that it is known where every block begins.
    """

    def __init__(self, size: int, block: int, window: int, seed: int, epoch: int) -> None:
        self._block, self._window, self._seed = block, window, seed
        self._full, self._rest = divmod(size, block)
        self._blocks = self._full + (self._rest > 0)
        self._purpose = f"shuffle/epoch {epoch}"
        draws = Draws(seed, np.array([epoch], np.int64))
        self._short = (
            int(draws.integers("shuffle/short block", 0, self._full)[0]) if self._rest else self._full
        )

    def __call__(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each rank is sent: int64 of the shape of ``ranks`` (``[B]``, each in [0, size))."""
        shuffled = np.empty_like(ranks)
        windows = self._slots(ranks)[0] // self._window
        for window in np.unique(windows).tolist():
            here = windows == window
            start = self._start(window * self._window)
            length = self._start(min((window + 1) * self._window, self._blocks)) - start
            purpose = f"{self._purpose}/window {window}"
            shuffled[here] = start + permute(ranks[here] - start, length, self._seed, purpose)
        slots, places = self._slots(shuffled)
        return self._block_at(slots) * self._block + places

    def _start(self, slot: int) -> int:
        """The rank at which the block in this slot begins."""
        return slot * self._block - (self._block - self._rest) * (slot > self._short)

    def _slots(self, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The slot whose block a rank falls in, and its place within the block."""
        behind = ranks >= self._short * self._block + self._rest  # the short block, if there is one
        return np.divmod(ranks + behind * (self._block - self._rest), self._block)

    def _block_at(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which block of the source comes in each slot."""
        blocks = np.full_like(slots, self._full)  # the number of the short one
        full = slots != self._short
        places = (slots - (slots > self._short))[full]
        blocks[full] = permute(places, self._full or 1, self._seed, f"{self._purpose}/blocks")
        return blocks


@dataclass(frozen=True)
class EvaluationBatches:
    """Every example once, over all processes: a sequence of batches without padding, computed on demand.

    The batches are the same for every number of processes; each process has some that follow one another,
    and none has over one more than another. Where there are fewer batches than processes, some have none.

    Attributes:
        size: number of examples in the source.
        batch_size: examples a batch; the last one may have fewer.
        rank: which of the processes this is, from 0.
        world_size: how many there are.
    """

    size: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        """How many batches this process has."""
        return len(self._numbers)

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """The examples of batch ``number`` of this process: int64 ``[B]``, consecutive.

        Raises:
            IndexError: there is no such batch.
        """
        first = self._numbers[number] * self.batch_size
        return np.arange(first, min(first + self.batch_size, self.size), dtype=np.int64)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[number] for number in range(len(self)))

    @property
    def _numbers(self) -> range:
        batches = -(-self.size // self.batch_size)
        first, stop = (batches * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, stop)


def _groups(rows: int) -> int:
    return -(-rows // GROUP)
