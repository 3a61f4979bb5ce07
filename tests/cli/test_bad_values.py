"""Values of the wrong type or range, and recipe files that are none."""

from __future__ import annotations

import pytest

VALUES = {
    "batch_size=abc": ("batch_size = 'abc'", "whole number"),
    "batch_size=-1": ("batch_size = -1", "greater than 0"),
    "batch_size=1.5": ("batch_size = 1.5", "whole number"),
    "batch_size=true": ("batch_size", "whole number"),
    "micro_batch=7": ("micro_batch = 7", "divide", "batch_size = 100"),
    "optimizer.learning_rate=0": ("optimizer.learning_rate = 0", "greater than 0"),
    "optimizer.learning_rate=fast": ("optimizer.learning_rate = 'fast'", "number"),
    "optimizer.learning_rate=nan": ("optimizer.learning_rate", "finite"),
    "optimizer.decayed=(": ("optimizer.decayed", "("),
    "optimizer.name=[1]": ("optimizer", "[1]", "adamw"),
    "optimizer=5": ("optimizer = 5",),
    "schedule=5": ("schedule = 5",),
    "data=5": ("data = 5",),
    "augmentation=5": ("augmentation = 5",),
    "augmentation=[5]": ("augmentation.0",),
    'augmentation=[{name="translate",pixels=9}]': ("augmentation.0", "translate", "9 pixels", "8 x 8"),
    "normalization.mean=[0.1,0.2]": ("normalization.mean", "2 numbers", "1 channels"),
    "precision=fp16": ("precision = 'fp16'", "'float32'", "'bfloat16'"),
    "device=tpu": ("device = 'tpu'",),
    "evaluation.every=10 min": ("evaluation.every", "steps or epochs"),
    "evaluation.every=10": ("evaluation.every", "'1000 steps'"),
    "logging.every=0 steps": ("logging.every", "positive"),
    "checkpoint.every=1.5 steps": ("checkpoint.every", "whole number of steps"),
    "checkpoint.keep_last=0": ("checkpoint.keep_last = 0", "greater than 0"),
    "loss.label_smoothing=1": ("loss.label_smoothing = 1", "less than 1"),
    "ema.decay=1": ("ema.decay = 1", "less than 1"),
    "model.options.widths=[-1,2]": ("model.options", "widths", "-1"),
    "model.options.widths=wide": ("model.options", "widths", "wide"),
    "seed.init=99999999999999999999": ("seed.init",),
    "name=": ("name",),
    "name=../elsewhere": ("name", "../elsewhere"),
    "batch_size": ("--set batch_size", "KEY=VALUE"),
    "=5": ("--set =5", "KEY=VALUE"),
    "batch_size.x=1": ("batch_size.x", "not a table"),
}


@pytest.mark.parametrize("setting", VALUES)
def test_value_that_cannot_be_meant_is_refused_naming_the_field(foveal, tiny, tmp_path, setting):
    outcome = foveal("train", tiny, "--steps", 2, "--run", tmp_path / "run", "--set", setting)
    outcome.refused(2, *VALUES[setting])


@pytest.mark.parametrize(
    ("setting", "jargon"),
    [
        ("threads=0", "constrained-int"),
        ("threads=lots", "constrained-int"),
        ("data.path=5", "pathlib"),
    ],
)
def test_explanation_speaks_of_the_recipe_and_not_of_its_code(foveal, tiny, tmp_path, setting, jargon):
    field = setting.partition("=")[0]
    line = foveal("train", tiny, "--steps", 2, "--run", tmp_path / "run", "--set", setting).refused(2, field)
    assert jargon not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), ("steps", "greater than 0")),
        (("--steps", "-3"), ("steps", "-3", "greater than 0")),
        (("--steps", "x"), ("--steps", "integer")),
        (("--seed", "x"), ("--seed", "integer")),
        (("--seed", "99999999999999999999"), ("seed",)),
        (("--device", "tpu"), ("device", "tpu")),
        (("--steps", "3", "--set", "epochs=1"), ("steps", "epochs")),
        (("--set", "steps=3", "--set", "epochs=1"), ("steps", "epochs")),
        (("--set", "schedule.warmup_steps=9", "--steps", "2"), ("schedule.warmup_steps = 9", "steps = 2")),
        (("--set", "data.batching=drop_last", "--set", "batch_size=1201"), ("drop_last", "1200", "1201")),
    ],
)
def test_option_that_cannot_be_meant_is_refused(foveal, tiny, tmp_path, arguments, words):
    foveal("train", tiny, "--run", tmp_path / "run", *arguments).refused(2, *words)


GOOD = """
name = "mine"
batch_size = 100
steps = 2
threads = 1
precision = "float32"
model = {options = {widths = [4, 8], kernel = 3, stride = 1, padding = true}}

[optimizer]
name = "sgd"
learning_rate = 0.1
"""

FILES = {
    "not TOML": ("steps = [1\n", ("TOML", "Unclosed array")),
    "binary": (b"\xff\xfe\x00", ("TOML", "utf-8")),
    "empty": ("", ("missing",)),
    "field missing": (GOOD.replace("batch_size = 100", ""), ("batch_size", "missing")),
    "unknown key": (GOOD.replace("batch_size", "batch_sise"), ("'batch_sise'", "'batch_size'")),
    "unknown key in a table": (f"{GOOD}momentun = 0.9\n", ("'optimizer.momentun'", "'momentum'")),
    "unknown table": (f"{GOOD}[logger]\nevery = '1 step'\n", ("'logger'", "'logging'")),
    "kind missing": (GOOD.replace('name = "sgd"', ""), ("optimizer.name", "missing")),
    "steps and epochs": (GOOD.replace("steps = 2", "steps = 2\nepochs = 1"), ("steps", "epochs")),
    "neither": (GOOD.replace("steps = 2", ""), ("steps", "epochs")),
    "contradiction": (f"{GOOD}nesterov = true\n", ("nesterov", "momentum")),
}


@pytest.mark.parametrize("name", FILES)
def test_recipe_file_that_is_none_is_refused_naming_the_file(foveal, tmp_path, name):
    text, words = FILES[name]
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    foveal("train", "mine.toml").refused(2, "mine.toml", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_recipe_file_that_is_missing_or_a_folder_is_refused(foveal, tmp_path):
    foveal("train", "none.toml").refused(2, "none.toml", "no such file")
    (tmp_path / "folder.toml").mkdir()
    foveal("train", "folder.toml").refused(2, "folder.toml", "directory")


def test_recipe_file_is_trained_in_the_folder_of_its_name(foveal, tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    document = foveal("train", "mine.toml", "--json").succeeded().document
    assert (document["run"], document["step"], document["finished"]) == ("runs/mine", 2, True)
    assert (tmp_path / "runs" / "mine" / "recipe.toml").is_file()


def test_printed_recipe_is_a_recipe_file(foveal, tmp_path):
    printed = foveal("recipes", "digits").succeeded().out
    (tmp_path / "mine.toml").write_text(printed)
    few = ("--steps", 2, "--set", "threads=1", "--set", "precision=float32")
    assert foveal("train", "mine.toml", "--run", "a", *few, "--json").succeeded().document["step"] == 2
    assert foveal("train", "digits", "--run", "a", *few, "--json").succeeded().document["step"] == 2
