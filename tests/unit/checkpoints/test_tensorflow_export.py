"""A run's checkpoint in TensorFlow's names and layout, and a run that goes on from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foveal
from foveal.checkpoints.layout import read_part
from foveal.checkpoints.tensorflow_export import export_run
from foveal.errors import CheckpointError, FovealError
from foveal.tensorflow import Checkpoint, read_name_map

VARIABLES = {"conv1": "conv2d", "conv2": "conv2d_1", "dense": "dense", "logits": "dense_1"}
OPTIMIZERS = {
    "sgd": ("{name='sgd', learning_rate=0.01, momentum=0.9}", {"momentum_buffer": "Momentum"}),
    "adamw": ("{name='adamw', learning_rate=0.01}", {"exp_avg": "Adam", "exp_avg_sq": "Adam_1"}),
    "rmsprop": (
        "{name='rmsprop', learning_rate=0.01, momentum=0.9}",
        {"average": "RMSProp", "momentum": "RMSProp_1"},
    ),
}
LAST = "checkpoints/step-000000003"


def recipe(optimizer="sgd", *settings):
    changes = [
        "model={name='mnist_cnn', options={filters=[3, 5], units=7}}",
        f"optimizer={OPTIMIZERS[optimizer][0]}",
        "schedule={name='constant'}",
        "ema={decay=0.5}",
        "steps=3",
        "batch_size=20",
        "precision=float32",
        "threads=1",
        "evaluation.every=never",
    ]
    return foveal.override_recipe(foveal.load_recipe("digits"), [*changes, *settings])


@pytest.fixture(scope="module", params=OPTIMIZERS)
def trained(request, tmp_path_factory):
    """The optimizer's name, and a run of three steps with it."""
    run = tmp_path_factory.mktemp("export") / "run"
    foveal.train(recipe(request.param), run)
    return request.param, run


def transposed(tensor):
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def test_weights_averages_slots_and_step_have_tensorflows_names_and_layout(trained, tmp_path):
    optimizer, run = trained
    done = export_run(run, tmp_path / "model.ckpt-3")
    slots = OPTIMIZERS[optimizer][1]
    assert (done.step, done.weights, done.averages, done.slots) == (3, 8, 8, 8 * len(slots))
    checkpoint = Checkpoint(tmp_path)
    parts = {part: read_part(run / LAST, part) for part in ("model", "ema", "optimizer")}
    expected = {}
    for name, tensor in parts["model"].items():
        layer, _, kind = name.partition(".")
        variable = f"{VARIABLES[layer]}/{'kernel' if kind == 'weight' else 'bias'}"
        expected[variable] = tensor
        expected[f"{variable}/ExponentialMovingAverage"] = parts["ema"][name]
        expected |= {
            f"{variable}/{theirs}": parts["optimizer"][f"{ours}/{name}"] for ours, theirs in slots.items()
        }
    scalars = {"global_step"} | ({"beta1_power", "beta2_power"} if optimizer == "adamw" else set())
    assert set(checkpoint) == expected.keys() | scalars
    for name, tensor in expected.items():
        assert np.array_equal(checkpoint.get(name), transposed(tensor)), name
    assert checkpoint.global_step == 3
    assert checkpoint.optimizer == {"sgd": "Momentum", "adamw": "Adam", "rmsprop": "RMSProp"}[optimizer]
    if optimizer == "adamw":
        assert checkpoint.get("beta1_power") == np.float32(0.9**4)


def test_a_run_that_goes_on_from_it_does_what_the_first_would_have_done(trained, tmp_path):
    optimizer, run = trained
    export_run(run, tmp_path / "model.ckpt-3")
    longer = recipe(optimizer, "steps=6")
    foveal.train(longer, tmp_path / "whole")
    foveal.train(
        foveal.override_recipe(longer, [f"init={{path='{tmp_path / 'model.ckpt-3'}'}}"]), tmp_path / "parts"
    )
    for part in ("model", "ema", "optimizer"):
        whole, parts = (
            read_part(tmp_path / name / "checkpoints/step-000000006", part) for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole), part


def test_another_step_can_be_chosen_and_one_that_is_not_there_is_named(trained, tmp_path):
    _, run = trained
    assert export_run(run, tmp_path / "a", 3).step == 3
    with pytest.raises(FovealError, match="2"):
        export_run(run, tmp_path / "b", 2)
    assert not list(tmp_path.glob("b*"))


def test_a_network_without_a_name_map_is_refused_and_nothing_is_written(trained_run, tmp_path):
    with pytest.raises(FovealError, match="no name map for the model 'small_cnn'"):
        export_run(trained_run, tmp_path / "out/model.ckpt")
    assert not (tmp_path / "out").exists()


def test_a_map_of_ones_own_must_have_a_place_for_every_tensor_but_counters(trained_run, tmp_path):
    names = list(read_part(trained_run / "checkpoints/step-000000040", "model"))
    lines = [f'"{name}" = {{ variable = "v/{name}" }}' for name in names if "num_batches" not in name]
    path = tmp_path / "names.toml"
    path.write_text("\n".join(["[tensors]", *lines]))
    done = export_run(trained_run, tmp_path / "whole", names=read_name_map(path))
    assert done.weights == len(lines) < len(names)
    path.write_text("\n".join(["[tensors]", *lines[:-1]]))
    with pytest.raises(CheckpointError, match=r"no variable for 'logits\.weight'.*--names"):
        export_run(trained_run, tmp_path / "partial", names=read_name_map(path))
    assert not list(tmp_path.glob("partial*"))
