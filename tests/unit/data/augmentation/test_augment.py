from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.data.augmentation.augment import Augmentation
from foveal.errors import RecipeError
from foveal.recipe import (
    Affine,
    AlternatingFlip,
    Brightness,
    CentralCrop,
    Clip,
    Contrast,
    Cutout,
    Erasing,
    Flip,
    Hue,
    Invert,
    Mixup,
    Noise,
    Normalization,
    PadCrop,
    RandomCrop,
    RandomOrder,
    RandomResizedCrop,
    Resize,
    Saturation,
    Translate,
    TrivialAugment,
)
from foveal.seeding import Draws, bits

SHAPES = [(5, 4, 7, 1), (4, 6, 6, 3), (2, 9, 3, 2), (0, 3, 3, 1)]
TRANSFORMS = {
    "translate": Translate(pixels=2),
    "flip": Flip(),
    "affine": Affine(degrees=20, scale=(0.8, 1.2), shear=10, pixels=1.5),
    "cutout": Cutout(size=3),
    "pad_crop": PadCrop(pixels=2, fill="reflect"),
    "erasing": Erasing(),
    "trivial_augment": TrivialAugment(),
    "noise": Noise(deviation=4),
    "random_order": RandomOrder(transforms=(Brightness(delta=9), Contrast(low=0.5, high=2), Clip())),
}
PLAIN = Normalization()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def integers(low, high, count, seed=1):
    return np.random.default_rng(seed).integers(low, high, count, endpoint=True)


def draws_for(count, first=0, seed=0):
    return Draws(seed, np.arange(first, first + count), np.arange(count), np.zeros(count, np.int64))


def augment(transforms, images, first=0, seed=0):
    """Pixels from 0 to 255; as bytes, if that is what they are."""
    pixels = Augmentation(transforms, PLAIN, images.shape[1:]).distort(
        images, draws_for(len(images), first, seed)
    )
    return pixels.astype(np.uint8) if np.array_equal(pixels, pixels.astype(np.uint8)) else pixels


def shifted(images, down, right, mode="constant"):
    """Each image moved by whole pixels, by NumPy."""
    out = np.empty_like(images)
    for b, image in enumerate(images):
        margin = min(image.shape[:2]) - 1
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode=mode)
        top, left = margin - down[b], margin - right[b]
        out[b] = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return out


class TestMovesAgreeWithAStraightforwardReference:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
    def test_translate(self, shape, fill, mode):
        images, draws, most = noise(*shape), draws_for(shape[0]), min(shape[1:3]) - 1
        down, right = (
            draws.integers(f"augmentation/0 translate/{axis}", -most, most) for axis in ("down", "right")
        )
        result = augment([Translate(pixels=most, fill=fill)], images)
        assert np.array_equal(result, shifted(images, down, right, mode))

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
    def test_pad_crop(self, shape, fill, mode):
        images, draws, most = noise(*shape), draws_for(shape[0]), min(shape[1:3]) - 1
        down, right = (
            draws.integers(f"augmentation/0 pad_crop/{axis}", -most, most) for axis in ("down", "right")
        )
        result = augment([PadCrop(pixels=most, fill=fill)], images)
        assert np.array_equal(result, shifted(images, -down, -right, mode))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_flip(self, shape):
        images = noise(*shape)
        chosen = draws_for(shape[0]).uniform("augmentation/0 flip") < 0.5
        expected = images.copy()
        expected[chosen] = images[chosen][:, :, ::-1]
        assert np.array_equal(augment([Flip()], images), expected)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_random_crop(self, shape):
        images, draws = noise(*shape), draws_for(shape[0])
        top = draws.integers("augmentation/0 random_crop/down", 0, shape[1] - 2)
        left = draws.integers("augmentation/0 random_crop/right", 0, shape[2] - 3)
        result = augment([RandomCrop(size=(2, 3))], images)
        assert result.shape == (shape[0], 2, 3, shape[3])
        for b in range(shape[0]):
            assert np.array_equal(result[b], images[b, top[b] : top[b] + 2, left[b] : left[b] + 3])

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("size", [1, 2])
    def test_cutout(self, shape, size):
        images, draws = noise(*shape) | 1, draws_for(shape[0])
        top = draws.integers("augmentation/0 cutout/top", 0, shape[1] - 1) - size // 2
        left = draws.integers("augmentation/0 cutout/left", 0, shape[2] - 1) - size // 2
        expected = images.copy()
        for b in range(shape[0]):
            rows, columns = np.arange(shape[1]), np.arange(shape[2])
            inside = ((rows >= top[b]) & (rows < top[b] + size))[:, None] & (
                (columns >= left[b]) & (columns < left[b] + size)
            )
            expected[b][inside] = 0
        assert np.array_equal(augment([Cutout(size=size)], images), expected)

    def test_central_crop(self):
        images = noise(2, 9, 6, 3)
        assert np.array_equal(augment([CentralCrop(size=(4, 4))], images), images[:, 2:6, 1:5])
        assert np.array_equal(augment([CentralCrop(fraction=0.5)], images), images[:, 2:7, 1:5])

    def test_several_moves_are_done_one_after_the_other(self):
        images = noise(30, 8, 9, 3)
        one = augment([Translate(pixels=2), Flip(), PadCrop(pixels=3, fill="reflect")], images)
        draws = draws_for(30)
        moved = shifted(
            images,
            draws.integers("augmentation/0 translate/down", -2, 2),
            draws.integers("augmentation/0 translate/right", -2, 2),
        )
        flipped = draws.uniform("augmentation/1 flip") < 0.5
        moved[flipped] = moved[flipped][:, :, ::-1]
        expected = shifted(
            moved,
            -draws.integers("augmentation/2 pad_crop/down", -3, 3),
            -draws.integers("augmentation/2 pad_crop/right", -3, 3),
            "reflect",
        )
        assert np.array_equal(one, expected)


class TestAlternatingFlip:
    def test_mirrors_half_of_the_examples_and_the_others_in_the_next_epoch(self):
        images, indices = np.repeat(noise(1, 4, 4, 1), 500, axis=0), np.arange(500)
        augmentation = Augmentation([AlternatingFlip()], PLAIN, (4, 4, 1))
        mirrored = []
        for epoch in range(3):
            draws = Draws(0, np.arange(500) + 500 * epoch, indices, np.full(500, epoch))
            mirrored.append((augmentation.distort(images, draws) != images).any((1, 2, 3)))
        assert 200 < mirrored[0].sum() < 300
        assert np.array_equal(mirrored[0], ~mirrored[1])
        assert np.array_equal(mirrored[0], mirrored[2])
        assert np.array_equal(mirrored[0], bits(0, "augmentation/0 alternating_flip", indices) >> 63 == 0)

    def test_without_the_examples_indices_is_an_error(self):
        with pytest.raises(ValueError, match="indices and epochs"):
            Augmentation([AlternatingFlip()], PLAIN, (4, 4, 1))(noise(1, 4, 4, 1), Draws(0, np.arange(1)))


class TestErasing:
    @pytest.mark.parametrize("fill", ["zero", "mean"])
    def test_overwrites_one_rectangle_of_the_area_asked_for(self, fill):
        images = noise(200, 20, 20, 3) // 2 + 100
        transform = Erasing(probability=0.7, area=(0.1, 0.2), aspect=(0.5, 2.0), fill=fill)
        result = augment([transform], images)
        changed = (result != images).any(3)
        erased = changed.any((1, 2))
        assert erased.mean() == pytest.approx(0.7, abs=0.1)
        for before, after, where in zip(images[erased], result[erased], changed[erased], strict=True):
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert 30 <= height * width <= 90  # 40 to 80, and what rounding of the sides does
            inside = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            expected = 0 if fill == "zero" else np.floor(before.mean((0, 1)) + 0.5)
            assert (inside == expected).all()


class TestDraws:
    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_a_position_is_distorted_the_same_whatever_batch_it_comes_in(self, name):
        images = noise(24, 8, 8, 3)
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
        images = np.repeat(noise(1, 8, 8, 3), 24, axis=0)
        once = augment([TRANSFORMS[name]], images)
        assert len(np.unique(once, axis=0)) > 1
        assert not np.array_equal(augment([TRANSFORMS[name]], images, first=24), once)
        assert not np.array_equal(augment([TRANSFORMS[name]], images, seed=1), once)

    def test_two_transforms_of_the_same_kind_draw_differently(self):
        images = np.repeat(noise(1, 8, 8, 1), 64, axis=0)
        flipped = (augment([Flip(), Flip()], images) != images).any((1, 2, 3))
        assert 0 < flipped.sum() < 64  # with equal draws, the second would undo the first

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
    def test_leaves_its_argument_as_it_is(self, name):
        images = noise(6, 8, 7, 3)
        before = images.copy()
        images.flags.writeable = False
        result = Augmentation([TRANSFORMS[name]], PLAIN, (8, 7, 3))(images, draws_for(6))
        assert np.array_equal(images, before)
        assert result.shape == images.shape
        assert result.dtype == np.float32
        assert result.flags.c_contiguous

    def test_reads_arrays_of_any_strides(self):
        images = noise(4, 12, 8, 3)[:, ::2, ::-1]
        transforms = [Flip(), Affine(degrees=9), Brightness(delta=3)]
        assert np.array_equal(augment(transforms, images), augment(transforms, np.ascontiguousarray(images)))

    @pytest.mark.parametrize("images", [noise(2, 5, 4, 3), noise(2, 4, 4, 1), noise(2, 4, 4, 3).astype(int)])
    def test_refuses_other_images_than_those_it_was_made_for(self, images):
        with pytest.raises(ValueError, match=r"uint8 \[B, 4, 4, 3\] expected"):
            Augmentation([Flip()], PLAIN, (4, 4, 3))(images, draws_for(2))

    @pytest.mark.parametrize(
        ("transform", "shape"),
        [
            (RandomCrop(size=(5, 4)), (5, 4, 3)),
            (CentralCrop(fraction=0.5), (4, 5, 3)),
            (Resize(size=(3, 11)), (3, 11, 3)),
            (RandomResizedCrop(size=(2, 2)), (2, 2, 3)),
            (PadCrop(pixels=3), (8, 7, 3)),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_knows_the_shape_of_what_comes_out(self, transform, shape):
        augmentation = Augmentation([transform, Brightness(delta=3)], PLAIN, (8, 7, 3))
        assert augmentation.output_shape == shape
        assert augmentation.decoded_shape == (8, 7, 3)
        assert augmentation(noise(2, 8, 7, 3), draws_for(2)).shape == (2, *shape)

    @pytest.mark.parametrize(
        ("transforms", "shape", "message"),
        [
            (
                [Flip(), Translate(pixels=8)],
                (10, 8, 1),
                "1 (translate): 8 pixels do not fit",
            ),
            ([Cutout(size=8)], (10, 8, 1), "0 (cutout): 8 pixels do not fit images of 10 x 8"),
            ([Affine(pixels=8.5)], (10, 8, 1), "0 (affine): 8.5 pixels do not fit images of 10 x 8"),
            ([PadCrop(pixels=8)], (10, 8, 1), "0 (pad_crop): 8 pixels do not fit images of 10 x 8"),
            ([RandomCrop(size=(4, 4)), PadCrop(pixels=4)], (8, 8, 1), "1 (pad_crop): 4 pixels do not fit"),
            (
                [RandomCrop(size=(9, 9))],
                (10, 8, 1),
                "0 (random_crop): 9 x 9 pixels do not fit",
            ),
            ([CentralCrop(size=(11, 1))], (10, 8, 1), "0 (central_crop): 11 x 1 pixels do not fit"),
            ([Saturation(low=1, high=1)], (8, 8, 1), "0 (saturation): needs images of 3 channels, not 1"),
            ([RandomOrder(transforms=(Hue(delta=0.1),))], (8, 8, 1), "0 (hue): needs images of 3 channels"),
            ([Mixup(), Flip()], (8, 8, 1), "0 (mixup): mixes finished images: put it last"),
            ([Clip(), Resize(size=(4, 4))], (8, 8, 1), "1 (resize): works on bytes: put it before"),
        ],
    )
    def test_refuses_what_does_not_fit_the_images(self, transforms, shape, message):
        with pytest.raises(RecipeError) as caught:
            Augmentation(transforms, PLAIN, shape)
        assert str(caught.value).startswith(f"augmentation.{message}")

    def test_allows_extents_just_below_the_size(self):
        transforms = [Translate(pixels=7), Cutout(size=7), Affine(pixels=7.5)]
        assert Augmentation(transforms, PLAIN, (10, 8, 1)).output_shape == (10, 8, 1)

    def test_names_the_field_of_the_recipe(self):
        with pytest.raises(RecipeError, match=r"^preprocessing\.0 \(random_crop\)"):
            Augmentation([RandomCrop(size=(9, 9))], PLAIN, (8, 8, 1), field="preprocessing")

    def test_computes_with_torch_where_numba_is_not_installed(self, monkeypatch):
        images = noise(4, 8, 8, 3)
        expected = augment(list(TRANSFORMS.values()), images)
        monkeypatch.setattr("foveal.data.augmentation.backends.find_spec", lambda _: None)
        augmentation = Augmentation(list(TRANSFORMS.values()), PLAIN, (8, 8, 3))
        assert isinstance(augmentation(images, draws_for(4)), torch.Tensor)
        assert augmentation.distort(images, draws_for(4)) == pytest.approx(expected, abs=1e-3)

    def test_inverting_exchanges_dark_and_light(self):
        images = noise(2, 4, 4, 1)
        assert np.array_equal(augment([Invert()], images), 255 - images)


class TestColours:
    def test_are_changed_with_the_probability_asked_for(self):
        images = noise(1000, 2, 2, 3) | 3
        for transform in (Brightness(delta=40, probability=0.25), Noise(deviation=40, probability=0.25)):
            changed = (augment([transform], images) != images).any((1, 2, 3))
            assert changed.mean() == pytest.approx(0.25, abs=0.05)

    def test_noise_has_the_deviation_asked_for_and_no_mean(self):
        images = np.full((40, 16, 16, 3), 100, np.uint8)
        values = augment([Noise(deviation=5)], images) - 100
        assert values.mean() == pytest.approx(0, abs=0.1)
        assert values.std() == pytest.approx(5, rel=0.02)
        assert np.abs(values).max() > 3.5 * 5
        assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.02
        assert abs(np.corrcoef(values[..., :-1].ravel(), values[..., 1:].ravel())[0, 1]) < 0.02

    def test_clip_brings_values_into_range(self):
        result = augment([Brightness(delta=90), Clip()], noise(50, 4, 4, 1))
        assert result.min() == 0
        assert result.max() == 255

    def test_in_random_order_every_order_occurs(self):
        images = np.tile(np.array([[0], [200]], np.uint8)[None, None], (300, 1, 1, 1))
        # Twice the contrast around 100, and 200 clipped: (0, 255) or, clipped first, (-100, 300).
        result = augment([RandomOrder(transforms=(Contrast(low=2, high=2), Clip()))], images)
        found = {tuple(pair) for pair in result[:, 0, :, 0].tolist()}
        assert found == {(0.0, 255.0), (-100.0, 300.0)}
        clipped = (result[:, 0, 0, 0] == 0).mean()
        assert clipped == pytest.approx(0.5, abs=0.1)


class TestEncodedImages:
    SIZES = np.array([[40, 60], [100, 30], [7, 9], [1, 1], [500, 333]])

    @pytest.mark.parametrize(
        "transforms",
        [
            [Resize(size=(8, 6)), Flip()],
            [RandomResizedCrop(size=(8, 6)), Flip()],
            [CentralCrop(size=(8, 6)), Flip()],
            [CentralCrop(fraction=0.875), Resize(size=(8, 6)), Flip()],
            [CentralCrop(fraction=0.875, square=True), Resize(size=(8, 6), method="bicubic"), Flip()],
        ],
    )
    def test_are_made_one_size_by_decoding_a_window_inside_them(self, transforms):
        augmentation = Augmentation(transforms, PLAIN, None, channels=3)
        assert augmentation.decoded_shape == augmentation.output_shape == (8, 6, 3)
        windows = augmentation.windows(self.SIZES, draws_for(5))
        assert windows.dtype == np.int64
        assert (windows[:, :2] >= 0).all()
        assert (windows[:, 2:] >= 1).all()
        assert (windows[:, :2] + windows[:, 2:] <= self.SIZES).all()
        images = noise(5, 8, 6, 3)
        result = augmentation.distort(images, draws_for(5))
        chosen = draws_for(5).uniform(f"augmentation/{len(transforms) - 1} flip") < 0.5
        assert np.array_equal(result, np.where(chosen[:, None, None, None], images[:, :, ::-1], images))

    def test_of_one_size_are_decoded_whole(self):
        windows = Augmentation([Flip()], PLAIN, (8, 6, 3)).windows(self.SIZES, draws_for(5))
        assert windows.tolist() == [[0, 0, *size] for size in self.SIZES.tolist()]

    @pytest.mark.parametrize("transforms", [[], [Flip(), Resize(size=(3, 3))], [CentralCrop(fraction=0.5)]])
    def test_that_nothing_makes_one_size_are_refused(self, transforms):
        with pytest.raises(RecipeError, match="the images differ in size: begin with resize"):
            Augmentation(transforms, PLAIN, None, channels=3)

    def test_of_one_channel_can_be_asked_for(self):
        assert Augmentation([Resize(size=(4, 4))], PLAIN, None, channels=1).decoded_shape == (4, 4, 1)


class TestNormalization:
    @pytest.mark.parametrize("backend", ["numba", "torch"])
    @pytest.mark.parametrize(
        ("mean", "deviation"),
        [
            ((0.0,), (1.0,)),
            ((0.1, 0.2, 0.3), (1.0,)),
            ((0.5,), (0.5, 0.25, 0.125)),
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ],
    )
    def test_gives_every_byte_of_every_channel_exactly(self, mean, deviation, backend):
        images = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
        part = Normalization(mean=mean, deviation=deviation)
        result = np.asarray(Augmentation([], part, (16, 16, 3), backend=backend)(images, draws_for(1)))
        expected = ((images / 255 - np.array(mean)) / np.array(deviation)).astype(np.float32)
        assert result.dtype == np.float32
        assert np.array_equal(result, expected)

    @pytest.mark.parametrize(
        ("field", "numbers", "channels"),
        [("mean", (0.1, 0.2), 3), ("deviation", (0.1, 0.2, 0.3), 1), ("mean", (), 1)],
    )
    def test_refuses_numbers_that_are_neither_one_nor_one_a_channel(self, field, numbers, channels):
        with pytest.raises(RecipeError) as caught:
            Augmentation([], Normalization(**{field: numbers}), (4, 4, channels))
        assert str(caught.value) == (
            f"normalization.{field} has {len(numbers)} numbers; "
            f"images of {channels} channels need one or {channels}"
        )

    def test_of_plain_numbers_is_by_their_own_scale(self):
        rows = np.random.default_rng(0).normal(size=(5, 1, 1, 4)).astype(np.float32)
        part = Normalization(mean=(1.0, 2.0, 3.0, 4.0), deviation=(2.0,))
        result = Augmentation([], part, (1, 1, 4))(rows, draws_for(5))
        assert np.array_equal(result, ((rows - np.array([1.0, 2, 3, 4])) / 2).astype(np.float32))
        whole = Augmentation([], Normalization(per_image=True), (1, 1, 4))(rows, draws_for(5))
        assert whole.mean((1, 2, 3)) == pytest.approx(np.zeros(5), abs=1e-6)

    def test_of_plain_numbers_allows_no_transforms(self):
        numbers = np.zeros((1, 4, 4, 1), np.float32)
        with pytest.raises(RecipeError, match=r"^augmentation: transforms are for images of bytes, not"):
            Augmentation([Flip()], PLAIN, (4, 4, 1))(numbers, draws_for(1))
