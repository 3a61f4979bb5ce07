from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data.catalog import open_data
from foveal.device import resolve_machine
from foveal.errors import RecipeError
from foveal.recipe import Recipe, Resolution
from foveal.training.learner import Learner
from foveal.training.resolution import image_size, scaled

GROWING = (Resolution(size=(24, 24), until=0.3), Resolution(size=(28, 26), until=0.7))


def learner(**changes):
    values = {
        "name": "test",
        "batch_size": 20,
        "steps": 10,
        "precision": "float32",
        "threads": 1,
        "device": "cpu",
        "model": {"name": "whitened_cnn", "options": {"widths": [8, 16]}},
        "augmentation": [
            {"name": "alternating_flip"},
            {"name": "brightness", "delta": 20.0},
            {"name": "mixup"},
        ],
        "resolution": [{"size": [6, 6], "until": 0.3}, {"size": [7, 8], "until": 0.55}],
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
    }
    recipe = resolve_machine(Recipe.model_validate(values | changes))
    return Learner(recipe, open_data(recipe.data))


def test_the_size_is_a_function_of_the_share_of_the_steps() -> None:
    sizes = [image_size(GROWING, step, 10) for step in range(10)]
    assert sizes == [(24, 24)] * 3 + [(28, 26)] * 4 + [None] * 3
    assert image_size((), 0, 10) is None
    assert image_size(GROWING, 0, 1) == (24, 24)


def test_images_are_scaled_as_pillow_does_and_keep_their_memory_format() -> None:
    images = torch.rand(2, 32, 32, 1).permute(0, 3, 1, 2)
    small = scaled(images, (24, 20))
    for image, result in zip(images, small, strict=True):
        expected = Image.fromarray(image[0].numpy()).resize((20, 24), Image.Resampling.BILINEAR)
        torch.testing.assert_close(result[0], torch.from_numpy(np.array(expected)))
    colours = torch.rand(2, 32, 32, 3).permute(0, 3, 1, 2)
    assert scaled(colours, (24, 24)).is_contiguous(memory_format=torch.channels_last)
    assert scaled(colours, None) is colours
    assert scaled(colours, (32, 32)) is colours


def test_batches_have_the_size_of_their_step_in_any_order_and_are_otherwise_the_same() -> None:
    growing, plain = learner(), learner(resolution=[])
    shapes = {step: tuple(growing.prepare(step).images.shape[2:]) for step in (9, 0, 2, 3, 5, 6)}
    assert shapes == {0: (6, 6), 2: (6, 6), 3: (7, 8), 5: (7, 8), 6: (8, 8), 9: (8, 8)}
    small, full = growing.prepare(4), plain.prepare(4)
    assert torch.equal(growing.prepare(4, full_size=True).images, full.images)
    assert torch.equal(small.images, scaled(full.images, (7, 8)))
    assert torch.equal(small.targets, full.targets)


def test_statistics_for_averages_are_measured_at_full_size() -> None:
    shapes = []
    trained = learner(ema={"decay": 0.9, "statistics": "recompute", "batches": 2})
    trained.learn(trained.prepare(0))
    handle = trained.model.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[2:]))
    trained.averaged()
    handle.remove()
    assert shapes == [(8, 8), (8, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "dense"}}, r"resolution\.0\.size: dense cannot take images of 6 x 6"),
        ({"resolution": [{"size": [2, 2], "until": 0.5}]}, r"resolution\.0\.size: whitened_cnn cannot take"),
    ],
    ids=["fixed size", "too small"],
)
def test_sizes_that_the_network_cannot_take_are_refused_before_the_run(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        learner(**changes)
