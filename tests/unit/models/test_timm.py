"""Networks of timm. It is not installed here, so one that looks like it says what it is asked for."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from foveal.checkpoints.transfer import load_initial, transfer
from foveal.errors import CheckpointError, RecipeError, UnknownNameError
from foveal.folder_recipe import folder_recipe
from foveal.models.registry import build_model
from foveal.recipe import CentralCrop, Init, ModelPart, RandomResizedCrop, Resize


class Net(nn.Module):
    """A body of known weights and a head."""

    def __init__(self, num_classes=1000, in_chans=3, width=4, *, pretrained=False):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 3)
        self.fc = nn.Linear(width, num_classes)
        if pretrained:
            nn.init.constant_(self.conv.weight, 0.5)

    def forward(self, images):
        return self.fc(self.conv(images).mean(dim=(2, 3)))


@pytest.fixture
def _timm(monkeypatch):
    """The functions of timm that are called, as its documentation describes them."""
    known = {
        "input_size": (3, 160, 160),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
    }

    def create_model(name, **options):
        if name == "hollow" and options.get("pretrained"):
            raise RuntimeError("no weights\nexist for hollow")
        return Net(**options)

    timm = ModuleType("timm")
    timm.create_model = create_model
    timm.list_models = lambda: ["net18", "hollow"]
    timm.is_model = lambda name: name.partition(".")[0] in timm.list_models()
    timm.get_pretrained_cfg = lambda _name: SimpleNamespace(to_dict=lambda: known)
    monkeypatch.setitem(sys.modules, "timm", timm)


pytestmark = pytest.mark.usefixtures("_timm")


def part(name, **options):
    return ModelPart(name=name, options=options)


def test_a_network_has_the_classes_channels_and_options_that_are_asked_for():
    model = build_model(part("timm/net18", width=6), 7, (32, 32, 1), seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert model.conv.weight.shape == (6, 1, 3, 3)
    again = build_model(part("timm/net18", width=6), 7, (32, 32, 1), seed=0)
    assert torch.equal(model.conv.weight, again.conv.weight)


def test_its_own_weights_are_loaded_but_for_a_head_of_other_classes():
    model = build_model(part("timm/net18"), 7, (32, 32, 3), seed=0)
    head = model.fc.weight.clone()
    init = Init(path="timm/net18")
    initial = load_initial(init, "timm/net18")
    report = transfer(model, initial, init, 7)
    assert model.conv.weight.eq(0.5).all()
    assert torch.equal(model.fc.weight, head)
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    again = load_initial(Init(path="timm/net18"), "timm/net18")
    assert len(again.sha256) == 64


def test_a_folder_is_shown_to_it_as_its_weights_know_images(tmp_path):
    recipe = folder_recipe(tmp_path, ["model.name=timm/net18.a1", "normalization.mean=[0.5, 0.5, 0.5]"])
    assert (recipe.model.name, str(recipe.init.path)) == ("timm/net18.a1", "timm/net18.a1")
    assert recipe.preprocessing == (
        CentralCrop(fraction=0.95, square=True),
        Resize(size=(160, 160), method="bicubic"),
    )
    assert [each.size for each in recipe.augmentation if isinstance(each, RandomResizedCrop)] == [(160, 160)]
    assert (recipe.normalization.mean, recipe.normalization.deviation) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


def test_other_names_and_weights_that_are_not_there_are_told():
    with pytest.raises(UnknownNameError, match=r"'net17'.*did you mean 'net18'"):
        build_model(part("timm/net17"), 7, (32, 32, 3), seed=0)
    with pytest.raises(CheckpointError, match="timm/hollow: timm cannot give its weights: no weights exist"):
        load_initial(Init(path="timm/hollow"), "timm/hollow")
    with pytest.raises(RecipeError, match="unexpected keyword argument 'depth'"):
        build_model(part("timm/net18", depth=6), 7, (32, 32, 3), seed=0)


def test_without_timm_it_is_said_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match=r"pip install 'foveal\[timm\]'"):
        build_model(part("timm/net18"), 7, (32, 32, 3), seed=0)
