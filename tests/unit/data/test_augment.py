from __future__ import annotations

import numpy as np
import pytest

from foveal.data import kernels
from foveal.data.augment import Augmentation, Normalizer, affine_matrices
from foveal.errors import RecipeError, UnknownNameError
from foveal.recipe import Affine, CustomTransform, Cutout, Flip, Normalization, Translate
from foveal.seeding import Draws

SHAPES = [(5, 4, 7, 1), (4, 6, 6, 3), (3, 1, 1, 1), (2, 9, 2, 2), (0, 3, 3, 1)]
TRANSFORMS = {
    "translate": Translate(pixels=2),
    "flip": Flip(),
    "affine": Affine(degrees=20, scale=(0.8, 1.2), shear=10, pixels=1.5),
    "cutout": Cutout(size=3),
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def integers(low, high, count, seed=1):
    return np.random.default_rng(seed).integers(low, high, count, endpoint=True)


def augment(transforms, images, first=0, seed=0):
    return Augmentation(transforms, images.shape[1:])(
        images, Draws(seed, np.arange(first, first + len(images)))
    )


class TestKernelsAgreeWithAStraightforwardReference:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_translate(self, shape):
        images = noise(*shape)
        down, right = (integers(-9, 9, len(images), seed) for seed in (1, 2))
        down[:1] = right[:1] = 0
        expected = np.zeros_like(images)
        for b in range(shape[0]):
            padded = np.pad(images[b], ((20, 20), (20, 20), (0, 0)))
            top, left = 20 - down[b], 20 - right[b]
            expected[b] = padded[top : top + shape[1], left : left + shape[2]]
        assert np.array_equal(kernels.translate(images, down, right), expected)

    def test_translate_moves_down_and_right_for_positive_numbers(self):
        image = np.array([[[[1], [2]], [[3], [4]]]], np.uint8)
        assert kernels.translate(image, np.array([1]), np.array([0]))[0, ..., 0].tolist() == [[0, 0], [1, 2]]
        assert kernels.translate(image, np.array([0]), np.array([1]))[0, ..., 0].tolist() == [[0, 1], [0, 3]]
        assert kernels.translate(image, np.array([-1]), np.array([-1]))[0, ..., 0].tolist() == [
            [4, 0],
            [0, 0],
        ]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_flip(self, shape):
        images = noise(*shape)
        chosen = np.arange(shape[0]) % 2 == 0
        expected = images.copy()
        expected[chosen] = images[chosen][:, :, ::-1]
        assert np.array_equal(kernels.flip(images, chosen), expected)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("size", [1, 2, 5, 30])
    def test_cutout(self, shape, size):
        images = noise(*shape) | 1
        top, left = (integers(-size, 9, len(images), seed) for seed in (1, 2))
        expected = images.copy()
        for b in range(shape[0]):
            rows, columns = np.arange(shape[1]), np.arange(shape[2])
            inside = ((rows >= top[b]) & (rows < top[b] + size))[:, None] & (
                (columns >= left[b]) & (columns < left[b] + size)
            )
            expected[b][inside] = 0
        assert np.array_equal(kernels.cutout(images, top, left, size), expected)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_affine(self, shape):
        images = noise(*shape)
        matrices = integers(-100_000, 100_000, (shape[0], 2, 3)) + np.array([[65536, 0, 0], [0, 65536, 0]])
        expected = np.stack([sampled(*pair) for pair in zip(images, matrices, strict=True)] or [images[:0]])
        assert np.array_equal(kernels.affine(images, matrices), expected.reshape(shape))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_normalize(self, shape):
        images, table = (
            noise(*shape),
            np.random.default_rng(3).normal(size=(shape[3], 256)).astype(np.float32),
        )
        expected = np.stack([table[c][images[..., c]] for c in range(shape[3])], axis=-1)
        result = kernels.normalize(images, table)
        assert result.dtype == np.float32
        assert np.array_equal(result, expected)


def sampled(image, matrix):
    """Bilinear sampling in Python integers: 16 fractional bits of place, 8 of weight, half rounded up."""
    height, width, _ = image.shape
    m = matrix.tolist()

    def pixel(x, y, c):
        return int(image[y, x, c]) if 0 <= x < width and 0 <= y < height else 0

    out = np.zeros_like(image)
    for y, x, c in np.ndindex(image.shape):
        at_x, at_y = (row[0] * x + row[1] * y + row[2] for row in m)
        left, top = at_x // 65536, at_y // 65536
        u, v = at_x % 65536 // 256, at_y % 65536 // 256
        upper = pixel(left, top, c) * (256 - u) + pixel(left + 1, top, c) * u
        lower = pixel(left, top + 1, c) * (256 - u) + pixel(left + 1, top + 1, c) * u
        out[y, x, c] = (upper * (256 - v) + lower * v + 32768) // 65536
    return out


class TestAffine:
    @pytest.mark.parametrize("shape", [(3, 7, 7, 1), (3, 8, 5, 3)])
    def test_without_extents_leaves_images_unchanged(self, shape):
        images = noise(*shape)
        assert np.array_equal(augment([Affine()], images), images)

    @pytest.mark.parametrize("size", [1, 4, 7])
    @pytest.mark.parametrize("turns", [1, 2, 3])
    def test_quarter_turns_of_a_square_image_are_exact(self, size, turns):
        images = noise(2, size, size, 3)
        transform, draws = Affine(degrees=90 * turns), Extreme(0, np.arange(2))
        matrices = affine_matrices(transform, draws, "p", size, size)
        assert np.array_equal(kernels.affine(images, matrices), np.rot90(images, -turns, axes=(1, 2)))

    def test_a_turn_matrix_written_by_hand_turns_exactly(self):
        images = noise(1, 5, 5, 1)
        matrix = np.array([[[0, 65536, 0], [-65536, 0, 4 * 65536]]])
        assert np.array_equal(kernels.affine(images, matrix), np.rot90(images, -1, axes=(1, 2)))

    def test_a_value_halfway_between_two_is_rounded_up(self):
        image = np.array([[[[0], [1], [4]]]], np.uint8)
        half_a_pixel = np.array([[[65536, 0, 32768], [0, 65536, 0]]])
        assert kernels.affine(image, half_a_pixel)[0, 0, :, 0].tolist() == [1, 3, 2]

    def test_a_whole_shift_is_exact_and_towards_the_right_and_down(self):
        images = noise(2, 6, 6, 1)
        matrices = affine_matrices(Affine(pixels=2), Extreme(0, np.arange(2)), "p", 6, 6)
        expected = kernels.translate(images, np.array([2, 2]), np.array([2, 2]))
        assert np.array_equal(kernels.affine(images, matrices), expected)

    def test_magnification_by_two_samples_every_half_pixel_about_the_centre(self):
        matrices = affine_matrices(Affine(scale=(1, 2)), Extreme(0, np.arange(1)), "p", 5, 5)
        assert matrices.tolist() == [[[32768, 0, 65536], [0, 32768, 65536]]]

    def test_the_matrix_is_the_inverse_of_shear_then_turn_then_scale_then_shift(self):
        transform = Affine(degrees=30, scale=(0.7, 1.4), shear=15, pixels=3)
        draws = Draws(5, np.arange(50))
        matrices = affine_matrices(transform, draws, "p", 12, 20) / 65536
        angle = np.radians(draws.uniform("p/angle", -30, 30))
        shear = np.tan(np.radians(draws.uniform("p/shear", -15, 15)))
        scale = draws.uniform("p/scale", 0.7, 1.4)
        shift = np.stack([draws.uniform("p/right", -3, 3), draws.uniform("p/down", -3, 3)], axis=-1)
        centre, point = np.array([9.5, 5.5]), np.array([3.0, 8.0])
        for b in range(50):
            turn = np.array([[np.cos(angle[b]), -np.sin(angle[b])], [np.sin(angle[b]), np.cos(angle[b])]])
            forward = scale[b] * turn @ np.array([[1, shear[b]], [0, 1]])
            moved = forward @ (point - centre) + centre + shift[b]
            assert matrices[b] @ [*moved, 1] == pytest.approx(point, abs=1e-3)


class Extreme(Draws):
    """Draws that are the upper end of their range; for the affine transform, no shear."""

    def uniform(self, purpose, low=0.0, high=1.0):
        del purpose, low
        return np.full(len(self.positions), high)


class TestDraws:
    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_a_position_is_distorted_the_same_whatever_batch_it_comes_in(self, name):
        images = noise(24, 8, 8, 1)
        whole = augment([TRANSFORMS[name]], images, first=1000)
        for cuts in ([1, 2, 3], [12], [5, 23]):
            starts = [0, *cuts]
            pieces = [
                augment([TRANSFORMS[name]], piece, first=1000 + start)
                for start, piece in zip(starts, np.split(images, cuts), strict=True)
            ]
            assert np.array_equal(np.concatenate(pieces), whole)

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_the_same_image_at_other_positions_or_with_another_seed_is_distorted_otherwise(self, name):
        images = np.repeat(noise(1, 8, 8, 1), 24, axis=0)
        once = augment([TRANSFORMS[name]], images)
        assert len(np.unique(once, axis=0)) > 1
        assert not np.array_equal(augment([TRANSFORMS[name]], images, first=24), once)
        assert not np.array_equal(augment([TRANSFORMS[name]], images, seed=1), once)

    def test_two_transforms_of_the_same_kind_draw_differently(self):
        images = np.repeat(noise(1, 8, 8, 1), 64, axis=0)
        flipped = (augment([Flip(), Flip()], images) != images).any((1, 2, 3))
        assert 0 < flipped.sum() < 64  # with equal draws, the second would undo the first

    def test_transforms_are_applied_in_order(self):
        images = noise(8, 6, 6, 1)
        draws = Draws(0, np.arange(8))
        moved = kernels.translate(
            images,
            draws.integers("augmentation/0 translate/down", -2, 2),
            draws.integers("augmentation/0 translate/right", -2, 2),
        )
        expected = kernels.flip(moved, draws.uniform("augmentation/1 flip") < 0.5)
        assert np.array_equal(augment([Translate(pixels=2), Flip()], images), expected)

    def test_translation_reaches_every_shift_up_to_the_largest(self):
        image = np.zeros((1, 9, 9, 1), np.uint8)
        image[0, 4, 4] = 255
        moved = augment([Translate(pixels=2)], np.repeat(image, 400, axis=0))
        places = {tuple(place[1:3]) for place in np.argwhere(moved).tolist()}
        assert places == {(4 + down, 4 + right) for down in range(-2, 3) for right in range(-2, 3)}

    @pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.25, 0.25)])
    def test_flips_the_share_asked_for(self, probability, share):
        images = np.repeat(noise(1, 4, 4, 1), 2000, axis=0)
        flipped = (augment([Flip(probability=probability)], images) != images).any((1, 2, 3))
        assert flipped.mean() == pytest.approx(share, abs=0.05 * (0 < share < 1))

    def test_cutout_centres_on_every_pixel(self):
        images = np.full((600, 5, 6, 1), 255, np.uint8)
        cut = augment([Cutout(size=1)], images)
        assert ((cut == 0).sum((1, 2, 3)) == 1).all()
        assert (cut == 0).any(0).all()


class TestAugmentation:
    def test_of_no_transforms_changes_nothing(self):
        images = noise(3, 4, 4, 1)
        assert np.array_equal(augment([], images), images)

    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_leaves_its_argument_as_it_is_and_keeps_shape_and_type(self, name):
        images = noise(6, 8, 7, 3)
        before = images.copy()
        result = augment([TRANSFORMS[name]], images)
        assert np.array_equal(images, before)
        assert not np.shares_memory(result, images)
        assert result.shape == images.shape
        assert result.dtype == np.uint8

    @pytest.mark.parametrize(
        ("transform", "extent"),
        [(Translate(pixels=8), "8"), (Cutout(size=8), "8"), (Affine(pixels=8.5), "8.5")],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_extents_that_do_not_fit_the_images_are_refused(self, transform, extent):
        with pytest.raises(RecipeError) as caught:
            Augmentation([Flip(), transform], (10, 8, 1))
        assert str(caught.value) == (
            f"augmentation.1 ({transform.name}): {extent} pixels do not fit images of 10 x 8"
        )
        Augmentation([Translate(pixels=7), Cutout(size=7), Affine(pixels=7.5)], (10, 8, 1))


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
            Augmentation([CustomTransform(name="my_distortions:inverts")], (5, 5, 1))

    def test_that_cannot_be_imported_is_refused(self):
        with pytest.raises(RecipeError, match="cannot import no_such_module"):
            Augmentation([CustomTransform(name="no_such_module:f")], (5, 5, 1))

    def test_with_an_unknown_option_is_refused_with_the_nearest_one(self):
        transform = CustomTransform(name="my_distortions:invert", options={"strenght": 1})
        with pytest.raises(UnknownNameError, match="'strenght': did you mean 'strength'"):
            Augmentation([transform], (5, 5, 1))


class TestNormalizer:
    @pytest.mark.parametrize(
        ("mean", "deviation"),
        [
            ((0.0,), (1.0,)),
            ((0.5,), (0.25,)),
            ((0.1, 0.2, 0.3), (1.0,)),
            ((0.5,), (0.5, 0.25, 0.125)),
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ],
    )
    def test_gives_every_value_of_every_channel_exactly(self, mean, deviation):
        images = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
        result = Normalizer(Normalization(mean=mean, deviation=deviation), 3)(images)
        expected = ((images / 255 - np.array(mean)) / np.array(deviation)).astype(np.float32)
        assert result.dtype == np.float32
        assert np.array_equal(result, expected)

    def test_of_one_channel_takes_one_number(self):
        images = noise(2, 3, 3, 1)
        result = Normalizer(Normalization(mean=(0.5,), deviation=(0.5,)), 1)(images)
        assert np.array_equal(result, ((images / 255 - 0.5) / 0.5).astype(np.float32))
        assert result.min() >= -1
        assert result.max() <= 1

    @pytest.mark.parametrize(
        ("field", "numbers", "channels"),
        [("mean", (0.1, 0.2), 3), ("deviation", (0.1, 0.2, 0.3), 1), ("mean", (), 1)],
    )
    def test_refuses_numbers_that_are_neither_one_nor_one_a_channel(self, field, numbers, channels):
        with pytest.raises(RecipeError) as caught:
            Normalizer(Normalization(**{field: numbers}), channels)
        assert str(caught.value) == (
            f"normalization.{field} has {len(numbers)} numbers; "
            f"images of {channels} channels need one or {channels}"
        )
