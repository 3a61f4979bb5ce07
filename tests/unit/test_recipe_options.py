"""What users write into a recipe: options of their own code, and further tables."""

from __future__ import annotations

import pytest

from foveal.errors import RecipeError
from foveal.recipe import Recipe, describe, differences, from_toml, override

SMALL = Recipe.model_validate(
    {"name": "x", "batch_size": 10, "steps": 100, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
)


def test_keys_of_any_text_are_described_so_that_they_read_back(tmp_path):
    part = SMALL.model.model_copy(update={"options": {"a b": 1, "a.b": [2, {"c d": 3}]}})
    chosen = SMALL.model_copy(update={"model": part})
    (tmp_path / "recipe.toml").write_text(describe(chosen), encoding="utf-8")
    assert from_toml(tmp_path / "recipe.toml") == chosen


def test_a_described_recipe_has_room_for_tables_where_there_are_none_yet(tmp_path):
    tables = "[[phases]]\nsteps = 3\n\n[[augmentation]]\nname = 'flip'\n"
    (tmp_path / "recipe.toml").write_text(f"{describe(SMALL)}\n{tables}", encoding="utf-8")
    chosen = from_toml(tmp_path / "recipe.toml")
    assert ([phase.steps for phase in chosen.phases], len(chosen.augmentation)) == ([3], 1)


@pytest.mark.parametrize("value", ["inf", "nan", "[1, inf]", "{b = nan}", "1979-05-27"])
def test_values_that_would_not_read_back_are_refused(value):
    with pytest.raises(RecipeError, match=r"model\.options"):
        override(SMALL, [f"model.options={{a={value}}}"])


@pytest.mark.parametrize("key", ["my-key", "int", "bool", "data.my-key"])
def test_unknown_keys_of_any_spelling_are_named(key):
    with pytest.raises(RecipeError, match=f"there is no field '{key}'"):
        override(SMALL, [f"{key}=3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phases=[{steps=3, freze=['a']}]", "there is no field 'phases.0.freze': did you mean 'freeze'?"),
        (
            "groups=[{parameters='a'}, {parameters='b', untill=0.5}]",
            "there is no field 'groups.1.untill': did you mean 'until'?",
        ),
        ("groups=[{parameters='('}]", "groups.0.parameters: '(' is not a regular expression"),
        ("resolution=[{size=[24], until=0.5}]", "resolution.0.size.1 is missing"),
        (
            "resolution=[{size=[8, 8], until=0.5}, {size=[9, 9], until=0.5}]",
            "resolution: each 'until' must be above the one before",
        ),
        ("ema={decay=0.9, start=1.0}", "ema.start = 1.0: should be less than 1"),
        (
            "evaluation.tta=flop",
            "evaluation.tta = 'flop': should be 'none', 'flip', 'flip+shift' or '10-crop'",
        ),
        (
            "optimizer={name='muon', learning_rate=0.1, rest_learning_rate=0.1, momentum=0.0}",
            "optimizer: nesterov = true needs a momentum above 0",
        ),
        ("loss.auxiliary_weight=-0.1", "loss.auxiliary_weight = -0.1: should be greater than or equal to 0"),
        (
            "schedule={name='exponential', factor=0.9, every='2 min'}",
            "schedule.every: '2 min' should be a number of steps, or of epochs as '2 epochs'",
        ),
        (
            "schedule={name='exponential', factor=0.9, every='never'}",
            "schedule.every: 'never' should be a number of steps, or of epochs as '2 epochs'",
        ),
        (
            "schedule={name='exponential', factor=0.9, every=0}",
            "schedule.every: must be a whole number of steps, or a positive number of epochs or minutes",
        ),
        (
            "schedule={name='exponential', factor=0.9, every=true}",
            "schedule.every: write it as '1000 steps', '1 epoch', '10 min' or 'never'",
        ),
        ("optimizer={name='muon', learning_rate=0.1}", "optimizer.rest_learning_rate is missing"),
        (
            "preprocessing=[{name='central_crop', size=[8, 8], square=true}]",
            "preprocessing.0: square = true goes with a fraction",
        ),
        (
            "preprocessing=[{name='resize', size=[8, 8], method='cubic'}]",
            "preprocessing.0.method = 'cubic': should be 'bilinear' or 'bicubic'",
        ),
    ],
)
def test_a_mistake_in_a_table_is_told_in_one_line(setting, message):
    with pytest.raises(RecipeError) as caught:
        override(SMALL, [setting])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_number_of_steps_and_the_same_with_its_unit_are_one_schedule():
    plain, spelt = (
        override(SMALL, [f"schedule={{name='exponential', factor=0.9, every={every}}}"])
        for every in ("30", "'30 steps'")
    )
    assert plain == spelt
    assert differences(plain, override(plain, ["schedule.every=2 epochs"])).keys() == {"schedule.every"}


@pytest.mark.parametrize(
    "setting",
    [
        "resolution=[{size=[8, 8], until=0.5}]",
        "groups=[{parameters='a', until=0.5}]",
        "ema={decay=0.9, start=0.5}",
    ],
)
def test_what_ends_or_begins_with_a_share_of_the_steps_depends_on_their_number(setting):
    assert override(SMALL, [setting]).depends_on_total is True
    assert SMALL.depends_on_total is False


@pytest.mark.parametrize("field", ["histograms_every", "images_every"])
def test_what_is_shown_is_not_timed_by_the_clock(field):
    with pytest.raises(RecipeError, match=rf"^logging\.{field} must be in steps or epochs"):
        override(SMALL, [f"logging.{field}=10 min"])


@pytest.mark.parametrize(
    "setting",
    [
        "loss_averages=1.0",
        "loss_averages=-0.1",
        "histograms=['weight']",
        "histograms=weights",
        "images=-1",
        "images=true",
        "graph=1",
    ],
)
def test_what_cannot_be_shown_is_named(setting):
    with pytest.raises(RecipeError, match=rf"^logging\.{setting.partition('=')[0]}") as caught:
        override(SMALL, [f"logging.{setting}"])
    assert "\n" not in str(caught.value)


def test_what_is_shown_may_change_when_a_run_goes_on():
    settings = (
        "loss_averages=0.9",
        "histograms=['weights']",
        "histograms_every=3 steps",
        "images=3",
        "graph=true",
    )
    chosen = override(SMALL, [f"logging.{setting}" for setting in (*settings, "images_every=1 epoch")])
    assert chosen != SMALL
    assert differences(SMALL, chosen) == {}
