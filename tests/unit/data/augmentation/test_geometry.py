from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveal.data.augmentation import resampling_kernels
from foveal.data.augmentation.augment import Augmentation
from foveal.data.augmentation.geometry import affine_matrices, central_windows, random_windows, resize_weights
from foveal.recipe import Affine, CentralCrop, Normalization, RandomResizedCrop, Resize
from foveal.seeding import Draws

SHAPES = [(5, 4, 7, 1), (4, 6, 6, 3), (3, 1, 1, 1), (2, 9, 2, 2), (0, 3, 3, 1)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def integers(low, high, count, seed=1):
    return np.random.default_rng(seed).integers(low, high, count, endpoint=True)


def augment(transforms, images):
    draws = Draws(0, np.arange(len(images)))
    return Augmentation(transforms, Normalization(), images.shape[1:]).distort(images, draws)


class Extreme(Draws):
    """Draws that are the upper end of their range; for the affine transform, no shear."""

    def uniform(self, purpose, low=0.0, high=1.0):
        del purpose, low
        return np.full(len(self.positions), high)


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
    @pytest.mark.parametrize("shape", SHAPES)
    def test_agrees_with_a_straightforward_reference(self, shape):
        images = noise(*shape)
        matrices = integers(-100_000, 100_000, (shape[0], 2, 3)) + np.array([[65536, 0, 0], [0, 65536, 0]])
        expected = np.stack([sampled(*pair) for pair in zip(images, matrices, strict=True)] or [images[:0]])
        assert np.array_equal(resampling_kernels.affine(images, matrices), expected.reshape(shape))

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
        assert np.array_equal(
            resampling_kernels.affine(images, matrices), np.rot90(images, -turns, axes=(1, 2))
        )

    def test_a_turn_matrix_written_by_hand_turns_exactly(self):
        images = noise(1, 5, 5, 1)
        matrix = np.array([[[0, 65536, 0], [-65536, 0, 4 * 65536]]])
        assert np.array_equal(resampling_kernels.affine(images, matrix), np.rot90(images, -1, axes=(1, 2)))

    def test_a_value_halfway_between_two_is_rounded_up(self):
        image = np.array([[[[0], [1], [4]]]], np.uint8)
        half_a_pixel = np.array([[[65536, 0, 32768], [0, 65536, 0]]])
        assert resampling_kernels.affine(image, half_a_pixel)[0, 0, :, 0].tolist() == [1, 3, 2]

    def test_a_whole_shift_is_exact_and_towards_the_right_and_down(self):
        images = noise(2, 6, 6, 1)
        matrices = affine_matrices(Affine(pixels=2), Extreme(0, np.arange(2)), "p", 6, 6)
        expected = np.zeros_like(images)
        expected[:, 2:, 2:] = images[:, :-2, :-2]
        assert np.array_equal(resampling_kernels.affine(images, matrices), expected)

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


class TestResize:
    @pytest.mark.parametrize("method", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        ("size", "result"),
        [((7, 9), (3, 4)), ((5, 5), (11, 13)), ((40, 30), (7, 30)), ((30, 64), (32, 17)), ((1, 1), (3, 2))],
    )
    def test_gives_what_pillow_gives(self, size, result, channels, method):
        images = noise(2, *size, channels)
        scaled = augment([Resize(size=result, method=method)], images)
        for image, own in zip(images, scaled, strict=True):
            pillow = Image.fromarray(image.squeeze(2) if channels == 1 else image)
            expected = np.asarray(pillow.resize(result[::-1], Image.Resampling[method.upper()]))
            # Pillow begins with whichever axis is less work, and rounds in between.
            most = 1 if method == "bilinear" else 2  # what is rounded first counts up to 1.25 times then
            assert np.abs(own - expected.reshape(*result, channels)).max() <= most

    @pytest.mark.parametrize("method", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("result", [(3, 8), (20, 8), (9, 3), (9, 20), (1, 8)])
    def test_along_one_axis_gives_the_bytes_that_pillow_gives(self, result, method):
        image = noise(1, 9, 8, 3)
        expected = Image.fromarray(image[0]).resize(result[::-1], Image.Resampling[method.upper()])
        assert np.array_equal(augment([Resize(size=result, method=method)], image)[0], np.asarray(expected))

    def test_to_the_same_size_changes_nothing(self):
        images = noise(2, 9, 8, 3)
        assert np.array_equal(augment([Resize(size=(9, 8))], images), images)

    def test_weights_sum_to_one_and_stay_inside_the_window(self):
        start, length = np.array([0, 3, 10, 19]), np.array([20, 5, 1, 1])
        first, weights = resize_weights(20, start, length, 6)
        assert np.abs(weights.sum(-1) - (1 << 22)).max() <= weights.shape[-1]
        used = weights > 0
        places = first[..., None] + np.arange(weights.shape[-1])
        assert (places[used] >= np.broadcast_to(start[:, None, None], used.shape)[used]).all()
        assert (places[used] < np.broadcast_to((start + length)[:, None, None], used.shape)[used]).all()
        assert places.max() < 20


class TestRandomResizedCrop:
    TRANSFORM = RandomResizedCrop(size=(8, 8), area=(0.2, 0.6), aspect=(0.5, 2.0))

    def test_draws_windows_of_the_area_and_proportions_asked_for(self):
        sizes = np.tile([200, 300], (500, 1))
        windows = random_windows(self.TRANSFORM, sizes, Draws(0, np.arange(500)), "p")
        height, width = windows[:, 2], windows[:, 3]
        area, aspect = height * width / 60_000, width / height
        assert 0.19 < area.min() < 0.25
        assert 0.55 < area.max() < 0.61
        assert 0.48 < aspect.min() < 0.6
        assert 1.7 < aspect.max() < 2.1
        assert np.median(aspect) == pytest.approx(1, abs=0.15)
        assert windows[:, :2].min() >= 0
        assert (windows[:, :2] + windows[:, 2:] <= sizes).all()
        assert (windows[:, 0] == 0).any()
        assert (windows[:, 0] + height == 200).any()

    def test_takes_the_middle_of_an_image_that_no_window_fits(self):
        windows = random_windows(
            self.TRANSFORM, np.array([[400, 10], [10, 400]]), Draws(0, np.arange(2)), "p"
        )
        assert windows.tolist() == [[190, 0, 20, 10], [0, 190, 10, 20]]

    def test_gives_what_pillow_makes_of_the_window(self):
        images = noise(20, 30, 40, 3)
        result = augment([self.TRANSFORM], images)
        purpose = "augmentation/0 random_resized_crop"
        windows = random_windows(self.TRANSFORM, np.tile([30, 40], (20, 1)), Draws(0, np.arange(20)), purpose)
        for image, own, (top, left, height, width) in zip(images, result, windows.tolist(), strict=True):
            part = Image.fromarray(image[top : top + height, left : left + width])
            expected = np.asarray(part.resize((8, 8), Image.Resampling.BILINEAR))
            assert np.abs(own - expected).max() <= 1


class TestCentralCrop:
    def test_by_fraction_leaves_out_the_same_on_both_sides(self):
        windows = central_windows(CentralCrop(fraction=0.875), np.array([[320, 241], [1, 2]]))
        assert windows.tolist() == [[20, 15, 280, 211], [0, 0, 1, 2]]

    def test_by_fraction_may_be_a_square_of_the_shorter_side(self):
        sizes = np.array([[375, 500], [500, 333], [256, 256], [1, 9]])
        windows = central_windows(CentralCrop(fraction=0.875, square=True), sizes)
        # As EfficientNet's evaluation: the side is rounded down, the room before it up.
        assert windows.tolist() == [[24, 86, 328, 328], [105, 21, 291, 291], [16, 16, 224, 224], [0, 4, 1, 1]]

    def test_by_size_keeps_the_proportions_in_smaller_images(self):
        sizes = np.array([[300, 400], [100, 400], [200, 50], [1, 1]])
        windows = central_windows(CentralCrop(size=(200, 100)), sizes)
        assert windows.tolist() == [[50, 150, 200, 100], [0, 175, 100, 50], [50, 0, 100, 50], [0, 0, 1, 1]]
