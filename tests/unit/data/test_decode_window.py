from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from foveal.data.decode import decode, decode_batch, read_header
from foveal.errors import ImageError

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def encoded(pixels, kind="PNG", orientation=1, mode=None, **options):
    content, exif = io.BytesIO(), Image.Exif()
    image = Image.fromarray(pixels)
    if orientation != 1:
        exif[0x0112] = orientation
        options["exif"] = exif
    (image.convert(mode) if mode else image).save(content, kind, **options)
    return content.getvalue()


def photograph(height, width):
    """Smooth shapes with some grain, of which JPEG makes little mistakes."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width].astype(float)
    planes = [128 + 60 * np.sin(x / (9 + 4 * c)) + 50 * np.cos(y / (13 - 3 * c)) for c in range(3)]
    noisy = np.stack(planes, axis=-1) + rng.normal(0, 3, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def reference(pixels, shape, window=None, method="bilinear"):
    """What Pillow makes of it: cut out, and resized with its antialiased filter."""
    top, left, height, width = window or (0, 0, *pixels.shape[:2])
    image = Image.fromarray(pixels[top : top + height, left : left + width])
    image = image.convert("L" if shape[2] == 1 else "RGB")
    return np.asarray(image.resize(shape[1::-1], Image.Resampling[method.upper()])).reshape(shape)


class TestAHeader:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
    def test_tells_the_size(self, kind):
        assert read_header(encoded(NOISE, kind), "x") == (30, 40, 3)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_tells_the_size_upright(self, kind, orientation):
        size = (30, 40) if orientation < 5 else (40, 30)
        assert read_header(encoded(NOISE, kind, orientation), "x")[:2] == size

    @pytest.mark.parametrize(
        ("kind", "mode", "channels"),
        [
            ("PNG", "L", 1),
            ("PNG", "LA", 1),
            ("PNG", "1", 1),
            ("PNG", "I;16", 1),
            ("PNG", "P", 3),
            ("PNG", "RGBA", 3),
            ("JPEG", "L", 1),
            ("JPEG", "CMYK", 3),
            ("TIFF", "F", 1),
            ("TIFF", "CMYK", 3),
            ("GIF", "P", 3),
        ],
    )
    def test_tells_grey_from_colours(self, kind, mode, channels):
        pixels = NOISE[..., 0].astype(np.uint16) * 257 if mode == "I;16" else NOISE
        content = encoded(pixels, kind, mode=None if mode == "I;16" else mode)
        assert read_header(content, "x") == (30, 40, channels)

    def test_needs_no_pixels(self):
        jpeg = encoded(NOISE, "JPEG")
        assert read_header(jpeg[: jpeg.index(b"\xff\xda") + 2], "x") == (30, 40, 3)
        assert read_header(encoded(NOISE, "PNG")[:40], "x") == (30, 40, 3)

    def test_of_nothing_and_of_text_is_refused(self):
        for content, reason in ((b"", "is empty"), (b"hello", "not an image that can be read")):
            with pytest.raises(ImageError) as caught:
                read_header(content, "file 7")
            assert str(caught.value) == f"file 7: {reason}"

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
    def test_of_any_length_is_read_or_refused(self, kind):
        content = encoded(NOISE[:4, :4], kind)
        for length in range(len(content)):
            try:
                found = read_header(content[:length], "x")
            except ImageError:
                continue
            assert found == (4, 4, 3)

    def test_of_a_png_is_held_to_its_checksum(self):
        content = bytearray(encoded(NOISE))
        content[19] ^= 1
        with pytest.raises(ImageError, match="x: cannot be read: the PNG's header is damaged"):
            read_header(bytes(content), "x")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_with_damaged_exif_is_upright(self, kind):
        content = encoded(NOISE, kind, 6)
        place = content.index(b"MM\0*")
        for damage in (b"XX\0*", b"MM\0*\xff\xff\xff\xff"):
            damaged = content[:place] + damage + content[place + len(damage) :]
            assert read_header(damaged, "x") == (30, 40, 3)
            if kind == "JPEG":
                assert decode(damaged, (30, 40, 3), None, "x").shape == (30, 40, 3)


class TestAWindow:
    WINDOW = (7, 11, 9, 14)

    @pytest.mark.parametrize("kind", LOSSLESS)
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_of_its_own_size_is_the_pixels_themselves(self, kind, orientation):
        content = encoded(NOISE, kind, orientation, **LOSSLESS[kind])
        upright = NOISE if orientation == 1 else np.rot90(NOISE, -1)
        found = decode(content, (9, 14, 3), self.WINDOW, "x")
        assert np.array_equal(found, upright[7:16, 11:25])

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("channels", [1, 3])
    def test_is_given_in_pixels_of_the_upright_image(self, orientation, channels):
        pixels = photograph(60, 80)
        plain = decode(encoded(pixels, "JPEG", quality=95), (60, 80, 3), None, "x")
        turns = [
            plain,
            plain[:, ::-1],
            plain[::-1, ::-1],
            plain[::-1],
            plain.swapaxes(0, 1),
            np.rot90(plain, -1),
            plain[::-1, ::-1].swapaxes(0, 1),
            np.rot90(plain),
        ]
        upright = np.ascontiguousarray(turns[orientation - 1])
        content = encoded(pixels, "JPEG", orientation, quality=95)
        for window in (None, (3, 5, 40, 50), (10, 0, 50, 20)):
            found = decode(content, (16, 13, channels), window, "x")
            expected = reference(upright, (16, 13, channels), window)
            assert np.abs(found.astype(int) - expected).max() <= 2

    def test_outside_of_the_image_is_refused(self):
        for kind in ("PNG", "JPEG"):
            content = encoded(NOISE, kind)
            for window in ((0, 0, 31, 1), (0, 0, 1, 41), (-1, 0, 2, 2), (29, 39, 1, 2), (0, 0, 0, 5)):
                with pytest.raises(IndexError, match="not inside the image of 30 x 40"):
                    decode(content, (4, 4, 3), window, "x")


class TestResizing:
    @pytest.mark.parametrize("shape", [(10, 13), (30, 39), (31, 41), (90, 120), (8, 11), (3, 200), (29, 2)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_of_a_jpeg_is_that_of_pillow(self, shape, channels):
        content = encoded(NOISE, "JPEG", subsampling=0)
        full = decode(content, (30, 40, channels), None, "x")
        pixels = full[..., 0] if channels == 1 else full
        for window in (None, (3, 5, 20, 30), (29, 39, 1, 1)):
            found = decode(content, (*shape, channels), window, "x")
            expected = reference(pixels, (*shape, channels), window)
            assert np.abs(found.astype(int) - expected).max() <= 1

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    @pytest.mark.parametrize("orientation", [1, 6])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_with_the_bicubic_filter_is_that_of_the_whole_image_by_pillow(self, kind, orientation, channels):
        content = encoded(photograph(300, 400), kind, orientation)
        shape = (300, 400) if orientation == 1 else (400, 300)
        full = decode(content, (*shape, channels), None, "x")
        pixels = full[..., 0] if channels == 1 else full
        for window in (None, (31, 52, 262, 202)):
            (found,) = decode_batch([content], (40, 30, channels), [window], ["x"], "bicubic")
            expected = reference(pixels, (40, 30, channels), window, "bicubic")
            assert np.abs(found.astype(int) - expected).max() <= 1
            assert (found != decode(content, (40, 30, channels), window, "x")).any()

    def test_leaves_one_colour_as_it_is(self):
        for value in (0, 1, 128, 254, 255):
            content = encoded(np.full((50, 70), value, np.uint8), "JPEG", quality=100)
            for shape in ((7, 9, 1), (100, 99, 3)):
                assert (decode(content, shape, None, "x") == value).all()

    def test_uses_no_reduced_sizes_of_small_images(self):
        for size in range(1, 60, 3):
            pixels = np.repeat(np.arange(size, dtype=np.uint8) * 4, size).reshape(size, size)
            content = encoded(pixels, "JPEG", quality=100)
            full = decode(content, (size, size, 1), None, "x")[..., 0]
            found = decode(content, (1, 2, 1), None, "x")
            assert np.abs(found.astype(int) - reference(full, (1, 2, 1))).max() <= 1

    @pytest.mark.parametrize("window", [None, (33, 71, 600, 801)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_by_four_and_more_uses_reduced_sizes_at_45_db(self, window, channels):
        pixels = photograph(667, 901)
        content = encoded(pixels, "JPEG", quality=95)
        full = decode(content, (667, 901, 3), None, "x")
        for shape in ((140, 190), (64, 64), (70, 20)):
            found = decode(content, (*shape, channels), window, "x")
            assert psnr(found, reference(full, (*shape, channels), window)) > 45

    def test_of_photographs_is_35_db_from_decoding_in_full(self, shared_data):
        files = sorted((shared_data / "imagenet-sample").glob("*.JPEG"))[:12]
        for file in files:
            pixels = np.asarray(Image.open(file).convert("RGB"))
            for size in (299, 96):
                found = decode(file.read_bytes(), (size, size, 3), None, str(file))
                assert psnr(found, reference(pixels, (size, size, 3))) > 45, file


class TestOtherJpegs:
    def test_of_four_inks_are_decoded(self):
        content = io.BytesIO()
        Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(content, "JPEG")
        found = decode(content.getvalue(), (5, 6, 3), (2, 3, 20, 30), "x")
        assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 6

    def test_whose_colours_are_sampled_in_an_odd_way_are_decoded(self):
        grey = encoded(np.full((16, 48, 3), 128, np.uint8), "JPEG", subsampling=0)
        frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
        head = bytearray(grey[: scan + 14])
        head[frame + 11] = 0x31  # three samples of brightness for one of colour
        unit = "001010" * 3 + "0000" * 2  # no difference and end of block, in the tables of annex K
        bits = unit * 4  # units of 24 x 8 pixels
        found = decode(bytes(head) + int(bits, 2).to_bytes(13, "big") + b"\xff\xd9", (16, 48, 3), None, "x")
        assert (found == 128).all()

    def test_are_refused_when_they_are_cut_off_anywhere(self):
        content = encoded(NOISE, "JPEG")
        for length in range(len(content)):
            with pytest.raises(ImageError) as caught:
                decode(content[:length], (8, 8, 3), None, "x")
            assert str(caught.value).startswith("x: ")

    @pytest.mark.parametrize("claim", [(65500, 65500), (14000, 14000), (0, 40), (30, 0)])
    def test_are_refused_before_memory_is_taken_for_what_they_claim(self, claim):
        content = bytearray(encoded(NOISE, "JPEG"))
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, *claim)
        with pytest.raises(ImageError, match="pixels"):
            read_header(bytes(content), "x")
        with pytest.raises(ImageError, match="pixels"):
            decode(bytes(content), (8, 8, 3), None, "x")


class TestABatch:
    def test_is_its_images_one_by_one(self):
        contents = [encoded(photograph(50 + i, 60), "JPEG" if i % 2 else "PNG") for i in range(5)]
        windows = [None, (1, 2, 30, 40), None, (0, 0, 50, 60), (5, 5, 9, 9)]
        batch = decode_batch(contents, (12, 10, 3), windows, list("abcde"))
        assert batch.shape == (5, 12, 10, 3)
        for found, content, window in zip(batch, contents, windows, strict=True):
            assert np.array_equal(found, decode(content, (12, 10, 3), window, "x"))
        whole = decode_batch(contents, (12, 10, 1), None, list("abcde"))
        assert np.array_equal(whole[3], decode(contents[3], (12, 10, 1), None, "x"))

    def test_names_the_first_that_cannot_be_decoded(self):
        contents = [encoded(NOISE), b"x", encoded(NOISE), b""]
        with pytest.raises(ImageError, match="b: not an image"):
            decode_batch(contents, (4, 4, 3), None, list("abcd"))

    def test_may_be_decoded_in_many_threads(self):
        contents = [encoded(photograph(40 + i, 90), "JPEG") for i in range(8)]
        expected = [decode(content, (20, 20, 3), None, "x") for content in contents]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: decode(contents[i % 8], (20, 20, 3), None, "x"), range(400)))
        assert all(np.array_equal(image, expected[i % 8]) for i, image in enumerate(found))
