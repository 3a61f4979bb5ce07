from __future__ import annotations

import numpy as np
import pytest

from foveal.data.augmentation.augment import Augmentation
from foveal.errors import RecipeError, UnknownNameError
from foveal.recipe import CustomTransform, Flip, Normalization
from foveal.seeding import Draws

PLAIN = Normalization()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def augment(transforms, images, first=0, seed=0, backend="numba"):
    draws = Draws(seed, np.arange(first, first + len(images)))
    return Augmentation(transforms, PLAIN, images.shape[1:], backend=backend).distort(images, draws)


MODULE = """
import numpy as np

def invert(strength=255):
    return lambda images, draws: np.uint8(strength) - images

def shift():
    return lambda images, draws: np.roll(images, draws.integers("mine", 1, 3)[0], axis=1)

def floats():
    return lambda images, draws: images / 255

def fewer():
    return lambda images, draws: images[1:]

def flat():
    return lambda images, draws: images[..., 0]

def coloured():
    return lambda images, draws: np.repeat(images, 3, axis=3)

def nothing():
    return lambda images, draws: None
"""


class TestCustomTransform:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path, monkeypatch):
        (tmp_path / "my_distortions.py").write_text(MODULE)
        monkeypatch.syspath_prepend(tmp_path)

    def test_is_applied_with_its_options_in_its_place(self):
        images = noise(4, 5, 5, 1, seed=9) // 2
        transform = CustomTransform(name="my_distortions:invert", options={"strength": 200})
        assert np.array_equal(augment([transform, Flip(probability=1)], images), 200 - images[:, :, ::-1])

    def test_is_given_arrays_by_the_torch_back_end_too(self):
        images = noise(4, 5, 5, 1)
        transform = CustomTransform(name="my_distortions:invert")
        assert np.array_equal(augment([transform], images, backend="torch"), 255 - images)

    def test_is_given_the_draws_of_the_batch(self):
        images = noise(4, 5, 5, 1)
        expected = np.roll(images, Draws(7, np.arange(30, 34)).integers("mine", 1, 3)[0], axis=1)
        result = augment([CustomTransform(name="my_distortions:shift")], images, first=30, seed=7)
        assert np.array_equal(result, expected)

    @pytest.mark.parametrize(
        ("name", "returned"),
        [
            ("floats", "float64 [4, 5, 5, 1]"),
            ("fewer", "uint8 [3, 5, 5, 1]"),
            ("flat", "uint8 [4, 5, 5]"),
            ("coloured", "uint8 [4, 5, 5, 3]"),
            ("nothing", "NoneType"),
        ],
    )
    def test_that_returns_something_else_than_a_batch_of_images_is_refused(self, name, returned):
        with pytest.raises(RecipeError) as caught:
            augment([CustomTransform(name=f"my_distortions:{name}")], noise(4, 5, 5, 1))
        assert str(caught.value).startswith(f"augmentation my_distortions:{name}: returned {returned}")

    def test_that_is_misspelt_is_refused_with_the_nearest_name(self):
        with pytest.raises(UnknownNameError, match="no function named 'inverts': did you mean 'invert'"):
            Augmentation([CustomTransform(name="my_distortions:inverts")], PLAIN, (5, 5, 1))

    def test_that_cannot_be_imported_is_refused(self):
        with pytest.raises(RecipeError, match="cannot import no_such_module"):
            Augmentation([CustomTransform(name="no_such_module:f")], PLAIN, (5, 5, 1))

    def test_with_an_unknown_option_is_refused_with_the_nearest_one(self):
        transform = CustomTransform(name="my_distortions:invert", options={"strenght": 1})
        with pytest.raises(UnknownNameError, match="'strenght': did you mean 'strength'"):
            Augmentation([transform], PLAIN, (5, 5, 1))
