"""The tutorials' networks with TensorFlow's own weights, against what TensorFlow computed with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.models.registry import build_model, end_points
from foveal.recipe import ModelPart
from foveal.tensorflow.checkpoint import Checkpoint
from foveal.tensorflow.name_maps import load_name_map


def network(name, shape, checkpoint, *, averaged=False):
    """A network with a checkpoint's weights, or with their moving averages."""
    model = build_model(ModelPart(name=name), 10, shape, seed=0).eval()
    places = checkpoint.averages if averaged else {each: each for each in checkpoint.variables}
    tensors = {
        each: torch.from_numpy(placement.to_network(checkpoint.get(places[placement.variable])))
        for each, placement in load_name_map(name).tensors.items()
    }
    model.load_state_dict(tensors, strict=True)
    return model


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def difference(found, expected):
    """The largest one, as a share of the largest expected value."""
    found = found.permute(0, 2, 3, 1) if found.dim() == 4 else found
    assert found.shape == expected.shape
    return np.abs(found.numpy() - expected).max() / np.abs(expected).max()


@torch.inference_mode()
def test_the_layers_tutorials_network_gives_tensorflows_logits(fixtures):
    checkpoint = Checkpoint(fixtures / "mnist_convnet_model")
    expected = np.load(fixtures / "mnist_expected.npz")
    model = network("mnist_cnn", (28, 28, 1), checkpoint)
    assert difference(model(nchw(expected["images"].reshape(-1, 28, 28, 1))), expected["logits"]) < 1e-5


class TestTheCifarTutorialsNetwork:
    @pytest.fixture
    def checkpoint(self, fixtures):
        return Checkpoint(fixtures / "cifar10_train")

    @pytest.fixture
    def expected(self, fixtures):
        return np.load(fixtures / "cifar10_expected.npz")

    @torch.inference_mode()
    @pytest.mark.parametrize(("averaged", "key"), [(False, "logits"), (True, "ema_logits")])
    def test_gives_tensorflows_logits(self, checkpoint, expected, averaged, key):
        model = network("cifar10_cnn", (24, 24, 3), checkpoint, averaged=averaged)
        assert difference(model(nchw(expected["images"])), expected[key]) < 1e-5

    @torch.inference_mode()
    def test_gives_tensorflows_activations(self, checkpoint, expected):
        model = network("cifar10_cnn", (24, 24, 3), checkpoint)
        with end_points(model, ["norm1", "norm2", "pool2"]) as found:
            model(nchw(expected["images"][:1]))
        for name, value in found.items():
            assert difference(value, expected[name]) < 1e-5, name
