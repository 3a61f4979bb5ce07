from __future__ import annotations

import pytest
import torch

from foveal.data.catalog import open_data
from foveal.device import resolve_machine
from foveal.recipe import Recipe
from foveal.training import measure
from foveal.training.learner import Learner

VALUES = {
    "name": "test",
    "batch_size": 600,
    "micro_batch": 150,
    "steps": 10,
    "device": "cpu",
    "threads": 1,
    "compile": "auto",
    "model": {"name": "dense"},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
}


@pytest.mark.parametrize(("size", "timed"), [(600, 256), (100, 100)])
def test_of_a_large_batch_a_part_is_timed_on_a_processor(monkeypatch, size, timed):
    seen = []
    original = measure.TrainStep.__call__

    def watched(self, step, batch):
        seen.append((len(batch.images), len(batch.targets), len(batch.sample.positions)))
        return original(self, step, batch)

    monkeypatch.setattr(measure.TrainStep, "__call__", watched)
    recipe = resolve_machine(Recipe.model_validate(VALUES | {"batch_size": size, "micro_batch": None}))
    learner = Learner(recipe, open_data(recipe.data))
    assert set(seen) == {(timed, timed, timed)}
    assert learner.recipe.precision in ("float32", "bfloat16")


@pytest.mark.parametrize(("seconds", "steps", "tried"), [(1.0, 200, True), (1.0, 100, False)])
def test_compilation_is_tried_where_the_whole_batches_of_the_run_take_long(
    monkeypatch, seconds, steps, tried
):
    compiled = []

    def timed(recipe, *_):
        compiled.append(recipe.compile)
        return seconds

    monkeypatch.setattr(measure, "_seconds_per_step", timed)
    monkeypatch.setattr(measure, "can_compile", lambda: True)
    recipe = Recipe.model_validate(VALUES | {"precision": "float32"})
    batch = Learner(
        resolve_machine(recipe.model_copy(update={"compile": False})), open_data(recipe.data)
    ).prepare(0)
    measure.resolve_speed(recipe, torch.nn.Identity(), batch, steps)  # 600 examples, of which 256 are timed
    assert (True in compiled) == tried


@pytest.mark.parametrize(("rounded", "chosen"), [(0.95, "float32"), (0.85, "bfloat16")])
def test_bfloat16_is_chosen_for_a_clear_gain_alone(monkeypatch, rounded, chosen):
    seconds = {"float32": 1.0, "bfloat16": rounded}
    monkeypatch.setattr(measure, "_seconds_per_step", lambda recipe, *_: seconds[recipe.precision])
    recipe = resolve_machine(Recipe.model_validate(VALUES | {"precision": "float32", "compile": False}))
    batch = Learner(recipe, open_data(recipe.data)).prepare(0)
    undecided = recipe.model_copy(update={"precision": "auto"})
    assert measure.resolve_speed(undecided, torch.nn.Identity(), batch, 10).precision == chosen
