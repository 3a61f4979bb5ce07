"""A contact sheet: some training images, and what a recipe makes of each."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveal.data.decode import decode, read_header
from foveal.data.input import training_pipeline
from foveal.data.sampler import Sample
from foveal.data.source import Encoded
from foveal.errors import RecipeError, UsageError
from foveal.files import write_atomically
from foveal.seeding import permute

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.source import Source
    from foveal.recipe import Recipe

_LARGEST, _SMALLEST = (
    192,
    96,
)  # pixels of a cell's longer side: larger images are reduced, smaller ones enlarged
_GAP, _MARGIN = 6, 16  # pixels between cells, and around all
_TITLE, _CAPTION = 18, 13  # font sizes in pixels
_PAPER, _INK, _FAINT, _EMPTY = (250, 250, 248), (32, 32, 32), (120, 120, 120), (228, 228, 224)


def contact_sheet(source: Source, recipe: Recipe, *, count: int = 8, versions: int = 6) -> Image.Image:
    """Draw examples, each followed by what training would see of it in its first epochs.

    Small images are enlarged, all by the same whole factor and with sharp pixels; large ones are reduced.
    Values below 0 and above 255, which changes of brightness give, are shown as black and white.

    Args:
        source: the training part; examples are drawn from it by the recipe's data seed.
        recipe: says how images are distorted.
        count: how many examples.
        versions: of each.

    Returns:
        The sheet, of mode RGB.

    Raises:
        RecipeError: the recipe does not fit the images, or the examples are rows of numbers.
        DataError: an example cannot be read.
    """
    seed = recipe.seed.data
    indices = permute(np.arange(min(count, len(source))), len(source), seed, "preview")
    batch = source.read(indices)
    if isinstance(batch.images, Encoded):
        keys = [source.key(index) for index in indices.tolist()]
        whole = [
            decode(content, read_header(content, key), None, key)
            for content, key in zip(batch.images.contents, keys, strict=True)
        ]
    elif batch.images.dtype == np.uint8:
        whole = list(batch.images)
    else:
        raise RecipeError("the examples are rows of numbers: there is nothing to look at")
    pipeline = training_pipeline(recipe.model_copy(update={"device": "cpu"}), source)
    distorted = [
        np.rint(pipeline.distort(_sample(indices, epoch, len(source)))).clip(0, 255).astype(np.uint8)
        for epoch in range(versions)
    ]
    rows = [
        (_caption(source.classes, target), [whole[row], *(version[row] for version in distorted)])
        for row, target in enumerate(batch.targets.tolist())
    ]
    return _draw(f"{recipe.name}, seed {seed}", rows)


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


def _sample(indices: NDArray[np.int64], epoch: int, size: int) -> Sample:
    """Examples, at places in the stream that belong to an epoch."""
    return Sample(epoch * size + indices, indices, np.full_like(indices, epoch))


def _draw(title: str, rows: list[tuple[str, list[NDArray[np.uint8]]]]) -> Image.Image:
    """Rows of images, uint8 ``[h, w, c]``, under their captions."""
    longest = max(max(image.shape[:2]) for _, images in rows for image in images)
    factor = max(1, _SMALLEST // longest)
    side = min(_LARGEST, factor * longest)
    columns = len(rows[0][1])
    left = [_MARGIN + column * (side + _GAP) + (_GAP if column else 0) for column in range(columns)]
    head, pitch = _MARGIN + 2 * _TITLE + _CAPTION + _GAP, side + _CAPTION + 2 * _GAP
    title_font, font = (ImageFont.load_default(size) for size in (_TITLE, _CAPTION))
    width = max(left[-1] + side, _MARGIN + int(title_font.getlength(title))) + _MARGIN
    sheet = Image.new("RGB", (width, head + len(rows) * pitch + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, _INK, title_font)
    for column, x in enumerate(left):
        heading = f"epoch {column - 1}" if column else "original"
        pen.text((x, head - _CAPTION - _GAP), heading, _FAINT, font)
    for row, (caption, images) in enumerate(rows):
        top = head + row * pitch
        for x, pixels in zip(left, images, strict=True):
            image = _fit(pixels, factor, side)
            sheet.paste(_EMPTY, (x, top, x + side, top + side))
            sheet.paste(image, (x + (side - image.width) // 2, top + (side - image.height) // 2))
        pen.text((_MARGIN, top + side + 2), _shorten(caption, font, side), _INK, font)
    return sheet


def _fit(pixels: NDArray[np.uint8], factor: int, side: int) -> Image.Image:
    """An image enlarged by a whole factor, or reduced to fit a square."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest * factor <= side:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, length * side // longest) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _caption(classes: tuple[str, ...], target: int) -> str:
    """The name of a class, or its number where the font that comes with Pillow lacks a letter of it."""
    font = ImageFont.load_default(_CAPTION)
    missing = bytes(font.getmask("\uffff"))
    name = " ".join(classes[target].split())
    drawable = name and all(letter == " " or bytes(font.getmask(letter)) != missing for letter in name)
    return name if drawable else f"class {target}"


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as is at most ``width`` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
