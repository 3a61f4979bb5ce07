from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from foveal.data.augmentation.backends import load_backend
from foveal.data.augmentation.policies import OPERATIONS, apply_policy
from foveal.seeding import Draws

# What Pillow, on which the papers' code stands, does at a strength of 0.5, brighter, clockwise, to the right.
PILLOW = {
    "identity": lambda image: image,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.495),
    "colour": lambda image: ImageEnhance.Color(image).enhance(1.495),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.495),
    "posterize": lambda image: ImageOps.posterize(image, 5),
    "solarize": lambda image: ImageOps.solarize(image, 128),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}


def photo(seed=0):
    """Smooth, coloured, and not using all bytes: uint8 ``[1, 24, 20, 3]``."""
    random = np.random.default_rng(seed)
    rough = Image.fromarray(random.integers(20, 230, (6, 5, 3), dtype=np.uint8))
    return np.asarray(rough.resize((20, 24), Image.Resampling.BICUBIC))[None]


class Fixed(Draws):
    """Draws of one operation, to the positive side."""

    def __init__(self, name, count):
        super().__init__(0, np.arange(count))
        object.__setattr__(self, "operation", OPERATIONS.index(name))

    def integers(self, purpose, low, high):
        assert purpose.endswith("/operation")
        assert low <= self.operation <= high
        return np.full(len(self.positions), self.operation)

    def uniform(self, purpose, low=0.0, high=1.0):
        del purpose, low
        return np.full(len(self.positions), high)


def apply(name, images, backend="numba", magnitude=0.5):
    computing = load_backend(backend)
    draws = Fixed(name, len(images))
    return computing.host(apply_policy(computing.put(images), computing, draws, "p", magnitude=magnitude))


@pytest.mark.parametrize("name", PILLOW)
def test_operations_of_bytes_agree_with_pillow(name):
    images = photo()
    expected = np.asarray(PILLOW[name](Image.fromarray(images[0]))).astype(int)
    assert np.abs(apply(name, images)[0] - expected).max() <= 1


def test_sharpness_agrees_with_pillow_inside_the_edge():
    images = photo()
    expected = ImageEnhance.Sharpness(Image.fromarray(images[0])).enhance(1.495)
    assert np.abs(apply("sharpness", images)[0] - np.asarray(expected).astype(int)).max() <= 1
    smooth = Image.fromarray(images[0]).filter(ImageFilter.SMOOTH)
    assert not np.array_equal(np.asarray(smooth), images[0])


@pytest.mark.parametrize(("name", "axis"), [("translate_x", 2), ("translate_y", 1)])
def test_translation_moves_by_up_to_32_pixels(name, axis):
    images = photo()
    expected = np.roll(images, 8, axis=axis)
    np.moveaxis(expected, axis, 0)[:8] = 0
    assert np.array_equal(apply(name, images, magnitude=0.25), expected)


def test_rotation_is_by_up_to_135_degrees_about_the_centre():
    images = photo()[:, :20]
    assert np.array_equal(apply("rotate", images, magnitude=2 / 3), np.rot90(images, -1, axes=(1, 2)))


@pytest.mark.parametrize(("name", "kept"), [("shear_x", np.s_[:, 2]), ("shear_y", np.s_[:, :, 2])])
def test_shear_keeps_the_middle_where_it_is(name, kept):
    images = photo()[:, :5, :5]
    sheared = apply(name, images, magnitude=1.0).astype(int)
    assert np.abs(sheared[kept] - images[kept]).max() <= 1
    assert np.abs(sheared - images).max() > 20


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize", "solarize"}))
def test_a_strength_of_zero_changes_nothing(name):
    assert np.array_equal(apply(name, photo(), magnitude=0.0), photo())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_back_ends_give_the_same_bytes(name, channels):
    images = np.concatenate([photo(1), photo(2), np.full_like(photo(), 77)])[..., :channels]
    images = np.ascontiguousarray(images)
    for magnitude in (0.1, 0.9):
        assert np.array_equal(
            apply(name, images, magnitude=magnitude), apply(name, images, "torch", magnitude=magnitude)
        )


def test_trivial_augment_draws_every_operation_and_strength():
    draws = Draws(0, np.arange(4000))
    assert set(draws.integers("p/operation", 0, len(OPERATIONS) - 1)) == set(range(14))
    images = np.repeat(photo(), 400, axis=0)
    backend = load_backend("numba")
    results = apply_policy(images, backend, Draws(0, np.arange(400)), "p")
    assert len(np.unique(results, axis=0)) > 200
