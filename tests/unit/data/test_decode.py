from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from foveal.data.decode import decode, read_file
from foveal.errors import ImageError

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (9, 7), dtype=np.uint8)
FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "an image"  # its format is known by its content


@pytest.fixture(autouse=True)
def _the_limit_of_pillow_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    yield
    assert before == Image.MAX_IMAGE_PIXELS


def read_image(path, shape):
    return decode(read_file(path), shape, None, str(path))


def plain(*colour, mode="RGB"):
    """An image of one colour, whose pixels every format keeps, JPEG nearly."""
    return Image.new(mode, (8, 16), colour if len(colour) > 1 else colour[0])


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, *, bits=8, colour=0, scanlines=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(scanlines))
        + chunk(b"IEND", b"")
    )


def refusal(path, shape=(8, 8, 3)):
    with pytest.raises(ImageError) as caught:
        read_image(path, shape)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


class TestFormats:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_colour_images_of_every_format_are_read(self, path, kind):
        plain(200, 40, 90).save(path, kind)
        image = read_image(path, (16, 8, 3))
        assert image.shape == (16, 8, 3)
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - (200, 40, 90)).max() <= 3

    @pytest.mark.parametrize("kind", FORMATS)
    def test_grey_images_of_every_format_are_read(self, path, kind):
        plain(77, mode="L").save(path, kind)
        image = read_image(path, (16, 8, 1))
        assert image.shape == (16, 8, 1)
        assert np.abs(image.astype(int) - 77).max() <= 2

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
        ],
    )
    def test_lossless_formats_give_every_pixel_exactly(self, path, kind, options):
        Image.fromarray(COLOURS).save(path, kind, **options)
        assert np.array_equal(read_image(path, (9, 7, 3)), COLOURS)

    def test_the_first_frame_of_an_animation_is_read(self, path):
        frames = [plain(*colour) for colour in ((255, 0, 0), (0, 255, 0))]
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
        assert read_image(path, (1, 1, 3)).tolist() == [[[255, 0, 0]]]


class TestColours:
    def test_grey_becomes_three_equal_channels(self, path):
        Image.fromarray(GREY).save(path, "PNG")
        assert np.array_equal(read_image(path, (9, 7, 3)), np.repeat(GREY[..., None], 3, axis=2))

    def test_colour_becomes_grey_by_luminance(self, path):
        Image.fromarray(COLOURS).save(path, "PNG")
        expected = COLOURS @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
        assert np.abs(read_image(path, (9, 7, 1))[..., 0] - expected).max() <= 1

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_transparency_is_laid_on_white(self, path, kind):
        pixels = np.zeros((1, 3, 4), np.uint8)
        pixels[0, :, :3] = (100, 20, 250)
        pixels[0, :, 3] = (255, 0, 51)  # opaque, clear, one fifth
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        Image.fromarray(pixels).save(path, kind, **options)
        image = read_image(path, (1, 3, 3))[0]
        assert image[:2].tolist() == [[100, 20, 250], [255, 255, 255]]
        assert np.abs(image[2].astype(int) - (224, 208, 254)).max() <= 1

    def test_transparent_grey_is_laid_on_white(self, path):
        pixels = np.array([[[10, 255], [10, 0]]], np.uint8)
        Image.fromarray(pixels, "LA").save(path, "PNG")
        assert read_image(path, (1, 2, 1))[..., 0].tolist() == [[10, 255]]

    def test_the_transparent_colour_of_an_image_without_alpha_is_white(self, path):
        Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(
            path, "PNG", transparency=(1, 2, 3)
        )
        assert read_image(path, (1, 2, 3))[0].tolist() == [[255, 255, 255], [4, 5, 6]]

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
    def test_palettes_are_looked_up(self, path, kind):
        palette_image(0, 1, 2).save(path, kind)
        assert read_image(path, (1, 3, 3))[0].tolist() == [[10, 20, 30], [200, 100, 0], [7, 8, 9]]

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_the_transparent_entry_of_a_palette_is_white(self, path, kind):
        palette_image(0, 1, 2).save(path, kind, transparency=1)
        assert read_image(path, (1, 3, 3))[0].tolist() == [[10, 20, 30], [255, 255, 255], [7, 8, 9]]

    def test_a_palette_with_alpha_is_laid_on_white(self, path):
        palette_image(0, 1, 2).save(path, "PNG", transparency=bytes([255, 0, 51]))
        image = read_image(path, (1, 3, 3))[0]
        assert image[:2].tolist() == [[10, 20, 30], [255, 255, 255]]
        assert np.abs(image[2].astype(int) - (205, 206, 206)).max() <= 1

    @pytest.mark.parametrize(
        ("inks", "colour"),
        [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))],
    )
    def test_jpeg_of_four_inks_is_turned_into_light(self, path, inks, colour):
        plain(*inks, mode="CMYK").save(path, "JPEG")
        assert np.abs(read_image(path, (16, 8, 3)).astype(int) - colour).max() <= 6

    def test_one_bit_is_black_or_white(self, path):
        bits = np.array([[True, False, True]])
        Image.fromarray(bits).save(path, "PNG")
        assert read_image(path, (1, 3, 1))[..., 0].tolist() == [[255, 0, 255]]

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled_to_eight(self, path, kind):
        values = np.array([[0, 257, 128 * 257, 65535, 385, 386]], np.uint16)
        Image.fromarray(values).save(path, kind)
        assert read_image(path, (1, 6, 1))[..., 0].tolist() == [[0, 1, 128, 255, 1, 2]]
        assert read_image(path, (1, 6, 3))[0, 2].tolist() == [128, 128, 128]

    def test_floating_point_is_taken_from_zero_to_one(self, path):
        Image.fromarray(np.array([[0.0, 1.0, 0.5, -3.0, 7.0]], np.float32)).save(path, "TIFF")
        assert read_image(path, (1, 5, 1))[..., 0].tolist() == [[0, 255, 128, 0, 255]]


def palette_image(*entries):
    image = Image.new("P", (len(entries), 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    image.putdata(entries)
    return image


class TestShape:
    @pytest.mark.parametrize(
        ("orientation", "turned"),
        [
            (1, lambda pixels: pixels),
            (2, lambda pixels: pixels[:, ::-1]),
            (3, lambda pixels: pixels[::-1, ::-1]),
            (6, lambda pixels: np.rot90(pixels, -1)),
            (8, np.rot90),
        ],
    )
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_an_image_is_turned_as_its_exif_orientation_says(self, path, kind, orientation, turned):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(COLOURS).save(path, kind, exif=exif)
        expected = turned(COLOURS)
        assert np.array_equal(read_image(path, expected.shape), expected)

    def test_a_photograph_taken_upright_stands(self, path):
        pixels = np.zeros((16, 32, 3), np.uint8)
        pixels[:, :16] = 255  # bright on the left: turned clockwise, bright above
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(path, "JPEG", exif=exif, quality=95)
        image = read_image(path, (32, 16, 1))
        assert image[:12].min() > 240
        assert image[20:].max() < 15

    def test_an_image_is_resized_to_the_shape_whatever_its_proportions(self, path):
        plain(9, 8, 7).save(path, "PNG")
        for shape in ((1, 1, 3), (5, 40, 3), (100, 3, 3)):
            image = read_image(path, shape)
            assert image.shape == shape
            assert (image == (9, 8, 7)).all()

    def test_shrinking_averages_what_it_leaves_out(self, path):
        stripes = np.zeros((64, 64), np.uint8)
        stripes[:, ::2] = 254
        Image.fromarray(stripes).save(path, "PNG")
        assert np.abs(read_image(path, (8, 8, 1))[:, 1:-1].astype(int) - 127).max() <= 3


class TestRefusals:
    def test_of_a_missing_file(self, path):
        assert refusal(path) == "there is no such file"

    def test_of_an_empty_file(self, path):
        path.touch()
        assert refusal(path) == "is empty"

    def test_of_a_folder(self, path):
        path.mkdir()
        assert "cannot be read" in refusal(path)

    @pytest.mark.parametrize(
        "content", [b"not an image\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000)]
    )
    def test_of_something_else(self, path, content):
        path.write_bytes(content)
        refusal(path)

    def test_of_text_says_that_it_is_no_image(self, path):
        path.write_text("hello")
        assert refusal(path) == "not an image that can be read"

    @pytest.mark.parametrize("kind", FORMATS)
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
    def test_of_a_file_that_is_cut_off(self, path, kind, share):
        content = io.BytesIO()
        Image.effect_noise((40, 40), 80).convert("RGB").save(content, kind)
        whole = content.getvalue()
        path.write_bytes(whole[: int(share * len(whole))])
        refusal(path)

    def test_of_a_png_with_damaged_pixels(self, path):
        Image.fromarray(COLOURS).save(path, "PNG")
        content = bytearray(path.read_bytes())
        place = content.index(b"IDAT") + 20
        content[place : place + 40] = bytes(40)
        path.write_bytes(content)
        assert "cannot be read" in refusal(path)

    @pytest.mark.parametrize(
        ("width", "height"), [(20_000, 20_000), (200_000_001, 1), (2**31 - 1, 2**31 - 1)]
    )
    def test_of_more_than_200_million_pixels_whatever_the_file_weighs(self, path, width, height):
        path.write_bytes(png(width, height))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = refusal(path)
        assert f"{width} x {height} pixels are more than the limit of 200,000,000" in message

    def test_not_of_more_pixels_than_pillow_allows(self, path):
        width, height = 20_000, 10_000  # of one bit each
        path.write_bytes(png(width, height, bits=1, scanlines=bytes((1 + width // 8) * height)))
        assert width * height > Image.MAX_IMAGE_PIXELS
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(path, (2, 2, 1)).tolist() == [[[0], [0]], [[0], [0]]]

    def test_of_more_pixels_than_the_file_can_hold(self, path):
        path.write_bytes(png(14_000, 14_000, bits=1))
        assert refusal(path) == "claims 14000 x 14000 pixels, which 65 bytes cannot hold"

    def test_of_an_image_without_its_pixels(self, path):
        path.write_bytes(png(4_000, 4_000, bits=1))
        assert "cannot be read" in refusal(path)

    def test_of_formats_that_are_programs(self, path):
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
        assert refusal(path) == "not an image that can be read"


def test_pillows_limit_survives_reading_in_many_threads(path):
    plain(1, 2, 3).save(path, "PNG")
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: read_image(path, (2, 2, 3)), range(200)))
    assert before == Image.MAX_IMAGE_PIXELS
    assert all((image == (1, 2, 3)).all() for image in images)
