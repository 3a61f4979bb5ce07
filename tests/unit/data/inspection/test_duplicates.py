from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from foveal.data.inspection.duplicates import difference_hashes, equal_groups, near_pairs, thumbnails


@pytest.fixture
def random():
    return np.random.default_rng(7)


def picture(random, height=120, width=160):
    """Something with large shapes, such as a photograph has: blurred noise, stretched to full contrast."""
    noise = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = noise.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    return np.asarray(smooth)


def of(*images):
    return np.concatenate([thumbnails(np.asarray(image)[None]) for image in images])


class TestThumbnails:
    @pytest.mark.parametrize("shape", [(16, 18, 1), (32, 32, 3), (45, 100, 3), (17, 19, 1)])
    def test_are_the_mean_grey_values_of_fields(self, random, shape):
        height, width, _ = shape
        images = random.integers(0, 256, (3, *shape), np.uint8)
        grey = images @ ([0.299, 0.587, 0.114] if shape[2] == 3 else [1.0])
        found = thumbnails(images)
        assert (found.dtype, found.shape) == (np.uint8, (3, 16, 18))
        top, left = (np.append(np.arange(n) * size // n, size) for n, size in ((16, height), (18, width)))
        for row in range(16):
            for column in range(18):
                field = grey[:, top[row] : top[row + 1], left[column] : left[column + 1]]
                assert np.abs(found[:, row, column] - field.mean(axis=(1, 2))).max() < 0.501

    @pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 1), (3, 40, 1), (40, 2, 3)])
    def test_of_images_smaller_than_the_grid_repeat_pixels(self, random, shape):
        images = random.integers(0, 256, (2, *shape), np.uint8)
        found = thumbnails(images)
        assert found.shape == (2, 16, 18)
        assert np.abs(found.mean() - images.mean()) < 30
        assert np.array_equal(thumbnails(np.full_like(images, 200)), np.full((2, 16, 18), 200))

    def test_of_white_do_not_overflow(self):
        assert (thumbnails(np.full((1, 3000, 40, 3), 255, np.uint8)) == 255).all()


class TestDifferenceHashes:
    def test_have_a_bit_for_each_rise_to_the_right(self):
        rising = np.tile(np.arange(18, dtype=np.uint8), (1, 16, 1))
        assert difference_hashes(rising).tolist() == [2**64 - 1]
        assert difference_hashes(rising[:, :, ::-1]).tolist() == [0]
        assert difference_hashes(np.zeros((1, 16, 18), np.uint8)).tolist() == [0]

    def test_do_not_depend_on_brightness(self, random):
        image = picture(random) // 2
        assert difference_hashes(of(image)) == difference_hashes(of(image + 60))

    def test_of_different_pictures_differ_in_about_half_of_the_bits(self, random):
        hashes = difference_hashes(of(*(picture(random) for _ in range(20))))
        distances = [int(np.bitwise_count(a ^ b)) for a, b in combinations(hashes, 2)]
        assert 24 < np.mean(distances) < 40


class TestEqualGroups:
    def test_are_all_examples_of_a_digest_that_occurs_more_than_once(self, random):
        digests = random.integers(0, 60, 100).astype(np.uint64) << np.uint64(50)
        expected = {}
        for index, digest in enumerate(digests.tolist()):
            expected.setdefault(digest, []).append(index)
        groups = [group.tolist() for group in equal_groups(digests)]
        assert groups == [members for members in expected.values() if len(members) > 1]

    @pytest.mark.parametrize("digests", [[], [5], [1, 2, 3], [2**64 - 1, 2**64 - 2]])
    def test_are_none_where_all_differ(self, digests):
        assert equal_groups(np.array(digests, np.uint64)) == []


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=40)
    return np.asarray(Image.open(file))


def smaller(image):
    return np.asarray(Image.fromarray(image).resize((90, 70)))


def brighter(image):
    return np.clip(image.astype(int) + 30, 0, 255).astype(np.uint8)


def grey(image):
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


class TestNearPairs:
    @pytest.mark.parametrize("change", [jpeg, smaller, brighter, grey])
    def test_are_a_picture_and_its_copy(self, random, change):
        pictures = [picture(random) for _ in range(30)]
        pairs, similarity = near_pairs(of(*pictures, change(pictures[4])))
        assert pairs.tolist() == [[4, 30]]
        assert similarity[0] > 0.97

    def test_are_sorted_by_similarity_and_hold_equal_ones(self, random):
        one, other = picture(random), picture(random)
        pairs, similarity = near_pairs(of(one, other, jpeg(one), other))
        assert pairs.tolist() == [[1, 3], [0, 2]]
        assert similarity[0] == pytest.approx(1)
        assert similarity[1] < similarity[0]

    def test_do_not_hold_a_mirrored_picture(self, random):
        image = picture(random)
        assert len(near_pairs(of(image, image[:, ::-1]))[0]) == 0

    def test_of_plain_images_are_those_of_equal_brightness(self):
        plain = [np.full((20, 20, 1), value, np.uint8) for value in (0, 90, 90, 255)]
        assert near_pairs(of(*plain))[0].tolist() == [[1, 2]]

    def test_are_all_that_comparing_every_pair_finds(self, random):
        base = of(*(picture(random) for _ in range(40))).astype(int)
        noisy = [np.clip(base + random.normal(0, spread, base.shape), 0, 255) for spread in (1, 3, 6, 12)]
        images = np.concatenate([base, *noisy]).astype(np.uint8)
        hashes = difference_hashes(images)
        flat = images.reshape(len(images), -1).astype(float)
        expected = {
            (a, b)
            for a, b in combinations(range(len(images)), 2)
            if np.bitwise_count(hashes[a] ^ hashes[b]) <= 3 and np.corrcoef(flat[a], flat[b])[0, 1] >= 0.97
        }
        assert len(expected) > 40
        assert set(map(tuple, near_pairs(images)[0].tolist())) == expected

    def test_among_very_many_of_one_picture_are_not_all_pairs_but_every_example(self):
        pairs, _ = near_pairs(np.full((500, 16, 18), 7, np.uint8))
        assert set(pairs.ravel().tolist()) == set(range(500))
        assert len(pairs) == sum(500 - offset for offset in range(1, 17))

    @pytest.mark.parametrize("count", [0, 1])
    def test_of_nothing_and_of_one_are_none(self, count):
        pairs, similarity = near_pairs(np.zeros((count, 16, 18), np.uint8))
        assert (pairs.shape, similarity.shape) == ((0, 2), (0,))
