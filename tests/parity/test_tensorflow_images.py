"""The tutorial's image operations, in both back ends, against what TensorFlow gave for the same draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.parity.make_tensorflow_images import DRAWS, OPERATIONS, images, recompute

from foveal.data.augmentation.augment import Augmentation
from foveal.recipe import Brightness, Contrast, Flip, Hue, Normalization, RandomCrop, Saturation
from foveal.seeding import Draws

STORED = Path(__file__).with_name("tensorflow_images.npz")
CROP, FLIP = RandomCrop(size=(24, 24)), Flip()
BRIGHTNESS, CONTRAST = Brightness(delta=63), Contrast(low=0.2, high=1.8)
SATURATION, HUE = Saturation(low=0, high=2), Hue(delta=0.5)
LISTS = {
    "crop": [CROP],
    "flip": [FLIP],
    "brightness": [BRIGHTNESS],
    "contrast": [CONTRAST],
    "saturation": [SATURATION],
    "hue": [HUE],
    "standardize": [],
    "tutorial": [CROP, FLIP, BRIGHTNESS, CONTRAST],
    "all": [CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE],
}
STATED = {
    "random_crop/down": DRAWS["top"],
    "random_crop/right": DRAWS["left"],
    "flip": np.where(DRAWS["mirrored"], 0.25, 0.75),
    "brightness": DRAWS["delta"],
    "contrast": DRAWS["factor"],
    "saturation": DRAWS["saturation"],
    "hue": DRAWS["turn"],
}


class Stated(Draws):
    """Draws that were decided elsewhere."""

    def sample(self, ranges):
        values = super().sample(ranges)
        for row, purpose in enumerate(ranges.purposes):
            if purpose:  # without one, it is a constant
                values[row] = STATED[purpose.partition(" ")[2]]
        return values


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_tensorflow_gives_for_the_same_draws(name, backend):
    per_image = name in {"standardize", "tutorial"}
    augment = Augmentation(LISTS[name], Normalization(per_image=per_image), (32, 32, 3), backend=backend)
    draws = Stated(0, np.arange(6))
    result = np.asarray(augment(images(), draws)) if per_image else augment.distort(images(), draws)
    with np.load(STORED) as stored:
        expected = stored[name]
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() < (2e-4 if name == "hue" else 1e-4)


def test_the_stored_results_are_those_of_tensorflow():
    pytest.importorskip("tensorflow")
    with np.load(STORED) as stored:
        for name, result in recompute().items():
            np.testing.assert_allclose(result, stored[name], atol=2e-4, err_msg=name)
