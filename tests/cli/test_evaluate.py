"""``foveal evaluate``: which checkpoint, split and weights; and what it refuses."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def plain_run(tiny, tmp_path_factory, write_mnist):
    """A run without averages and without a validation part."""
    from foveal.recipe import from_toml, override
    from foveal.training.loop import train

    folder = tmp_path_factory.mktemp("plain")
    (folder / "recipe.toml").write_text(tiny.read_text().replace("[ema]\ndecay = 0.9", ""))
    data = ("data.name=mnist", f"data.path={write_mnist(folder / 'mnist')}")
    recipe = override(from_toml(folder / "recipe.toml"), ("steps=2", "batch_size=10", *data))
    train(recipe, folder / "run")
    return folder / "run"


def test_step_that_has_no_checkpoint_is_refused_listing_those_that_do(foveal, trained_run):
    foveal("evaluate", trained_run, "--checkpoint", 999).refused(1, "999", "20, 30, 40")


def test_step_that_has_a_checkpoint_is_evaluated(foveal, trained_run):
    outcome = foveal("evaluate", trained_run, "--checkpoint", 20, "--json").succeeded()
    assert outcome.document["step"] == 20


def test_best_is_the_checkpoint_of_highest_validation_accuracy(foveal, trained_run):
    outcome = foveal("evaluate", trained_run, "--checkpoint", "best", "--json").succeeded()
    assert outcome.document["step"] == 40


def test_answers_are_averaged_over_views_where_that_is_asked_for(foveal, trained_run):
    losses = {
        tta: foveal("evaluate", trained_run, "--tta", tta, "--json").succeeded().document["loss"]
        for tta in ("none", "flip", "flip+shift")
    }
    assert len(set(losses.values())) == 3
    assert foveal("evaluate", trained_run, "--json").succeeded().document["loss"] == losses["none"]
    foveal("evaluate", trained_run, "--tta", "flop").refused(2, "flop")


@pytest.mark.parametrize("text", ["nonsense", "-1", "1.5", ""])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_checkpoint_that_is_neither_word_nor_step_is_refused(foveal, trained_run, command, text):
    images = ["x.png"] if command == "predict" else []
    outcome = foveal(command, trained_run, *images, f"--checkpoint={text}")
    outcome.refused(2, f"--checkpoint {text}", "latest", "best", "step")


def test_best_without_validation_is_refused(foveal, plain_run):
    outcome = foveal("evaluate", plain_run, "--checkpoint", "best")
    outcome.refused(1, str(plain_run), "validation", "latest")


@pytest.mark.parametrize(("split", "examples"), [("train", 1200), ("validation", 197), ("test", 400)])
def test_each_split_is_evaluated_in_full(foveal, trained_run, split, examples):
    document = foveal("evaluate", trained_run, "--split", split, "--json").succeeded().document
    assert (document["split"], document["examples"]) == (split, examples)
    assert sum(map(sum, document["confusion"])) == examples


def test_split_that_the_data_lack_is_refused_naming_those_they_have(foveal, plain_run):
    outcome = foveal("evaluate", plain_run, "--split", "validation")
    outcome.refused(1, "validation", "train, test")


def test_unknown_split_is_refused_naming_those_there_are(foveal, trained_run):
    outcome = foveal("evaluate", trained_run, "--split", "dev")
    outcome.refused(2, "--split", "dev", "test", "validation", "train")


def test_raw_and_averaged_weights_give_different_results(foveal, trained_run):
    found = {
        weights: foveal("evaluate", trained_run, "--weights", weights, "--json").succeeded().document
        for weights in ("ema", "raw")
    }
    assert {name: document["weights"] for name, document in found.items()} == {"ema": "ema", "raw": "raw"}
    assert found["ema"]["loss"] != found["raw"]["loss"]


def test_averages_are_the_default_where_the_run_has_them(foveal, trained_run, plain_run):
    assert foveal("evaluate", trained_run, "--json").document["weights"] == "ema"
    assert foveal("evaluate", plain_run, "--json").document["weights"] == "raw"


def test_averages_of_a_run_without_them_are_refused(foveal, plain_run):
    foveal("evaluate", plain_run, "--weights", "ema").refused(1, "averaged", "--weights raw")


def test_unknown_weights_are_refused(foveal, trained_run):
    foveal("evaluate", trained_run, "--weights", "best").refused(2, "--weights", "ema", "raw")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_folder_that_is_no_run_is_refused(foveal, tmp_path, command):
    images = ["x.png"] if command == "predict" else []
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    foveal(command, tmp_path / "none", *images).refused(1, "none", "not a run folder", "does not exist")
    foveal(command, tmp_path / "empty", *images).refused(1, "empty", "not a run folder", "recipe.toml")
    line = foveal(command, tmp_path / "file", *images).refused(1, "file", "not a run folder")
    assert "does not exist" not in line  # it does: it is a file


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_device_that_this_machine_lacks_is_refused(foveal, trained_run, command):
    images = ["x.png"] if command == "predict" else []
    foveal(command, trained_run, *images, "--device", "tpu").refused(2, "device", "tpu")


def test_evaluating_changes_nothing_in_the_run(foveal, trained_run, snapshot):
    before = snapshot(trained_run)
    foveal("evaluate", trained_run, "--split", "validation").succeeded()
    assert snapshot(trained_run) == before


def test_further_metrics_are_reported_by_name(foveal, trained_run):
    document = foveal("evaluate", trained_run, "--json", "--metric", "f1_score", "--metric", "auroc").document
    assert 0.8 < document["f1_score"] <= 1
    assert 0.8 < document["auroc"] <= 1


def test_unknown_metric_is_refused_with_those_there_are(foveal, trained_run):
    foveal("evaluate", trained_run, "--metric", "f1_scor").refused(2, "f1_scor", "did you mean", "'f1_score'")
    foveal("evaluate", trained_run, "--metric", "zzzz").refused(2, "zzzz", "known:", "cohen_kappa")


def test_every_metric_that_is_offered_gives_a_number(foveal, trained_run):
    offered = foveal("evaluate", trained_run, "--metric", "zzzz").err.partition("known: ")[2].split(", ")
    names = [name.strip() for name in offered]
    failed = [name for name in names if foveal("evaluate", trained_run, "--json", "--metric", name).code != 0]
    assert failed == []


def test_networks_are_compiled_where_that_is_asked_for(foveal, trained_run, monkeypatch):
    compiled = []
    monkeypatch.setattr("foveal.answering.frozen", lambda network: compiled.append(network) or network)
    arguments = ("evaluate", trained_run, "--json")
    plain = foveal(*arguments).succeeded().document
    assert (foveal(*arguments, "--compile").succeeded().document, len(compiled)) == (plain, 1)


def test_evaluation_can_be_made_to_die_after_its_first_batch(start, trained_run, monkeypatch):
    monkeypatch.setenv("FOVEAL_FAULT", "evaluation@-1")
    process = start("evaluate", trained_run, "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (-9, "")
    assert "killed: evaluation" in err
