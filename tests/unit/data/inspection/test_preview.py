from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.data.formats.folder import open_folder
from foveal.data.input import training_pipeline
from foveal.data.inspection.preview import contact_sheet
from foveal.data.inspection.sheet import save_png
from foveal.data.sampler import Sample
from foveal.data.source import ArraySource
from foveal.errors import ImageError, RecipeError, UsageError

PAPER = (250, 250, 248)
EMPTY = (228, 228, 224)


def recipe(*augmentation, **changes):
    settings = [
        f"augmentation=[{','.join(augmentation)}]",
        *(f"{key}={value}" for key, value in changes.items()),
    ]
    return foveal.override_recipe(foveal.load_recipe("digits"), settings)


def pictures(count=12, shape=(8, 8, 1), classes=("cat", "dog")):
    images = np.random.default_rng(2).integers(0, 256, (count, *shape), np.uint8)
    return ArraySource(images, np.arange(count) % len(classes), classes)


def holds(sheet, pixels, factor):
    """Whether an image is somewhere in the sheet, each pixel a square."""
    wanted = np.repeat(np.repeat(pixels, factor, 0), factor, 1)
    wanted = np.broadcast_to(wanted, (*wanted.shape[:2], 3))
    found = np.asarray(sheet)
    height, width, _ = wanted.shape
    rows, columns = found.shape[0] - height + 1, found.shape[1] - width + 1
    fits = np.ones((rows, columns), bool)
    for y, x in ((0, 0), (0, factor), (factor, 0), (factor, factor), (height - 1, width - 1)):
        fits &= (found[y : y + rows, x : x + columns] == wanted[y, x]).all(axis=2)
    starts = np.argwhere(fits)
    return any(np.array_equal(found[y : y + height, x : x + width], wanted) for y, x in starts)


def test_shows_originals_and_the_versions_that_training_makes_pixel_by_pixel():
    source, flip = pictures(), recipe('{name="flip"}', '{name="translate", pixels=2}')
    sheet = contact_sheet(source, flip, count=12, versions=3)
    assert all(holds(sheet, image, 12) for image in source.images)
    pipeline = training_pipeline(flip, source)
    every = np.arange(12)
    for epoch in range(3):
        versions = pipeline.distort(Sample(epoch * 12 + every, every, np.full(12, epoch)))
        assert all(holds(sheet, version.astype(np.uint8), 12) for version in versions)


def test_is_the_same_every_time_and_another_with_another_seed():
    source = pictures(50)
    sheets = [contact_sheet(source, recipe('{name="flip"}', **{"seed.data": seed})) for seed in (1, 1, 2)]
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_shows_no_more_examples_than_there_are():
    few, many = (contact_sheet(pictures(3), recipe(), count=count, versions=1) for count in (3, 100))
    assert np.array_equal(few, many)


def test_keeps_the_proportions_between_an_image_and_a_crop_of_it():
    source = pictures(4, (32, 32, 3))
    crop = recipe('{name="random_crop", size=[24, 24]}', '{name="flip"}')
    sheet = contact_sheet(source, crop, count=4, versions=1)
    assert all(holds(sheet, image, 3) for image in source.images)
    cell = np.asarray(sheet)[65:168, 120:230]
    assert (cell == EMPTY).all(axis=2).sum() > 96 * 96 - 72 * 72 - 100


def test_shows_values_beyond_black_and_white_as_these():
    source = ArraySource(np.full((2, 8, 8, 1), 200, np.uint8), np.zeros(2, np.int64), ("a", "b"))
    bright = recipe('{name="contrast", low=1, high=1}', '{name="brightness", delta=2000}')
    found = np.asarray(contact_sheet(source, bright, count=2, versions=30)).reshape(-1, 3)
    assert (found == 255).all(axis=1).any()
    assert (found == 0).all(axis=1).any()


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several sizes, white throughout."""

    def make(*sizes):
        for number, size in enumerate(sizes):
            path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, "white").save(path)
        return tmp_path / "photos"

    return make


RESIZED = '{name="random_resized_crop", size=[224, 224]}'


def test_shows_large_images_whole_reduced_into_a_square(photos):
    source = open_folder(photos((400, 200), (1000, 3000))).train
    found = np.asarray(contact_sheet(source, recipe(RESIZED), count=2, versions=1))
    left = found[:, 16 : 16 + 192]
    white, empty = ((left == colour).all(axis=2).sum() for colour in ((255, 255, 255), EMPTY))
    assert white == 192 * 96 + 192 * 64
    assert white + empty == 2 * 192 * 192


def test_of_a_damaged_image_is_an_error_that_names_it(photos):
    folder = photos((400, 200), (100, 300))
    path = folder / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"1\.png"):
        contact_sheet(open_folder(folder).train, recipe(RESIZED))


def test_of_rows_of_numbers_is_refused():
    rows = ArraySource(np.zeros((5, 1, 1, 4), np.float32), np.zeros(5, np.int64), ("a", "b"))
    with pytest.raises(RecipeError, match="rows of numbers"):
        contact_sheet(rows, recipe())


def test_of_images_that_the_recipe_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match="random_crop"):
        contact_sheet(pictures(), recipe('{name="random_crop", size=[24, 24]}'))


class TestCaptions:
    @pytest.mark.parametrize("name", ["猫", "קוֹף", "\0", "", "  ", "🐈", "naïve猫"])
    def test_in_letters_that_the_font_lacks_are_the_number(self, name):
        found = contact_sheet(pictures(classes=("x", name)), recipe())
        assert np.array_equal(found, contact_sheet(pictures(classes=("x", "class 1")), recipe()))

    def test_that_are_long_are_cut_off_at_the_image(self):
        short, long = (
            np.asarray(contact_sheet(pictures(classes=(name,)), recipe(), versions=2))
            for name in ("i", "i" * 300)
        )
        assert np.array_equal(short[:, 16 + 96 :], long[:, 16 + 96 :])
        assert not np.array_equal(short, long)

    def test_of_two_lines_are_one(self):
        found = contact_sheet(pictures(classes=("a\nb",)), recipe())
        assert np.array_equal(found, contact_sheet(pictures(classes=("a b",)), recipe()))


class TestSaving:
    def test_writes_the_picture_and_makes_its_folder(self, tmp_path):
        sheet = contact_sheet(pictures(), recipe(), count=2, versions=1)
        save_png(sheet, tmp_path / "new" / "ж.PNG")
        with Image.open(io.BytesIO((tmp_path / "new" / "ж.PNG").read_bytes())) as found:
            assert np.array_equal(found, sheet)

    def test_under_another_name_than_that_of_a_png_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match=r"\.png"):
            save_png(Image.new("RGB", (5, 5)), tmp_path / "sheet.jpg")
