"""From a batch of stored images to what the network sees: distortions, then normalisation.

The draws are computed once, in NumPy, from the examples' positions; the kernels only apply them. Images stay
uint8 until the last moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import RecipeError
from foveal.recipe import Affine, CustomTransform, Cutout, Flip, Translate
from foveal.registry import call_factory, load_factory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foveal.recipe import Normalization, Transform
    from foveal.seeding import Draws

Distortion = Callable[["NDArray[np.uint8]", "Draws"], "NDArray[np.uint8]"]


class Augmentation:
    """A recipe's ``augmentation``, applied to batches.

    Raises:
        RecipeError: a transform does not fit the images.
    """

    def __init__(self, transforms: Sequence[Transform], image_shape: tuple[int, int, int]) -> None:
        height, width, _ = image_shape
        smallest = min(height, width)
        for number, transform in enumerate(transforms):
            extent = getattr(transform, "pixels", getattr(transform, "size", 0))
            if extent >= smallest:
                raise RecipeError(
                    f"augmentation.{number} ({transform.name}): {extent} pixels do not fit "
                    f"images of {height} x {width}"
                )
        # Purposes carry the transform's place, so that two of the same kind draw differently.
        self._distortions = [_distortion(t, f"augmentation/{i} {t.name}") for i, t in enumerate(transforms)]

    def __call__(self, images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        """Distort uint8 ``[B, H, W, C]``; the argument is left as it is."""
        for distort in self._distortions:
            images = distort(images, draws)
        return images


def _distortion(transform: Transform, purpose: str) -> Distortion:
    """One transform as a function of images and draws."""
    from foveal.data import kernels

    match transform:
        case Translate(pixels=most):
            return lambda images, draws: kernels.translate(
                images,
                draws.integers(f"{purpose}/down", -most, most),
                draws.integers(f"{purpose}/right", -most, most),
            )
        case Flip(probability=probability):
            return lambda images, draws: kernels.flip(images, draws.uniform(purpose) < probability)
        case Affine():
            return lambda images, draws: kernels.affine(
                images, affine_matrices(transform, draws, purpose, images.shape[1], images.shape[2])
            )
        case Cutout(size=size):
            return lambda images, draws: kernels.cutout(
                images,
                draws.integers(f"{purpose}/top", 0, images.shape[1] - 1) - size // 2,
                draws.integers(f"{purpose}/left", 0, images.shape[2] - 1) - size // 2,
                size,
            )
        case CustomTransform(name=name, options=options):
            return _custom(
                name, call_factory(load_factory(name, "augmentation"), name, "augmentation", options)
            )


def _custom(name: str, function: Distortion) -> Distortion:
    """A user's function, its result checked."""

    def distort(images: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
        result = function(images, draws)
        if not isinstance(result, np.ndarray):
            raise RecipeError(f"augmentation {name}: returned {type(result).__name__}, not an array")
        if result.dtype != np.uint8 or result.shape != images.shape:
            raise RecipeError(
                f"augmentation {name}: returned {result.dtype} {list(result.shape)} "
                f"for uint8 {list(images.shape)}; give back images of the same shape"
            )
        return result

    return distort


def affine_matrices(
    transform: Affine, draws: Draws, purpose: str, height: int, width: int
) -> NDArray[np.int64]:
    """The maps from output to input pixels, int64 ``[B, 2, 3]`` in units of 2^-16 pixel.

    The image is sheared, rotated, scaled and shifted about its centre, in this order.
    """
    angle = np.radians(draws.uniform(f"{purpose}/angle", -transform.degrees, transform.degrees))
    shear = np.tan(np.radians(draws.uniform(f"{purpose}/shear", -transform.shear, transform.shear)))
    shrink = 1 / draws.uniform(f"{purpose}/scale", *transform.scale)
    shift_x = draws.uniform(f"{purpose}/right", -transform.pixels, transform.pixels)
    shift_y = draws.uniform(f"{purpose}/down", -transform.pixels, transform.pixels)
    cos, sin = np.cos(angle) * shrink, np.sin(angle) * shrink
    # The inverse of scale * rotation * shear is inverse shear * rotation by -angle / scale.
    inverse = np.array([[cos + shear * sin, sin - shear * cos], [-sin, cos]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = centre[:, None] + np.array([shift_x, shift_y])
    offset = centre[:, None] - np.einsum("ijb,jb->ib", inverse, moved)
    matrices = np.concatenate([inverse, offset[:, None]], axis=1).transpose(2, 0, 1)
    return np.ascontiguousarray(np.rint(matrices * 65536).astype(np.int64))


class Normalizer:
    """A recipe's ``normalization`` for images of some number of channels.

    Raises:
        RecipeError: its means or deviations are neither one nor one a channel.
    """

    def __init__(self, part: Normalization, channels: int) -> None:
        for field in ("mean", "deviation"):
            if len(getattr(part, field)) not in (1, channels):
                raise RecipeError(
                    f"normalization.{field} has {len(getattr(part, field))} numbers; "
                    f"images of {channels} channels need one or {channels}"
                )
        mean, deviation = (np.broadcast_to(v, channels)[:, None] for v in (part.mean, part.deviation))
        self._table = ((np.arange(256) / 255 - mean) / deviation).astype(np.float32)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Float32 ``[B, H, W, C]`` from uint8 ``[B, H, W, C]``."""
        from foveal.data import kernels

        channels = len(self._table)
        if images.dtype != np.uint8 or images.shape[-1] != channels:  # the kernel trusts its arguments
            raise ValueError(f"uint8 with {channels} channels expected, not {images.dtype} {images.shape}")
        result: NDArray[np.float32] = kernels.normalize(images, self._table)
        return result
