"""Drawing a contact sheet: rows of small pictures under captions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from foveal.errors import UsageError
from foveal.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_LARGEST = 192  # pixels of a cell's longer side: larger images are reduced,
_SMALLEST = 96  # and smaller ones enlarged
_GAP, _MARGIN = 6, 16  # pixels between cells, and around all
_TITLE, _CAPTION = 18, 13  # font sizes in pixels
_PAPER, _INK, _FAINT, _EMPTY = (250, 250, 248), (32, 32, 32), (120, 120, 120), (228, 228, 224)


def draw_sheet(
    title: str, rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], headings: Sequence[str] = ()
) -> Image.Image:
    """Draw images under their captions.

    Small images are enlarged, all by the same whole factor and with sharp pixels; large ones are reduced.

    Args:
        title: what stands above all.
        rows: each image, uint8 ``[h, w, 1 or 3]``, with its caption; the first row is the longest.
        headings: what stands above each column; with them the first column stands apart from the others.

    Returns:
        The sheet, of mode RGB.
    """
    longest = max(max(image.shape[:2]) for row in rows for image, _ in row)
    factor = max(1, _SMALLEST // longest)
    side = min(_LARGEST, factor * longest)
    apart = _GAP if headings else 0
    left = [_MARGIN + column * (side + _GAP) + (apart if column else 0) for column in range(len(rows[0]))]
    head, pitch = _MARGIN + 2 * _TITLE + (_CAPTION + _GAP if headings else 0), side + _CAPTION + 2 * _GAP
    title_font, font = (ImageFont.load_default(size) for size in (_TITLE, _CAPTION))
    width = max(left[-1] + side, _MARGIN + int(title_font.getlength(title))) + _MARGIN
    sheet = Image.new("RGB", (width, head + len(rows) * pitch + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, _INK, title_font)
    for x, heading in zip(left, headings, strict=False):
        pen.text((x, head - _CAPTION - _GAP), heading, _FAINT, font)
    for number, row in enumerate(rows):
        top = head + number * pitch
        for x, (pixels, text) in zip(left, row, strict=False):
            image = _fit(pixels, factor, side)
            sheet.paste(_EMPTY, (x, top, x + side, top + side))
            sheet.paste(image, (x + (side - image.width) // 2, top + (side - image.height) // 2))
            pen.text((x, top + side + 2), _shorten(text, font, side), _INK, font)
    return sheet


def class_caption(classes: Sequence[str], target: int) -> str:
    """The name of a class, or its number where the font that comes with Pillow lacks a letter of it."""
    font = ImageFont.load_default(_CAPTION)
    missing = bytes(font.getmask("\uffff"))
    name = " ".join(classes[target].split())
    drawable = name and all(letter == " " or bytes(font.getmask(letter)) != missing for letter in name)
    return name if drawable else f"class {target}"


def save_png(sheet: Image.Image, path: Path) -> None:
    """Write a picture; it is there complete or not at all.

    Raises:
        UsageError: the name does not end in ``.png``.
        OSError: it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the picture is a PNG file: let its name end in .png")
    content = io.BytesIO()
    sheet.save(content, "png", optimize=True)
    write_atomically(path, content.getvalue())


def _fit(pixels: NDArray[np.uint8], factor: int, side: int) -> Image.Image:
    """An image enlarged by a whole factor, or reduced to fit a square."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest * factor <= side:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, length * side // longest) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as is at most ``width`` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
