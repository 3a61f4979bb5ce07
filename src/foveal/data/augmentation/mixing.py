"""Mixup and cutmix: a batch's finished images, and their targets, mixed among neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.sampler import GROUP
from foveal.recipe import Cutmix
from foveal.seeding import seed_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foveal.recipe import Mixup
    from foveal.seeding import Draws


def mix(
    images: Any,
    targets: NDArray[np.int64],
    num_classes: int,
    transforms: Sequence[Mixup | Cutmix],
    draws: Draws,
) -> tuple[Any, Any]:
    """Mix each image with the next one of its group of 16 rows, and the last with the first.

    Mixup (Zhang et al., 2018) adds them with weights lambda and 1 - lambda. Cutmix (Yun et al., 2019)
    pastes a rectangle whose share of the area is 1 - lambda; what lies beyond the edge is cut off, and
    lambda is changed accordingly. One lambda, and one rectangle, is drawn for a group, from the
    position of its first example. Of several transforms, each group draws one.

    Args:
        images: float32 ``[B, H, W, C]``, an array or a tensor; it is left as it is.
        targets: int64 ``[B]``, class indices.
        num_classes: number of classes.
        transforms: at least one.
        draws: those of the batch.

    Returns:
        the images; and float32 ``[B, num_classes]``, rows that sum to 1, of the kind of ``images``.
    """
    soft = np.zeros((len(targets), num_classes), np.float32)
    soft[np.arange(len(targets)), targets] = 1
    mixed = images.copy() if isinstance(images, np.ndarray) else images.clone()
    _, height, width, _ = images.shape
    for first in range(0, len(targets), GROUP):
        rows = slice(first, min(first + GROUP, len(targets)))
        following = np.roll(np.arange(rows.start, rows.stop), -1)
        random = np.random.Generator(
            np.random.Philox(key=seed_for(draws.seed, "augmentation/mix", int(draws.positions[first])))
        )
        transform = transforms[int(random.integers(len(transforms)))]
        share = float(random.beta(transform.alpha, transform.alpha))
        if isinstance(transform, Cutmix):
            top, bottom = _cut(random.random(), share, height)
            left, right = _cut(random.random(), share, width)
            mixed[rows, top:bottom, left:right] = images[following, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            mixed[rows] = share * images[rows] + (1 - share) * images[following]
        soft[rows] = share * soft[rows] + (1 - share) * soft[following]
    if isinstance(images, np.ndarray):
        return mixed, soft
    return mixed, images.new_tensor(soft)


def _cut(centre: float, share: float, extent: int) -> tuple[int, int]:
    """Where a side of the rectangle begins and ends; beyond the edge it is cut off."""
    middle, half = int(centre * extent), round(extent * np.sqrt(1 - share)) // 2
    return max(0, middle - half), min(extent, middle + half)
