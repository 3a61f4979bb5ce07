"""TrivialAugment and RandAugment: what an operation and its strength mean for a batch of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.augmentation.geometry import centred

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.data.augmentation.backends import Backend
    from foveal.seeding import Draws

# The operations of TrivialAugment Wide (Mueller, Hutter, 2021, table 9); as there, 31 strengths.
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
_STRENGTHS = 31
_GREY = np.array([0.299, 0.587, 0.114])


def apply_policy(
    images: Any, backend: Backend, draws: Draws, purpose: str, *, magnitude: float | None = None
) -> Any:
    """One random operation on each image of uint8 ``[B, H, W, C]``.

    Args:
        images: an array or tensor of the back end.
        backend: what computes.
        draws: the batch's draws.
        purpose: which of them.
        magnitude: strength in [0, 1]; None draws one of 31.
    """
    _, height, width, channels = images.shape
    chosen = draws.integers(f"{purpose}/operation", 0, len(OPERATIONS) - 1)
    if magnitude is None:
        strength = draws.integers(f"{purpose}/strength", 0, _STRENGTHS - 1) / (_STRENGTHS - 1)
    else:
        strength = np.full(len(chosen), magnitude)
    signed = np.where(draws.uniform(f"{purpose}/sign") < 0.5, -strength, strength)
    images = backend.affine(images, _matrices(chosen, signed, height, width))
    if _any(chosen, "brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize"):
        images = backend.look_up(images, tables(chosen, strength, signed, backend.histogram(images)))
    if channels == 3:
        images = backend.colour(images, _factors(chosen, signed, "colour"))
    return backend.sharpen(images, _factors(chosen, signed, "sharpness"))


def _any(chosen: NDArray[np.int64], *names: str) -> bool:
    return bool(np.isin(chosen, [OPERATIONS.index(name) for name in names]).any())


def _where(chosen: NDArray[np.int64], name: str, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """``value`` for images of one operation, 0 for the others."""
    return np.where(chosen == OPERATIONS.index(name), value, 0.0)


def _factors(chosen: NDArray[np.int64], signed: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    """Enhancement factors from 0.01 to 1.99, in units of 2^-16."""
    return np.rint((1 + 0.99 * _where(chosen, name, signed)) * 65536).astype(np.int64)


def _matrices(
    chosen: NDArray[np.int64], signed: NDArray[np.float64], height: int, width: int
) -> NDArray[np.int64]:
    angle = np.radians(135 * _where(chosen, "rotate", signed))
    shear_x, shear_y = (0.99 * _where(chosen, f"shear_{axis}", signed) for axis in "xy")
    cos, sin = np.cos(angle), np.sin(angle)
    inverse = np.array([[cos, sin - shear_x], [-sin - shear_y, cos]])
    shift = 32 * np.array([_where(chosen, f"translate_{axis}", signed) for axis in "xy"])
    return centred(inverse, shift, height, width)


def tables(
    chosen: NDArray[np.int64],
    strength: NDArray[np.float64],
    signed: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """The operations that are functions of a byte: uint8 ``[B, C, 256]``; identity for the others.

    Args:
        chosen: int64 ``[B]``, places in ``OPERATIONS``.
        strength: float64 ``[B]``, from 0 to 1.
        signed: float64 ``[B]``, from -1 to 1.
        counts: int64 ``[B, C, 256]``, how often each byte occurs.
    """
    byte = np.arange(256)
    out = np.broadcast_to(byte, counts.shape).copy()
    factor, level = 1 + 0.99 * signed[:, None, None], strength[:, None, None]
    bits = 8 - np.rint(6 * level).astype(np.int64)
    means = (counts * byte).sum(axis=-1) / counts.sum(axis=-1)
    grey = (means * _GREY).sum(axis=1) if means.shape[1] == 3 else means.mean(axis=1)
    grey = np.floor(grey + 0.5)[:, None, None]
    for name, values in (
        ("brightness", np.rint(byte * factor)),
        ("contrast", np.rint(grey + (byte - grey) * factor)),
        ("posterize", byte & (256 - (1 << (8 - bits)))),
        ("solarize", np.where(byte >= 255 - 255 * level, 255 - byte, byte)),
        ("autocontrast", _stretched(counts)),
        ("equalize", _equalized(counts)),
    ):
        rows = chosen == OPERATIONS.index(name)
        out[rows] = np.clip(np.broadcast_to(values, out.shape)[rows], 0, 255)
    return out.astype(np.uint8)


def _stretched(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the darkest to the lightest byte that occurs, to 0 to 255."""
    low = (counts > 0).argmax(axis=-1)[..., None]
    high = 255 - (counts[..., ::-1] > 0).argmax(axis=-1)[..., None]
    return np.where(high > low, (np.arange(256) - low) * 255 // np.maximum(high - low, 1), np.arange(256))


def _equalized(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """To about equally frequent bytes, as Pillow's ``ImageOps.equalize``."""
    high = 255 - (counts[..., ::-1] > 0).argmax(axis=-1)[..., None]
    last = np.take_along_axis(counts, high, axis=-1)
    step = (counts.sum(axis=-1, keepdims=True) - last) // 255
    before = np.cumsum(counts, axis=-1) - counts
    return np.where(step > 0, (before + step // 2) // np.maximum(step, 1), np.arange(256))
