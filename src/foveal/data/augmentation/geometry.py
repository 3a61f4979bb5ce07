"""Where the pixels of a result come from: matrices, windows and weights, computed once for both back ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from foveal.recipe import Affine, CentralCrop, RandomResizedCrop
    from foveal.recipe.transforms import Method
    from foveal.seeding import Draws

_TRIES = 10  # of drawing a window that fits, as in Inception's and torchvision's pipelines


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
    return centred(inverse, np.array([shift_x, shift_y]), height, width)


def centred(
    inverse: NDArray[np.float64], shift: NDArray[np.float64], height: int, width: int
) -> NDArray[np.int64]:
    """Matrices in fixed point, int64 ``[B, 2, 3]``, of maps about the centre.

    Args:
        inverse: ``[2, 2, B]``, from output to input.
        shift: ``[2, B]``, how far the image moves to the right and down.
        height: of the image.
        width: of the image.
    """
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre[:, None] - np.einsum("ijb,jb->ib", inverse, centre[:, None] + shift)
    matrices = np.concatenate([inverse, offset[:, None]], axis=1).transpose(2, 0, 1)
    return np.ascontiguousarray(np.rint(matrices * 65536).astype(np.int64))


def central_windows(transform: CentralCrop, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The middle of images of ``sizes`` int64 ``[B, 2]``: top, left, height and width, int64 ``[B, 4]``.

    A fraction leaves out equal numbers of pixels on both sides, as tf.image.central_crop; a square's side is
    rounded down, and of an odd number of pixels one more is left out above it and to its left, as in
    EfficientNet. Of an image smaller than the size asked for, it is the largest part of the same proportions.
    """
    if transform.square and transform.fraction is not None:
        side = np.maximum(sizes.min(axis=1, keepdims=True) * transform.fraction, 1).astype(np.int64)
        return np.concatenate([(sizes - side + 1) // 2, side, side], axis=1)
    if transform.fraction is not None:
        start = ((sizes - sizes * transform.fraction) / 2).astype(np.int64)
        return np.concatenate([start, sizes - 2 * start], axis=1)
    wanted = np.array(transform.size)
    fit = np.minimum(sizes / wanted, 1).min(axis=1, keepdims=True)
    inside = np.clip(np.rint(wanted * fit).astype(np.int64), 1, sizes)
    return np.concatenate([(sizes - inside) // 2, inside], axis=1)


def random_windows(
    transform: RandomResizedCrop, sizes: NDArray[np.int64], draws: Draws, purpose: str
) -> NDArray[np.int64]:
    """Random windows in images of ``sizes`` int64 ``[B, 2]``: top, left, height and width, int64 ``[B, 4]``.

    Where none of ten fits into the image, it is the largest one in the middle whose proportions are allowed.
    """
    height, width = sizes.T
    low, high = transform.aspect
    areas = np.stack([draws.uniform(f"{purpose}/area {n}", *transform.area) for n in range(_TRIES)])
    logs = [draws.uniform(f"{purpose}/aspect {n}", math.log(low), math.log(high)) for n in range(_TRIES)]
    inside = _rectangles(areas, np.exp(logs), height, width)
    fits = ((inside >= 1) & (inside <= sizes.T)).all(axis=1)  # [tries, B]
    aspect = np.clip(width / height, low, high)
    fallback = np.stack([np.minimum(height, width / aspect), np.minimum(width, height * aspect)])
    fallback = np.clip(np.rint(fallback).astype(np.int64), 1, sizes.T)
    chosen = inside[fits.argmax(axis=0), :, np.arange(len(sizes))].T
    chosen = np.where(fits.any(axis=0), chosen, fallback)
    room = sizes.T - chosen
    place = np.stack([draws.uniform(f"{purpose}/top"), draws.uniform(f"{purpose}/left")])
    start = np.where(fits.any(axis=0), np.floor(place * (room + 1)).astype(np.int64), room // 2)
    return np.ascontiguousarray(np.concatenate([start, chosen]).T)


def _rectangles(
    area: NDArray[np.float64], aspect: NDArray[np.float64], height: ArrayLike, width: ArrayLike
) -> NDArray[np.int64]:
    """Heights and widths, stacked before the last axis, of a share of an area and some proportions."""
    pixels = area * np.asarray(height) * np.asarray(width)
    sides = np.stack([np.sqrt(pixels / aspect), np.sqrt(pixels * aspect)], axis=-2)
    rounded: NDArray[np.int64] = np.rint(sides).astype(np.int64)
    return rounded


def erased_boxes(drawn: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Rectangles in images of one size: top, left, height and width, float64 ``[4, B]``.

    Args:
        drawn: float64 ``[4, B]``: share of the area, logarithm of width / height, and where the rectangle is:
            shares of the room it has.
        height: of the image.
        width: of the image.
    """
    extent = np.array([[height], [width]])
    inside = np.clip(_rectangles(drawn[0], np.exp(drawn[1]), height, width), 1, extent)
    return np.concatenate([np.floor(drawn[2:4] * (extent - inside + 1)), inside])


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bilinear filter: the weight of a pixel at a distance of at least 0."""
    return np.maximum(1 - distance, 0.0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bicubic filter (Keys, 1981), with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}  # and how far they reach


def resize_weights(
    size: int,
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    result: int,
    method: Method = "bilinear",
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Pillow's antialiased filters along one axis, in fixed point.

    A filter is as wide as two input pixels (bicubic: four), or as many output ones where these are larger.
    Its weights are normalised and rounded to 22 bits. Pixels beside the window take no part, as if it were
    cut out first.

    Args:
        size: input pixels.
        start: int64 ``[B]``, where the window begins.
        length: int64 ``[B]``, its length.
        result: output pixels.
        method: the filter.

    Returns:
        the first input pixel of each output one, int64 ``[B, result]``; and the weights of those from it on,
        int32 ``[B, result, K]`` in units of 2^-22.
    """
    scale = (length / result)[:, None]
    weigh, reach = _FILTERS[method]
    stretch = np.maximum(scale, 1.0)
    support = reach * stretch
    taps = min(size, 2 * math.ceil(support.max(initial=1.0)) + 1)
    centre = (np.arange(result) + 0.5) * scale  # in the window
    first = start[:, None] + np.maximum(np.floor(centre - support + 0.5), 0).astype(np.int64)
    first = np.minimum(first, size - taps)
    places = (first - start[:, None])[..., None] + np.arange(taps)
    weights = weigh(np.abs((places - centre[..., None] + 0.5) * (1 / stretch)[..., None]))
    weights *= (places >= 0) & (places < length[:, None, None])
    weights /= np.cumsum(weights, axis=-1)[..., -1:]  # summed in order, as Pillow does
    return first, np.floor(weights * (1 << 22) + 0.5).astype(np.int32)
