"""Image files to pixels, with limits: nothing a file claims can exhaust memory.

JPEG is decoded by libjpeg-turbo through simplejpeg, whose every warning is an error; all else, JPEG of four
inks, and everything where there is no Numba to resize with, by Pillow, which also does the bicubic resizing.
Pixels are upright (EXIF orientation applied), of 8 bits, with transparency laid on white.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from foveal.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.recipe.transforms import Method

    Window = tuple[int, int, int, int]

PIXEL_LIMIT = 200_000_000
_DENSITY = 10_000  # pixels in a byte, beyond what a PNG (8,256), GIF (2,730) or JPEG (512) can hold
_UNSUSPECTED = 1 << 24  # pixels that need no proof
# What Pillow's readers raise at damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, MemoryError, RuntimeError, struct.error, TypeError)
_OPENING = threading.Lock()  # Pillow's own limit is a global of its module
# Those that every system shows; Pillow's others include some that start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # the tag, in EXIF and TIFF
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# JPEG's own reduced sizes do a part of the shrinking, where they leave so many times the rows and columns
# wanted: several times as fast, and 45 dB or more from decoding in full for targets of 64 pixels and more.
_HEADROOM = 2
_LEAST = 64  # rows and columns that are left in any case
_HELD = 1 << 26  # bytes of memory that a thread keeps for decoding
_LOCAL = threading.local()


class ImageHeader(NamedTuple):
    """The size of an image, upright: pixels, and 1 channel for grey, 3 for all others."""

    height: int
    width: int
    channels: int


def read_header(content: bytes, key: str) -> ImageHeader:
    """What an image file says about itself; its pixels are not looked at.

    Args:
        content: the bytes of the file.
        key: where they come from, for messages.

    Raises:
        ImageError: they are no image, its header is damaged, or it has more than 200 million pixels.
    """
    try:
        if content.startswith(_JPEG):
            found = _scan_jpeg(content)
        elif content.startswith(_PNG):
            found = _scan_png(content)
        else:
            with _open(content) as image:
                found = _Found(
                    image.height, image.width, _channels(image), _turn(image, content), plain=False
                )
    except _DAMAGED as error:
        raise _refusal(error, content, key) from None
    _check_size(found.width, found.height, content, key)
    if found.orientation >= 5:
        return ImageHeader(found.width, found.height, found.channels)
    return ImageHeader(found.height, found.width, found.channels)


def decode(content: bytes, shape: tuple[int, int, int], window: Window | None, key: str) -> NDArray[np.uint8]:
    """An image, or a part of it, resized with an antialiased bilinear filter, whatever its proportions.

    16-bit values are scaled to 8, floating point is taken from 0 to 1; of an animation, the first frame.

    Args:
        content: the bytes of the file.
        shape: height, width, and channels: 1 for grey or 3 for red, green, blue.
        window: top, left, height and width of the part, in pixels of the upright image; None for all of it.
        key: where the bytes come from, for messages.

    Returns:
        uint8 array of ``shape``.

    Raises:
        ImageError: they are no image, damaged in any part, or have more than 200 million pixels.
        IndexError: the window is not inside the image.
    """
    pixels = np.empty(shape, np.uint8)
    decode_into(pixels, content, window, key)
    return pixels


def decode_batch(
    contents: Sequence[bytes],
    shape: tuple[int, int, int],
    windows: Sequence[Window | None] | None,
    keys: Sequence[str],
    method: Method = "bilinear",
) -> NDArray[np.uint8]:
    """Images as :func:`decode` gives them, uint8 ``[B, *shape]``; windows of None are the whole images.

    With ``method`` "bicubic", they are decoded in full and resized with that antialiased filter.

    Raises:
        ImageError: for the first that cannot be decoded.
        IndexError: a window is not inside its image.
    """
    batch = np.empty((len(contents), *shape), np.uint8)
    for pixels, content, window, key in zip(
        batch, contents, windows or [None] * len(contents), keys, strict=True
    ):
        decode_into(pixels, content, window, key, method)
    return batch


def decode_into(
    pixels: NDArray[np.uint8], content: bytes, window: Window | None, key: str, method: Method = "bilinear"
) -> None:
    """:func:`decode`, into an array of the shape wanted, with the filter wanted."""
    try:
        if content.startswith(_JPEG) and (found := _scan_jpeg(content)).plain and find_spec("numba"):
            _check_size(found.width, found.height, content, key)
            if _decode_jpeg(pixels, content, window, found, method):
                return
        with _open(content) as image:
            _check_size(image.width, image.height, content, key)
            _decode_pillow(pixels, image, window, _turn(image, content), method)
    except _DAMAGED as error:
        raise _refusal(error, content, key) from None


def read_file(path: Path) -> bytes:
    """The bytes of an image file, for :func:`decode`.

    Raises:
        ImageError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None


class _Found(NamedTuple):
    """A header: the size as stored, channels as in ``ImageHeader``, the EXIF orientation."""

    height: int
    width: int
    channels: int
    orientation: int
    plain: bool  # a JPEG that libjpeg-turbo turns into grey or colours


def _scan_jpeg(content: bytes) -> _Found:
    """The frame and orientation of a JPEG (ITU-T T.81, annex B), from the segments before its first scan."""
    at, orientation, frame = 2, 1, None
    while (marker := content[at + 1 : at + 2]) != b"\xda":  # SOS
        if content[at : at + 1] != b"\xff":
            raise ValueError("the JPEG has no frame, or is damaged before it")
        if marker == b"\xff":  # a fill byte
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if b"\xc0" <= marker <= b"\xcf" and marker not in b"\xc4\xc8\xcc":  # SOF
            frame = struct.unpack_from(">BHHB", segment)
        elif marker == b"\xe1" and segment.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(segment[6:])
        at += 2 + length
    if frame is None:
        raise ValueError("the JPEG has no frame")
    precision, height, width, components = frame
    if not height * width:
        raise ValueError("the JPEG has no pixels")
    plain = precision == 8 and components in (1, 3)
    return _Found(height, width, 1 if components == 1 else 3, orientation, plain)


def _scan_png(content: bytes) -> _Found:
    """The header and orientation of a PNG (its third edition, 11.2.1 and 11.3.4.5)."""
    if content[12:16] != b"IHDR" or content[29:33] != zlib.crc32(content[12:29]).to_bytes(4, "big"):
        raise ValueError("the PNG's header is damaged")
    width, height, _, colour = struct.unpack_from(">IIBB", content, 16)
    at, orientation = 33, 1
    while (kind := content[at + 4 : at + 8]) not in (b"IEND", b""):
        length = int.from_bytes(content[at : at + 4], "big")
        if kind == b"eXIf":
            orientation = _exif_orientation(content[at + 8 : at + 8 + length])
        at += 12 + length
    return _Found(height, width, 1 if colour in (0, 4) else 3, orientation, plain=False)


def _exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that EXIF states in its first directory; 1 where it states none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _turn(image: Image.Image, content: bytes) -> int:
    """The orientation that is still to be applied to what Pillow decodes."""
    if content.startswith(_JPEG):
        return _scan_jpeg(content).orientation
    if content.startswith(_PNG):
        return _scan_png(content).orientation
    if image.format == "TIFF":
        return 1  # Pillow turns those itself
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _decode_jpeg(
    pixels: NDArray[np.uint8], content: bytes, window: Window | None, found: _Found, method: Method
) -> bool:
    """Decode a JPEG, unless its colours are sampled in one of the rare ways that TurboJPEG does not know."""
    import simplejpeg

    from foveal.data.resize import resize

    part = top, left, height, width = _stored(window, found.height, found.width, found.orientation)
    target = _unturned(pixels, found.orientation)
    rows, columns, channels = target.shape
    grey = channels == 1
    size = found.height * found.width * (1 if grey else 4)
    reduced = method == "bilinear"
    try:
        stored = simplejpeg.decode_jpeg(
            content,
            "GRAY" if grey else "RGBX",
            min_height=-(-max(_HEADROOM * rows, _LEAST) * found.height // height) if reduced else 0,
            min_width=-(-max(_HEADROOM * columns, _LEAST) * found.width // width) if reduced else 0,
            min_factor=2,
            buffer=_memory(size) if size <= _HELD else None,
        )
    except ValueError as error:
        if "subsampling" in str(error):
            return False
        raise
    if (height, width) == (rows, columns):
        target[...] = stored[top : top + height, left : left + width, :channels]
        return True
    if not reduced:
        mode = "L" if grey else "RGBX"
        image = Image.frombuffer(mode, stored.shape[1::-1], stored, "raw", mode, 0, 1)
        _fit(target, image, part, method)
        return True
    scale = min(8, 8 * max(stored.shape[:2]) // max(found[:2])) / 8  # eighths; the sizes are rounded up
    resized = pixels if target is pixels else np.empty(target.shape, np.uint8)
    resize(stored.reshape(len(stored), -1), top * scale, left * scale, height * scale, width * scale, resized)
    if resized is not pixels:
        target[...] = resized
    return True


def _memory(size: int) -> bytearray:
    """Memory of this thread for pixels as stored, used again for the next image: new pages take time."""
    held: bytearray = getattr(_LOCAL, "memory", bytearray())
    if len(held) < size:
        _LOCAL.memory = held = bytearray(size)
    return held


def _decode_pillow(
    pixels: NDArray[np.uint8], image: Image.Image, window: Window | None, orientation: int, method: Method
) -> None:
    target = _unturned(pixels, orientation)
    plain = _without_alpha(image).convert("L" if target.shape[2] == 1 else "RGB")
    _fit(target, plain, _stored(window, plain.height, plain.width, orientation), method)


def _fit(target: NDArray[np.uint8], image: Image.Image, window: Window, method: Method) -> None:
    """Cut a window out, and resize it to the size of ``target``, which takes the first channels."""
    rows, columns, channels = target.shape
    top, left, height, width = window
    if image.size != (width, height):
        image = image.crop((left, top, left + width, top + height))
    if image.size != (columns, rows):
        image = image.resize((columns, rows), _FILTERS[method])
    target[...] = np.asarray(image).reshape(rows, columns, -1)[..., :channels]


def _stored(window: Window | None, rows: int, columns: int, orientation: int) -> Window:
    """A window of the upright image as one of the stored image, which has ``rows`` and ``columns``."""
    if window is None:
        return 0, 0, rows, columns
    top, left, height, width = window
    turned, down, right = _TURNS[orientation]
    upright = (columns, rows) if turned else (rows, columns)
    if min(top, left, height - 1, width - 1) < 0 or top + height > upright[0] or left + width > upright[1]:
        raise IndexError(f"the window {window} is not inside the image of {upright[0]} x {upright[1]}")
    if down:
        top = upright[0] - top - height
    if right:
        left = upright[1] - left - width
    return (left, top, width, height) if turned else (top, left, height, width)


# By EXIF orientation: whether rows and columns change places; then whether to flip up-down, and left-right.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _unturned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of upright pixels in which they lie as stored; themselves, where nothing is turned."""
    if orientation == 1:
        return pixels
    turned, down, right = _TURNS[orientation]
    view = pixels[:: -1 if down else 1, :: -1 if right else 1]
    return view.swapaxes(0, 1) if turned else view


def _open(content: bytes) -> Image.Image:
    """Let Pillow read the header; the limit that counts is ours, stated in pixels and not a warning."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(width: int, height: int, content: bytes, key: str) -> None:
    if width * height > PIXEL_LIMIT:
        raise ImageError(
            f"{key}: {width} x {height} pixels are more than the limit of {PIXEL_LIMIT:,}: make it smaller"
        )
    if width * height > max(_UNSUSPECTED, _DENSITY * len(content)):
        raise ImageError(f"{key}: claims {width} x {height} pixels, which {len(content)} bytes cannot hold")


def _refusal(error: Exception, content: bytes, key: str) -> ImageError:
    if not content:
        return ImageError(f"{key}: is empty")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{key}: not an image that can be read")
    return ImageError(f"{key}: cannot be read: {error}")


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in {"1", "L", "LA", "La", "F"} or image.mode.startswith("I") else 3


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
