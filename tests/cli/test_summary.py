from __future__ import annotations

import pytest

LAYERS = ["layer", "kind", "output", "dtype", "device", "parameters", "multiply-adds"]


def test_a_recipe_has_a_table_of_layers_and_one_of_tensors(foveal):
    printed = foveal("summary", "digits").succeeded().out
    layers, tensors, totals = printed.split("\n\n")
    assert layers.splitlines()[0].split() == LAYERS
    assert layers.splitlines()[1].split()[:4] == ["features.0", "Conv2d", "32", "x"]
    assert layers.splitlines()[-1].split() == ["total", "98,026", "1,498,112"]
    assert "logits.weight" in tensors
    assert totals.startswith("digits: images of 8 x 8 x 1, 10 classes; 98,026 parameters, 394 kB; ")


def test_a_run_has_the_same_as_json(foveal, trained_run):
    document = foveal("summary", trained_run, "--device", "cpu", "--json").succeeded().document
    assert document["name"] == str(trained_run)
    assert document["parameters"] == sum(layer["parameters"] for layer in document["layers"])
    assert document["multiply_adds"] == sum(layer["multiply_adds"] for layer in document["layers"])
    assert document["tensors"][0] == {
        "name": "features.0.weight",
        "role": "parameter",
        "shape": [16, 1, 3, 3],
        "dtype": "float32",
        "device": "cpu",
        "elements": 144,
        "nbytes": 576,
    }


def test_a_recipe_can_be_changed_and_its_data_named(foveal, mnist):
    settings = ("--set", "model.options.units=7", "--set", "data.validation=5", "--data", mnist)
    document = foveal("summary", "mnist-tutorial", *settings, "--json").succeeded().document
    assert (document["image_shape"], document["classes"]) == ([8, 8, 1], 10)
    assert [7] in [layer["output"] for layer in document["layers"]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("digit",), 2, ("recipe", "did you mean 'digits'")),
        (("runs/nothing",), 1, ("runs/nothing", "not a run folder")),
        (("nothing.toml",), 2, ("nothing.toml", "no such file")),
        (("digits", "--device", "abacus"), 2, ("device = 'abacus'",)),
        (("digits", "--set", "model.options.wdths=[1]"), 2, ("did you mean 'widths'",)),
    ],
    ids=["unknown recipe", "no run", "no file", "no such device", "unknown option"],
)
def test_what_cannot_be_shown_is_refused(foveal, arguments, code, words):
    foveal("summary", *arguments).refused(code, *words)


def test_the_recipe_of_a_run_is_settled(foveal, trained_run):
    foveal("summary", trained_run, "--set", "seed.init=3").refused(
        2, "is a run", "leave out --set and --data"
    )


def test_help_has_an_example(foveal):
    assert "Example: foveal summary digits" in foveal("summary", "--help").succeeded().out
