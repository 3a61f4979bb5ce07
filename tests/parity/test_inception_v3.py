"""Inception v3 with the weights and the images of real TensorFlow's, against what slim computed with them."""

from __future__ import annotations

import json
import math
from zlib import crc32

import numpy as np
import pytest
import torch

from foveal.checkpoints.tensorflow_import import import_tensors
from foveal.checkpoints.transfer import load_initial, transfer
from foveal.errors import CheckpointError
from foveal.models.registry import build_model, end_points
from foveal.recipe import ModelPart
from foveal.recipe.schema import Init
from foveal.tensorflow.checkpoint import Checkpoint, save_checkpoint
from foveal.tensorflow.name_maps import load_name_map

NAMES = load_name_map("inception_v3")
SMALL = {"depth_multiplier": 0.1, "min_depth": 4}


def made(name, shape):
    """The values that the fixture's README gives a variable."""
    random = np.random.RandomState(crc32(name.encode()))
    if name.endswith("moving_variance"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = math.sqrt(2 / math.prod(shape[:-1])) if name.endswith(("weights", "kernel")) else 0.1
    return (random.standard_normal(shape) * scale).astype(np.float32)


def network(classes, side=75, **options):
    part = ModelPart(name="inception_v3", options={**SMALL, **options})
    return build_model(part, classes, (side, side, 3), seed=0)


def variables(model):
    """A network's tensors as slim would have saved them."""
    tensors = model.state_dict().items()
    placed = ((NAMES.tensors[name], value) for name, value in tensors if "num_batches" not in name)
    return {each.variable: each.to_tensorflow(value.contiguous().numpy()) for each, value in placed}


@pytest.fixture(scope="module")
def slims(fixtures):
    """The values of slim's 388 variables."""
    shapes = json.loads((fixtures / "inception_v3_variables.json").read_text())
    return {name: made(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model(slims):
    """The network with 1,001 classes and an auxiliary head, with these values."""
    model = network(1001, 299, depth_multiplier=1.0)
    tensors = {
        name: torch.from_numpy(each.to_network(slims[each.variable]))
        for name, each in NAMES.tensors.items()
        if each.variable in slims
    }
    found = model.load_state_dict(tensors, strict=False)
    assert found.unexpected_keys == []
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    return model.eval()


def summary(activation):
    """Per-channel means, then per-channel standard deviations, of a map; other end points as they are."""
    if activation.ndim == 4 and activation.shape[2:] != (1, 1):
        return torch.cat([activation.mean((2, 3)), activation.std((2, 3), correction=0)], 1)
    return activation.flatten(1)


@torch.inference_mode()
def test_every_end_point_is_slims(model, fixtures):
    expected = dict(np.load(fixtures / "inception_v3_expected.npz"))
    images = np.random.RandomState(crc32(b"inception_images")).uniform(-1, 1, (2, 299, 299, 3))
    logits = expected.pop("logits")
    names = {key: key.removeprefix("end_point|") for key in expected}
    with end_points(model, [*names.values(), "Predictions"]) as found:
        answer = model(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2))
    found = {name: summary(each).numpy() for name, each in found.items()}
    assert len(names) == 21
    for key, name in names.items():
        difference = np.abs(found[name] - expected[key]).max() / np.abs(expected[key]).max()
        assert difference < 1e-4, name  # 1e-6, but that the fixture sums large maps in float32
    assert np.abs(answer.numpy() - logits).max() < 5e-6 * np.abs(logits).max()
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    assert found["Predictions"] == pytest.approx(exponentials / exponentials.sum(1, keepdims=True), abs=1e-6)


def test_the_name_map_has_a_place_for_every_variable_and_is_exact_in_both_directions(model, slims):
    back = variables(model)
    assert back.keys() == slims.keys()
    assert all(np.array_equal(back[name], value) for name, value in slims.items())


@pytest.mark.parametrize("side", [75, 150, 299])
def test_the_name_map_has_a_place_for_the_auxiliary_head_of_images_of_any_size(side):
    tensors = {name for name in network(5, side).state_dict() if "num_batches" not in name}
    assert tensors <= NAMES.tensors.keys()
    needed = {name for name, each in NAMES.tensors.items() if not each.optional}
    assert needed == {name for name in tensors if not name.startswith("AuxLogits")}


class TestACheckpoint:
    @pytest.fixture
    def saved(self, tmp_path):
        """One of slim's with seven classes and an auxiliary head."""
        save_checkpoint(tmp_path / "slim.ckpt", variables(network(7)))
        return tmp_path / "slim.ckpt"

    def test_without_an_auxiliary_head_is_complete(self, tmp_path):
        save_checkpoint(tmp_path / "slim.ckpt", variables(network(7, auxiliary_head=False)))
        imported = import_tensors(Checkpoint(tmp_path / "slim.ckpt"), NAMES)
        assert (imported.missing, imported.unused) == ((), ())
        init = Init(path=tmp_path / "slim.ckpt")
        with pytest.raises(CheckpointError, match=r"it lacks AuxLogits\.Conv2d_1b_1x1\.conv\.weight"):
            transfer(network(7), load_initial(init, "inception_v3"), init, 7)

    def test_gives_its_weights_to_a_network_without_the_head(self, saved):
        model, init = network(7, auxiliary_head=False), Init(path=saved)
        report = transfer(model, load_initial(init, "inception_v3"), init, 7)
        assert report.skipped == {}
        assert all(name.startswith("AuxLogits.") for name in report.unused)
        stored = Checkpoint(saved)
        assert all(np.array_equal(value, stored.get(name)) for name, value in variables(model).items())

    def test_of_other_classes_gives_all_but_the_last_layer_of_either_head(self, saved):
        model, init = network(5), Init(path=saved)
        report = transfer(model, load_initial(init, "inception_v3"), init, 5)
        layers = {name.rpartition(".")[0] for name in report.skipped}
        assert layers == {"Logits.Conv2d_1c_1x1", "AuxLogits.Conv2d_2b_1x1"}
        assert (report.missing, report.unused) == ((), ())
