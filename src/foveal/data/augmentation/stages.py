"""The transforms that make bytes of bytes by more than moving pixels, each a function of images and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.augmentation.geometry import affine_matrices, random_windows, resize_weights
from foveal.data.augmentation.policies import apply_policy
from foveal.errors import RecipeError
from foveal.recipe import (
    Affine,
    CustomTransform,
    Invert,
    RandAugment,
    RandomResizedCrop,
    Resize,
    TrivialAugment,
)
from foveal.registry import call_factory, load_factory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.data.augmentation.backends import Backend
    from foveal.seeding import Draws

Stage = Callable[[Any, "Draws"], Any]
ByteTransform = Affine | Resize | RandomResizedCrop | Invert | TrivialAugment | RandAugment | CustomTransform


def byte_stage(transform: ByteTransform, purpose: str, backend: Backend, size: tuple[int, int]) -> Stage:
    """A transform as a function of (images uint8 ``[B, H, W, C]`` of the back end, draws).

    Args:
        transform: what is done.
        purpose: the beginning of its draws' purposes.
        backend: what computes.
        size: the images' height and width.

    Raises:
        FovealError: a custom transform cannot be made.
    """
    match transform:
        case Affine():
            return lambda images, draws: backend.affine(
                images, affine_matrices(transform, draws, purpose, *size)
            )
        case Resize() | RandomResizedCrop():
            return _scaling(transform, purpose, backend, size)
        case Invert():
            return lambda images, draws: 255 - images  # noqa: ARG005 - a Stage
        case TrivialAugment() | RandAugment():
            return _policy(transform, purpose, backend)
        case CustomTransform(name=name, options=options):
            function = call_factory(load_factory(name, "augmentation"), name, "augmentation", options)
            return _custom(name, function, backend)


def _scaling(
    transform: Resize | RandomResizedCrop, purpose: str, backend: Backend, size: tuple[int, int]
) -> Stage:
    method = transform.method if isinstance(transform, Resize) else "bilinear"

    def weights(windows: NDArray[np.int64]) -> list[Any]:
        """What the kernel takes: places and weights of rows, then of columns."""
        return [
            part
            for axis in range(2)
            for part in resize_weights(
                size[axis], windows[:, axis], windows[:, 2 + axis], transform.size[axis], method
            )
        ]

    if isinstance(transform, Resize):
        whole = weights(np.array([[0, 0, *size]]))
        return lambda images, draws: backend.resize(images, *whole)  # noqa: ARG005 - a Stage

    def crop(images: Any, draws: Draws) -> Any:
        sizes = np.tile(np.array(size), (len(draws.positions), 1))
        return backend.resize(images, *weights(random_windows(transform, sizes, draws, purpose)))

    return crop


def _policy(transform: TrivialAugment | RandAugment, purpose: str, backend: Backend) -> Stage:
    number, magnitude = 1, None
    if isinstance(transform, RandAugment):
        number, magnitude = transform.number, transform.magnitude

    def apply(images: Any, draws: Draws) -> Any:
        for n in range(number):
            images = apply_policy(images, backend, draws, f"{purpose}/{n}", magnitude=magnitude)
        return images

    return apply


def _custom(name: str, function: Callable[..., Any], backend: Backend) -> Stage:
    """A user's function, its result checked."""

    def distort(batch: Any, draws: Draws) -> Any:
        images = backend.host(batch)
        result = function(images, draws)
        if not isinstance(result, np.ndarray):
            raise RecipeError(f"augmentation {name}: returned {type(result).__name__}, not an array")
        if result.dtype != np.uint8 or result.shape != images.shape:
            raise RecipeError(
                f"augmentation {name}: returned {result.dtype} {list(result.shape)} "
                f"for uint8 {list(images.shape)}; give back images of the same shape"
            )
        return backend.put(result)

    return distort
