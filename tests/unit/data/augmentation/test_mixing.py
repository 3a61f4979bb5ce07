from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.data.augmentation.augment import Augmentation
from foveal.recipe import Cutmix, Flip, Mixup, Normalization
from foveal.seeding import Draws

KINDS = {"mixup": [Mixup(alpha=1.0)], "cutmix": [Cutmix()], "both": [Mixup(), Cutmix()]}


def batch(count, size=6):
    """Images whose pixels are all the number of their row; targets are that number as well."""
    rows = np.arange(count)
    images = np.broadcast_to(rows[:, None, None, None], (count, size, size, 1)).astype(np.float32)
    return images, rows


def mix(transforms, images, targets, first=0, classes=100, seed=0):
    augmentation = Augmentation(transforms, Normalization(), (6, 6, 1))
    assert augmentation.mixes
    return augmentation.mix(images, targets, classes, Draws(seed, np.arange(first, first + len(targets))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_targets_say_what_images_consist_of(kind, count):
    images, targets = batch(count)
    mixed, soft = mix(KINDS[kind], images, targets)
    assert mixed.dtype == soft.dtype == np.float32
    assert soft.shape == (count, 100)
    assert soft.sum(1) == pytest.approx(np.ones(count), abs=1e-6)
    # An image's mean is the mean of its parts' numbers, weighted as the targets are.
    assert mixed.mean((1, 2, 3)) == pytest.approx(soft[:, :count] @ np.arange(count), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_mixed_with_the_next_one_of_their_group_of_16(kind):
    images, targets = batch(40)
    _, soft = mix(KINDS[kind], images, targets)
    for row in range(40):
        first, last = row // 16 * 16, min(row // 16 * 16 + 16, 40)
        following = row + 1 if row + 1 < last else first
        assert set(np.flatnonzero(soft[row])) <= {row, following}
        assert soft[row, row] == pytest.approx(soft[first, first])


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_depends_on_its_positions_alone(kind):
    images, targets = batch(48)
    whole = mix(KINDS[kind], images, targets, first=320)
    part = mix(KINDS[kind], images[16:32], targets[16:32], first=336)
    assert np.array_equal(part[0], whole[0][16:32])
    assert np.array_equal(part[1], whole[1][16:32])
    other = mix(KINDS[kind], images[16:32], targets[16:32], first=352)
    assert not np.array_equal(other[1], part[1])


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_mixed_as_arrays_are(kind):
    images, targets = batch(20)
    mixed, soft = mix(KINDS[kind], images, targets)
    tensor, soft_tensor = mix(KINDS[kind], torch.tensor(images), targets)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(mixed, abs=1e-5)
    assert np.array_equal(soft_tensor.numpy(), soft)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_given_are_left_as_they_are(kind):
    images, targets = batch(16)
    before = images.copy()
    mix(KINDS[kind], images, targets)
    assert np.array_equal(images, before)


def test_cutmix_pastes_one_rectangle():
    images, targets = batch(16)
    sizes = set()
    for seed in range(20):
        mixed, soft = mix(KINDS["cutmix"], images, targets, seed=seed)
        pasted = mixed[0, :, :, 0] == 1
        rows, columns = (np.flatnonzero(pasted.any(axis)) for axis in (1, 0))
        assert pasted.sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        assert soft[0, 1] == pytest.approx(pasted.mean())
        sizes.add(len(rows))
    assert len(sizes) > 3


def test_the_weights_of_mixup_follow_the_beta_distribution():
    images, targets = batch(16)
    images = images[:, :1, :1]
    weights = np.array([mix([Mixup(alpha=0.4)], images, targets, seed=s)[1][0, 0] for s in range(800)])
    assert weights.mean() == pytest.approx(0.5, abs=0.05)
    assert weights.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.015)


def test_of_two_kinds_each_group_draws_one():
    images, targets = batch(16)
    cut = [np.isin(mix(KINDS["both"], images, targets, seed=s)[0], range(16)).all() for s in range(60)]
    assert 15 < sum(cut) < 45


def test_other_transforms_do_not_mix():
    assert not Augmentation([Flip()], Normalization(), (6, 6, 1)).mixes
