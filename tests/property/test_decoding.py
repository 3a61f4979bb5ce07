"""Pixels are those that Pillow gives, whatever the format, orientation, window and size;
bytes, however damaged, are at most refused.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foveal.data.decode import decode, read_header
from foveal.data.resize import resize
from foveal.errors import ImageError

KINDS = {"PNG": {}, "JPEG": {"subsampling": 0}, "TIFF": {}, "WEBP": {"lossless": True}, "BMP": {}, "GIF": {}}
ORIENTED = ["PNG", "JPEG", "TIFF", "WEBP"]


def save(pixels, kind, orientation=1):
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind in ORIENTED else {}
    Image.fromarray(pixels).save(content, kind, **KINDS[kind], **options)
    return content.getvalue()


@st.composite
def cases(draw):
    """An image file, its pixels upright, a window in them, and a shape of more than a quarter of its size."""
    height, width = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), np.uint8)
    kind = draw(st.sampled_from(list(KINDS)))
    content = save(pixels, kind, draw(st.integers(1, 8)))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    spans = []
    for size in upright.shape[:2]:
        start = draw(st.integers(0, size - 1))
        spans.append((start, draw(st.integers(1, size - start))))
    (top, rows), (left, columns) = spans
    shape = [draw(st.integers(length // 4 + 1, 60)) for length in (rows, columns)]
    channels = 3 if kind == "JPEG" else draw(st.sampled_from([1, 3]))  # a JPEG has a grey of its own
    return content, upright, (top, left, rows, columns), (*shape, channels)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_a_window_is_cut_out_and_resized_as_pillow_does(case):
    content, upright, (top, left, rows, columns), shape = case
    image = Image.fromarray(upright[top : top + rows, left : left + columns])
    if shape[2] == 1:
        image = image.convert("L")
    expected = np.asarray(image.resize(shape[1::-1], Image.Resampling.BILINEAR)).reshape(shape)
    assert read_header(content, "x")[:2] == upright.shape[:2]
    found = decode(content, shape, (top, left, rows, columns), "x")
    assert np.abs(found.astype(int) - expected).max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([1, 4]), st.integers(0, 99))
def test_resizing_is_a_mean_of_the_pixels_in_the_window(data, stored, seed):
    rows, columns = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    source = np.random.default_rng(seed).integers(0, 256, (rows, columns * stored), np.uint8)
    top, left = data.draw(st.floats(0, rows - 0.5)), data.draw(st.floats(0, columns - 0.5))
    height, width = data.draw(st.floats(0.4, rows - top)), data.draw(st.floats(0.4, columns - left))
    target = np.empty(
        (*data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20))), 1 if stored == 1 else 3), np.uint8
    )
    resize(source, top, left, height, width, target)
    inside = source.reshape(rows, columns, stored)[
        int(top) : int(np.ceil(top + height)), int(left) : int(np.ceil(left + width))
    ]
    for channel in range(target.shape[2]):
        assert inside[..., channel].min() <= target[..., channel].min()
        assert target[..., channel].max() <= inside[..., channel].max()


WHOLE = {
    kind: save(np.random.default_rng(7).integers(0, 256, (6, 9, 3), np.uint8), kind, 6) for kind in KINDS
}


@pytest.mark.filterwarnings("ignore:.*(Truncated|Corrupt EXIF|[Mm]etadata).*:UserWarning")
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_bytes_are_decoded_or_refused_in_one_line(kind, changes, length):
    content = bytearray(WHOLE[kind])
    for place, value in changes:
        content[int(place * len(content))] = value
    content = bytes(content[: int(length * len(content)) if length < 0.5 else None])
    for attempt in (lambda: read_header(content, "x"), lambda: decode(content, (4, 4, 3), None, "x")):
        try:
            found = attempt()
        except ImageError as error:
            message = str(error)
        else:
            message = "x: fine"
            assert len(found) in (3, 4)
        assert message.startswith("x: ")
        assert "\n" not in message
