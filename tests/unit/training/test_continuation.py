"""Going on from a TensorFlow checkpoint: where its step, averages and slots arrive, and where they do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import foveal
from foveal.data.source import ArraySource, DataSet
from foveal.errors import CheckpointError, RecipeError
from foveal.recipe import Recipe, from_toml
from foveal.tensorflow import Checkpoint, save_checkpoint
from foveal.training.learner import Learner
from foveal.training.optimizer import optimizer_tensors

NAMES = """
[tensors]
"logits.weight" = { variable = "dense/kernel", layout = "IO" }
"logits.bias" = { variable = "dense/bias" }
"""
OPTIMIZERS = {
    "momentum": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "adam": {"name": "adamw", "learning_rate": 0.1},
    "rmsprop": {"name": "rmsprop", "learning_rate": 0.1, "momentum": 0.9},
    "muon": {"name": "muon", "learning_rate": 0.1, "rest_learning_rate": 0.1, "orthogonal": "weight"},
}
SLOTS = {
    "momentum": {"momentum_buffer": "Momentum"},
    "adam": {"exp_avg": "Adam", "exp_avg_sq": "Adam_1"},
    "rmsprop": {"average": "RMSProp", "momentum": "RMSProp_1"},
}


@pytest.fixture
def data():
    images = np.random.default_rng(0).integers(0, 256, (30, 2, 2, 1), np.uint8)
    return DataSet(ArraySource(images, np.arange(30) % 3, ("a", "b", "c")))


@pytest.fixture
def learner(data, tmp_path):
    """What a logistic regression of four pixels and three classes learns with, initialised."""
    names = tmp_path / "names.toml"
    names.write_text(NAMES)

    def make(path, optimizer="momentum", steps=100, ema=None, **init):
        recipe = {
            "name": "small",
            "batch_size": 10,
            "steps": steps,
            "device": "cpu",
            "precision": "float32",
            "threads": 1,
            "loader_threads": 1,
            "model": {"name": "dense", "options": {"widths": []}},
            "optimizer": OPTIMIZERS[optimizer],
            "ema": ema and {"decay": ema},
            "init": {"path": str(path), "names": str(names), **init},
        }
        learner = Learner(Recipe.model_validate(recipe), data)
        notes = learner.initialise()
        return learner, " | ".join(notes)

    return make


def slots(learner):
    return optimizer_tensors(learner.train_step.optimizer, learner.model)


@pytest.mark.parametrize("kind", SLOTS)
def test_step_weights_and_slots_of_tensorflow_arrive(learner, fixtures, kind):
    learning, notes = learner(fixtures / f"slots_{kind}", kind)
    expected = np.load(fixtures / f"slots_{kind}_expected.npz")
    assert (learning.step, learning.first_step) == (3, 3)
    weights = learning.model.state_dict()
    assert np.array_equal(weights["logits.weight"], expected["dense|kernel"].T)
    assert np.array_equal(weights["logits.bias"], expected["dense|bias"])
    found = slots(learning)
    for ours, theirs in SLOTS[kind].items():
        assert np.array_equal(found[f"{ours}/logits.weight"], expected[f"dense|kernel|{theirs}"].T)
        assert np.array_equal(found[f"{ours}/logits.bias"], expected[f"dense|bias|{theirs}"])
    if kind == "adam":
        assert found["step/logits.bias"].item() == 3
    assert "going on at step 3" in notes
    assert f"slots of the optimizer: {2 * len(SLOTS[kind])}, those of" in notes


def test_the_next_step_is_the_one_that_tensorflow_would_do(learner, fixtures):
    """Momentum: accumulator = 0.9 accumulator + gradient; weight -= rate * accumulator."""
    learning, _ = learner(fixtures / "slots_momentum")
    before, accumulator = (
        learning.model.logits.bias.detach().clone(),
        slots(learning)["momentum_buffer/logits.bias"].clone(),
    )
    batch = learning.prepare(learning.step)
    learning.train_step.backward(learning.step, batch)
    gradient = learning.model.logits.bias.grad.clone()
    learning.train_step.optimizer.zero_grad(set_to_none=True)
    learning.learn(batch)
    assert learning.step == 4
    assert torch.allclose(
        learning.model.logits.bias, before - 0.1 * (0.9 * accumulator + gradient), atol=1e-7
    )


def test_slots_of_another_optimizer_begin_anew_and_it_is_said(learner, fixtures):
    learning, notes = learner(fixtures / "slots_adam", "momentum")
    assert learning.step == 3
    assert not slots(learning)["momentum_buffer/logits.weight"].any()
    assert "slots of the optimizer: begin anew, the checkpoint has those of Adam" in notes


def test_muon_has_slots_of_the_same_names_and_does_not_take_those_of_momentum(learner, fixtures):
    learning, notes = learner(fixtures / "slots_momentum", "muon")
    assert not slots(learning)["momentum_buffer/logits.weight"].any()
    assert "begin anew" in notes


@pytest.mark.parametrize("change", [{"resume": False}, {"skip": ["bias"]}], ids=["resume = false", "a skip"])
def test_without_the_whole_network_or_if_told_so_training_begins_at_step_0(learner, fixtures, change):
    learning, notes = learner(fixtures / "slots_momentum", **change)
    assert (learning.step, learning.first_step) == (0, 0)
    assert not slots(learning)["momentum_buffer/logits.weight"].any()
    assert learning.model.logits.weight.any()
    assert "going on" not in notes


class TestAverages:
    @pytest.fixture
    def path(self, tmp_path):
        """A checkpoint of step 7 whose weights are 1 and whose averages are 2."""
        arrays = {"dense/kernel": np.ones((4, 3), np.float32), "dense/bias": np.ones(3, np.float32)}
        averages = {f"{name}/ExponentialMovingAverage": 2 * array for name, array in arrays.items()}
        save_checkpoint(tmp_path / "model.ckpt-7", arrays | averages | {"global_step": np.int64(7)})
        return tmp_path / "model.ckpt-7"

    def test_go_on_beside_the_weights(self, learner, path):
        learning, notes = learner(path, ema=0.9)
        assert learning.model.logits.weight.eq(1).all()
        assert learning.average.tensors["logits.weight"].eq(2).all()
        assert "moving averages: of 2 tensors, 0 begin anew" in notes

    def test_are_left_out_where_the_recipe_has_none(self, learner, path):
        learning, notes = learner(path)
        assert learning.model.logits.weight.eq(1).all()
        assert "moving averages: left out" in notes

    @pytest.mark.parametrize(
        ("init", "value"),
        [({"resume": False}, 2), ({"weights": "ema"}, 2), ({"weights": "raw", "resume": False}, 1)],
        ids=["auto", "ema", "raw"],
    )
    def test_are_the_weights_to_begin_with_unless_told_otherwise(self, learner, path, init, value):
        learning, _ = learner(path, ema=0.9, **init)
        assert learning.step == 0
        assert learning.model.logits.weight.eq(value).all()
        assert learning.average.tensors["logits.weight"].eq(value).all()

    def test_are_the_weights_also_where_not_all_of_them_fit(self, learner, path):
        learning, _ = learner(path, skip=["bias"])
        assert learning.model.logits.weight.eq(2).all()


class TestRefusals:
    def test_a_recipe_that_ends_before_the_step(self, learner, fixtures):
        with pytest.raises(
            RecipeError, match=r"is of step 3, the recipe ends at 2.*--steps.*init.resume=false"
        ):
            learner(fixtures / "slots_momentum", steps=2)

    def test_a_network_without_a_name_map(self, learner, fixtures):
        with pytest.raises(foveal.FovealError, match=r"no name map for the model .dense.") as caught:
            learner(fixtures / "slots_momentum", names=None)
        assert "\n" not in str(caught.value)

    def test_expressions_for_names_that_a_map_is_for(self, learner, fixtures):
        with pytest.raises(RecipeError, match=r"init\.names"):
            learner(fixtures / "slots_momentum", map=["a=b"])

    def test_other_files_than_the_run_was_begun_with(self, learner, fixtures):
        with pytest.raises(CheckpointError, match="is not the file that the run was begun with"):
            learner(fixtures / "slots_momentum", sha256="0" * 64)

    def test_a_variable_that_is_not_there(self, learner, tmp_path):
        save_checkpoint(
            tmp_path / "half", {"dense/bias": np.zeros(3, np.float32), "global_step": np.int64(1)}
        )
        with pytest.raises(CheckpointError, match=r"lacks logits.weight.*init\.names"):
            learner(tmp_path / "half")


def test_a_run_that_is_done_with_its_first_weights_saves_them_and_can_be_evaluated(tmp_path):
    """A TensorFlow checkpoint becomes a run when no step is left to do."""
    run, arrays = tmp_path / "run", {}
    rng = np.random.default_rng(0)
    shapes = {
        "conv2d": (5, 5, 1, 32),
        "conv2d_1": (5, 5, 32, 64),
        "dense": (256, 9),
        "dense_1": (9, 10),
    }
    for name, shape in shapes.items():
        arrays[f"{name}/kernel"] = rng.normal(0, 0.05, shape).astype(np.float32)
        arrays[f"{name}/bias"] = np.zeros(shape[-1], np.float32)
    save_checkpoint(tmp_path / "tf/model.ckpt-500", arrays | {"global_step": np.int64(500)})
    settings = [
        "model={name='mnist_cnn', options={units=9}}",
        "steps=500",
        "schedule={name='constant'}",
        f"init={{path='{tmp_path / 'tf'}'}}",
        "threads=1",
        "precision=float32",
    ]
    recipe = foveal.override_recipe(foveal.load_recipe("digits"), settings)
    result = foveal.train(recipe, run)
    assert (result.step, result.finished, result.examples_per_second) == (500, True, 0)
    assert foveal.evaluate(run).accuracy == result.accuracy
    again = foveal.train(recipe, run)
    assert (again.step, again.accuracy) == (500, result.accuracy)
    longer = foveal.override_recipe(recipe, ["steps=503", "logging.every=never"])
    assert foveal.train(longer, run).step == 503
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [503]
    assert from_toml(run / "recipe.toml").init.sha256
    assert Checkpoint(tmp_path / "tf").global_step == 500
