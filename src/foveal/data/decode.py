"""Image files to pixels, with limits: nothing a file claims can exhaust memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveal.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# What Pillow's readers raise at damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, MemoryError, RuntimeError)

PIXEL_LIMIT = 200_000_000
_OPENING = threading.Lock()  # Pillow's own limit is a global of its module


def read_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Read any common image file and make it the size and colours a network was trained on.

    Turned as its EXIF orientation says; transparency laid on white; 16-bit values scaled to 8; of an
    animation, the first frame. Resized with an antialiased bilinear filter, whatever its proportions.

    Args:
        path: the file.
        shape: height, width, and channels: 1 for grey or 3 for red, green, blue.

    Returns:
        uint8 array of ``shape``.

    Raises:
        ImageError: the file is missing, empty, not an image, damaged, or has more than 200 million pixels.
    """
    height, width, channels = shape
    try:
        with _open(path) as image:
            upright = ImageOps.exif_transpose(image)
            plain = _without_alpha(upright).convert("L" if channels == 1 else "RGB")
            resized = plain.resize((width, height), Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise ImageError(f"{path}: {'is empty' if empty else 'not an image that can be read'}") from None
    except _DAMAGED as error:
        raise ImageError(f"{path}: cannot be read: {error}") from None
    return np.asarray(resized).reshape(shape)


def _open(path: Path) -> Image.Image:
    """Read the header; the limit that counts is ours, stated in pixels and not a warning."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height <= PIXEL_LIMIT:
        return image
    image.close()
    raise ImageError(
        f"{path}: {image.width} x {image.height} pixels are more than the limit of {PIXEL_LIMIT:,}: "
        "make it smaller"
    )


def _without_alpha(image: Image.Image) -> Image.Image:
    """An 8-bit image without transparency."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        clear = values == image.info.get("transparency", -1)
        pixels = np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)  # 65535 / 255
        return Image.fromarray(np.where(clear, np.uint8(255), pixels))
    if image.mode == "F":
        return Image.fromarray(np.clip(np.rint(np.asarray(image) * 255), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour)
    return image
