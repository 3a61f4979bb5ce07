"""``foveal evaluate RUN1 RUN2 ...``: networks trained on different data orders, asked together."""

from __future__ import annotations

import math

import pytest
import torch

SIZED = (
    'augmentation = [{name = "resize", size = [6, 6]}]\npreprocessing = [{name = "resize", size = [6, 6]}]'
)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Three runs of a recipe: on two data orders, and one that sees smaller images."""
    from foveal.recipe import from_toml, override
    from foveal.training.loop import train

    folder = tmp_path_factory.mktemp("ensemble")
    text = tiny.read_text()
    line = next(line for line in text.splitlines() if line.startswith("augmentation"))
    (folder / "tiny.toml").write_text(text)
    (folder / "small.toml").write_text(text.replace(line, SIZED))
    short = ("steps=8", "evaluation.every=never", "checkpoint.every=never")
    for name, file, seeds in (
        ("first", "tiny.toml", ("seed.data=0",)),
        ("second", "tiny.toml", ("seed.data=1",)),
        ("small", "small.toml", ("seed.data=1", "seed.init=1")),
    ):
        train(override(from_toml(folder / file), (*short, *seeds)), folder / name)
    return folder


def probabilities(run):
    """What a run's network says of the test part, computed without any of the evaluation: float64 [N, 10]."""
    from foveal.data.catalog import open_data
    from foveal.inference import open_run

    trained = open_run(run)
    source = open_data(trained.recipe.data).part("test")
    images = torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255
    normalization = trained.recipe.normalization
    images = (images - normalization.mean[0]) / normalization.deviation[0]
    with torch.inference_mode():
        return trained.network(images).double().softmax(dim=1), torch.from_numpy(source.targets)


def test_mean_of_the_probabilities_is_evaluated(foveal, runs):
    (one, targets), (two, _) = (probabilities(runs / name) for name in ("first", "second"))
    assert not torch.allclose(one, two, atol=0.01)  # another data order is another network
    mean = (one + two) / 2
    document = foveal("evaluate", runs / "first", runs / "second", "--json").succeeded().document
    assert document["accuracy"] == (mean.argmax(dim=1) == targets).double().mean().item()
    loss = -mean[torch.arange(len(targets)), targets].log().mean().item()
    assert document["loss"] == pytest.approx(loss, rel=1e-5)
    assert document["examples"] == len(targets)
    assert sum(map(sum, document["confusion"])) == len(targets)


def test_members_are_reported_as_they_are_alone(foveal, runs):
    names = ["first", "second", "small"]
    document = foveal("evaluate", *(runs / name for name in names), "--json").succeeded().document
    alone = [foveal("evaluate", runs / name, "--json").succeeded().document for name in names]
    assert all("members" not in each for each in alone)
    for name, member, single in zip(names, document["members"], alone, strict=True):
        assert member == {"run": str(runs / name)} | {key: single[key] for key in member if key != "run"}
    assert document["loss"] < sum(each["loss"] for each in alone) / 3  # -log is convex
    assert {key: document[key] for key in ("step", "weights", "split")} == {
        "step": 8,
        "weights": "ema",
        "split": "test",
    }
    assert document.keys() == alone[0].keys() | {"members"}


def test_order_of_the_runs_changes_nothing_but_rounding(foveal, runs):
    found = [
        foveal("evaluate", *(runs / name for name in names), "--json", "--metric", "auroc").document
        for names in (("first", "small"), ("small", "first"))
    ]
    for key in ("accuracy", "loss", "auroc"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-5)
    assert math.isfinite(found[0]["auroc"])


def test_table_shows_the_members_and_what_they_reach_together(foveal, runs):
    out = foveal("evaluate", runs / "first", runs / "small").succeeded().out
    lines = out.splitlines()
    assert any(line.startswith("member") for line in lines)
    assert sum(line.startswith(str(runs)) for line in lines) == 2
    assert lines[-1] == "400 test examples, mean probabilities of 2 runs"


def test_library_takes_one_run_or_several(foveal, runs):
    from foveal import evaluate

    result = evaluate([runs / "first", str(runs / "second")])
    document = foveal("evaluate", runs / "first", runs / "second", "--json").document
    assert result.report() == document
    assert evaluate([runs / "first"]).report() == evaluate(runs / "first").report()


def test_members_at_other_steps_share_no_step(foveal, runs, trained_run):
    document = foveal("evaluate", runs / "first", trained_run, "--json").succeeded().document
    assert document["step"] is None
    assert [member["step"] for member in document["members"]] == [8, 40]


def test_run_that_is_named_twice_is_refused(foveal, runs):
    foveal("evaluate", runs / "first", runs / "first").refused(2, str(runs / "first"), "twice")


def test_folder_that_is_no_run_is_refused_by_name(foveal, runs, tmp_path):
    foveal("evaluate", runs / "first", tmp_path / "none").refused(1, "none", "not a run folder")


@pytest.fixture(scope="module")
def random_runs(tiny, tmp_path_factory, write_mnist):
    """Two runs, each on random images of its own."""
    from foveal.recipe import from_toml, override
    from foveal.training.loop import train

    folder = tmp_path_factory.mktemp("random")
    for seed in (0, 1):
        data = ("data.name=mnist", f"data.path={write_mnist(folder / f'mnist{seed}', seed=seed)}")
        settings = ("steps=1", "batch_size=10", "evaluation.every=never", "checkpoint.every=never", *data)
        train(override(from_toml(tiny), settings), folder / f"run{seed}")
    return folder


def test_runs_on_other_data_are_refused_unless_the_data_are_named(foveal, random_runs):
    runs = [random_runs / "run0", random_runs / "run1"]
    foveal("evaluate", *runs).refused(1, "run0", "run1", "other data", "--data")
    document = foveal("evaluate", *runs, "--data", random_runs / "mnist1", "--json").succeeded().document
    assert document["examples"] == 20
    assert document["members"][1]["accuracy"] == foveal("evaluate", runs[1], "--json").document["accuracy"]
