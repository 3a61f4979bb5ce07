from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

import foveal.recipe as tables
from foveal.errors import RecipeError
from foveal.recipe import Normalization, describe, to_toml
from foveal.recipe.text import from_dict

MINIMAL = {"name": "x", "batch_size": 4, "steps": 3, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
EVERY = [
    {"name": "translate", "pixels": 2, "fill": "reflect"},
    {"name": "flip", "probability": 0.25},
    {"name": "alternating_flip"},
    {"name": "affine", "degrees": 10.0},
    {"name": "random_crop", "size": [24, 20]},
    {"name": "pad_crop", "pixels": 4},
    {"name": "central_crop", "fraction": 0.875},
    {"name": "central_crop", "size": [8, 9]},
    {"name": "resize", "size": [32, 30]},
    {"name": "random_resized_crop", "size": [8, 8], "area": [0.1, 1.0], "aspect": [0.5, 2.0]},
    {"name": "cutout", "size": 3},
    {"name": "erasing", "fill": "mean"},
    {"name": "invert"},
    {"name": "trivial_augment"},
    {"name": "rand_augment", "number": 3, "magnitude": 0.5},
    {"name": "brightness", "delta": 63.0},
    {"name": "contrast", "low": 0.2, "high": 1.8},
    {"name": "saturation", "low": 0.5, "high": 1.5, "probability": 0.3},
    {"name": "hue", "delta": 0.2},
    {"name": "noise", "deviation": 4.0},
    {"name": "clip"},
    {"name": "random_order", "transforms": [{"name": "brightness", "delta": 1.0}, {"name": "clip"}]},
    {"name": "a.b:c", "options": {"d": [1, 2]}},
    {"name": "mixup", "alpha": 0.4},
    {"name": "cutmix"},
]


def recipe(*transforms):
    return from_dict(MINIMAL | {"augmentation": list(transforms)})


@pytest.mark.parametrize("write", [to_toml, describe])
def test_every_transform_is_read_as_it_was_written(write):
    written = recipe(*EVERY)
    assert from_dict(tomllib.loads(write(written))) == written


def test_every_transform_is_in_this_file():
    kinds = {
        kind.model_fields["name"].default for kind in vars(tables.transforms).values() if is_transform(kind)
    }
    assert kinds == {each["name"] for each in EVERY if ":" not in each["name"]}


def is_transform(kind):
    is_table = isinstance(kind, type) and issubclass(kind, tables.Part)
    return is_table and isinstance(getattr(kind.model_fields.get("name"), "default", None), str)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "contrast", "low": 2, "high": 1}, "augmentation.0: low = 2.0 is above high = 1.0"),
        ({"name": "contrast", "low": -1, "high": 1}, "augmentation.0.low = -1: should be greater than or"),
        ({"name": "erasing", "area": [0.5, 0.2]}, "augmentation.0.area: the smallest comes first"),
        (
            {"name": "erasing", "area": [0.5, 1.2]},
            "augmentation.0.area.1 = 1.2: should be less than",
        ),
        ({"name": "random_crop", "size": [24]}, "augmentation.0.size.1 is missing"),
        ({"name": "random_crop", "size": [24, 0]}, "augmentation.0.size.1 = 0: should be greater than 0"),
        ({"name": "central_crop"}, "augmentation.0: central_crop takes size or fraction, one of the two"),
        ({"name": "hue", "delta": 0.6}, "augmentation.0.delta = 0.6: should be less than or equal to 0.5"),
        ({"name": "brigtness", "delta": 1}, "there is no augmentation.0 named 'brigtness': did you mean"),
        ({"name": "random_order"}, "augmentation.0.transforms is missing"),
        (
            {"name": "random_order", "transforms": [{"name": "flip"}]},
            "there is no augmentation.0.transforms.0 named 'flip': did you mean 'clip'?",
        ),
        (
            {"name": "random_order", "transforms": [{"name": "clip"}, {"name": "noise", "deviaton": 1}]},
            "there is no field 'augmentation.0.transforms.1.deviaton': did you mean 'deviation'?",
        ),
        (
            {"name": "random_order", "transforms": [{"name": "noise", "deviation": "much"}]},
            "augmentation.0.transforms.0.deviation = 'much': should be a number",
        ),
    ],
)
def test_a_mistake_in_a_transform_is_told_in_one_line(transform, message):
    with pytest.raises(RecipeError) as caught:
        recipe(transform)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"deviation": (0.5,)}])
def test_standardisation_of_each_image_takes_the_place_of_fixed_numbers(options):
    assert Normalization(per_image=True).per_image
    with pytest.raises(ValidationError, match="leave them out"):
        Normalization(per_image=True, **options)
