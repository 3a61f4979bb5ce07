"""Augmentation over random lists of transforms, shapes, batches and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.augmentation.augment import Augmentation
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
    Noise,
    Normalization,
    PadCrop,
    RandAugment,
    RandomCrop,
    RandomOrder,
    RandomResizedCrop,
    Resize,
    Saturation,
    Translate,
    TrivialAugment,
)
from foveal.seeding import Draws

modest = settings(max_examples=60, deadline=None)

fills = st.sampled_from(["zero", "reflect"])
sizes = st.tuples(st.integers(4, 7), st.integers(4, 7))
probabilities = st.sampled_from([0.0, 0.5, 1.0])
factors = st.tuples(st.floats(0, 3), st.floats(0, 3)).map(sorted)
moves = st.one_of(
    st.builds(Translate, pixels=st.integers(1, 3), fill=fills),
    st.builds(PadCrop, pixels=st.integers(1, 3), fill=fills),
    st.builds(Flip, probability=probabilities),
    st.just(AlternatingFlip()),
    st.builds(CentralCrop, fraction=st.floats(0.8, 0.99)),
)
boxes = st.one_of(
    st.builds(Cutout, size=st.integers(1, 3)),
    st.builds(Erasing, probability=probabilities, fill=st.sampled_from(["zero", "mean"])),
)
resampled = st.one_of(
    st.builds(Affine, degrees=st.floats(0, 180), shear=st.floats(0, 30), pixels=st.floats(0, 3)),
    st.builds(Resize, size=sizes, method=st.sampled_from(["bilinear", "bicubic"])),
    st.builds(RandomResizedCrop, size=sizes),
    st.just(TrivialAugment()),
    st.builds(RandAugment, number=st.integers(1, 2), magnitude=st.floats(0, 1)),
)
grey = st.one_of(
    st.builds(Brightness, delta=st.floats(0, 100), probability=probabilities),
    st.builds(lambda pair: Contrast(low=pair[0], high=pair[1]), factors),
    st.builds(Noise, deviation=st.floats(0, 20)),
    st.just(Clip()),
)
coloured = grey | st.one_of(
    st.builds(lambda pair, p: Saturation(low=pair[0], high=pair[1], probability=p), factors, probabilities),
    st.builds(Hue, delta=st.floats(0, 0.5), probability=probabilities),
)


@st.composite
def cases(draw):
    """Transforms that fit images of some shape, those images, and their draws."""
    channels = draw(st.sampled_from([1, 2, 3]))
    height, width, count = draw(st.integers(8, 12)), draw(st.integers(8, 12)), draw(st.integers(0, 9))
    colours = coloured if channels == 3 else grey
    order = st.lists(colours, min_size=1, max_size=4).map(lambda each: RandomOrder(transforms=tuple(each)))
    cropped = draw(st.sampled_from([[], [RandomCrop(size=(7, 8))]]))
    bytes_first = draw(st.lists(resampled, max_size=1)) + draw(st.lists(moves | boxes, max_size=2))
    later = draw(st.lists(colours | order, max_size=3)) + draw(st.lists(moves | boxes | colours, max_size=2))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    lightest = draw(st.sampled_from([1, 3, 256]))  # constant, nearly constant, any
    images = random.integers(0, lightest, (count, height, width, channels), dtype=np.uint8)
    first = draw(st.integers(0, 2**40))
    positions = np.arange(first, first + count)
    epochs = random.integers(0, 5, count)
    draws = Draws(draw(st.integers(0, 2**40)), positions, random.permutation(1000)[:count], epochs)
    return [*cropped, *bytes_first, *later], images, draws


normalizations = st.one_of(
    st.just(Normalization(per_image=True)),
    st.builds(
        lambda mean, deviation: Normalization(mean=(mean,), deviation=(deviation,)),
        st.floats(-1, 1),
        st.floats(0.1, 2),
    ),
)


@modest
@given(cases(), normalizations)
def test_the_back_ends_agree_before_and_after_normalisation(case, normalization):
    transforms, images, draws = case
    numba, torch = (
        Augmentation(transforms, normalization, images.shape[1:], backend=name) for name in ("numba", "torch")
    )
    before = numba.distort(images, draws)
    assert before.dtype == np.float32
    assert before.shape == (len(images), *numba.output_shape)
    np.testing.assert_allclose(torch.distort(images, draws), before, rtol=1e-6, atol=1e-3)
    after = numba(images, draws)
    np.testing.assert_allclose(torch(images, draws).numpy(), after, rtol=1e-6, atol=1e-4)


@modest
@given(cases(), st.data())
def test_a_row_depends_on_its_own_draws_and_not_on_the_batch_it_is_in(case, data):
    transforms, images, draws = case
    augment = Augmentation(transforms, Normalization(per_image=True), images.shape[1:])
    whole = augment(images, draws)
    rows = np.array(data.draw(st.lists(st.integers(0, max(len(images) - 1, 0)), max_size=5)), np.int64)
    rows = rows[: len(images) * 5]
    if len(images):
        some = Draws(draws.seed, draws.positions[rows], draws.indices[rows], draws.epochs[rows])
        assert np.array_equal(augment(images[rows], some), whole[rows])


@modest
@given(cases())
def test_what_only_moves_and_resamples_bytes_gives_bytes(case):
    transforms, images, draws = case
    kept = [each for each in transforms if not isinstance(each, Brightness | Contrast | Noise | RandomOrder)]
    kept = [each for each in kept if not isinstance(each, Saturation | Hue | Clip)]
    result = Augmentation(kept, Normalization(), images.shape[1:]).distort(images, draws)
    assert np.array_equal(result, result.astype(np.uint8))


@modest
@given(cases())
def test_standardised_images_have_no_mean_and_a_deviation_of_at_most_one(case):
    transforms, images, draws = case
    result = Augmentation(transforms, Normalization(per_image=True), images.shape[1:])(images, draws)
    for image in result.astype(np.float64):
        assert image.mean() == pytest.approx(0, abs=1e-4)
        assert image.std() < 1 + 1e-4
