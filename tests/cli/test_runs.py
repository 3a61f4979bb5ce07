"""Run folders: continuing, refusing to continue, and folders that are no runs."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.privileges import as_ordinary_user

from foveal.files import exclusive_lock


def logged_steps(run, name="metrics.jsonl"):
    return [json.loads(line)["step"] for line in (run / name).read_text().splitlines()]


def test_same_command_on_a_finished_run_says_the_same_and_trains_nothing(retrain, run_copy, snapshot):
    before = snapshot(run_copy)
    first = retrain("--json").succeeded()
    second = retrain("--json").succeeded()
    assert first.document == second.document
    assert first.document["step"] == 40
    assert "step 40/40" not in first.err
    assert snapshot(run_copy) == before


def test_more_steps_continue_the_run_and_log_each_step_once(retrain, run_copy):
    outcome = retrain("--steps", 60, "--json").succeeded()
    assert (outcome.document["step"], outcome.document["finished"]) == (60, True)
    assert "continuing from step 40" in outcome.err
    assert logged_steps(run_copy) == [1, 10, 20, 30, 40, 50, 60]


def test_more_steps_are_refused_where_the_schedule_depends_on_the_total(foveal, tiny, tmp_path, snapshot):
    command = ("train", tiny, "--set", "schedule.name=linear", "--run", "run")
    foveal(*command, "--steps", 2).succeeded()
    before = snapshot(tmp_path / "run")
    foveal(*command, "--steps", 3).refused(1, "run", "steps = 3 (was 2)", "--run", "--fresh")
    assert snapshot(tmp_path / "run") == before


def test_run_of_another_recipe_is_refused_naming_each_key_that_differs(retrain, run_copy, snapshot):
    before = snapshot(run_copy)
    changes = ("--seed", 3, "--set", "batch_size=50", "--set", "optimizer.learning_rate=0.5")
    outcome = retrain(*changes, "--set", "ema={decay=0.8}")
    keys = ("batch_size = 50 (was 100)", "optimizer.learning_rate = 0.5 (was 0.01)", "ema.decay = 0.8")
    line = outcome.refused(1, str(run_copy), *keys, "seed.init = 3", "seed.data = 3", "--run", "--fresh")
    assert "threads" not in line
    assert snapshot(run_copy) == before


def test_other_kind_of_optimizer_is_another_recipe(retrain, run_copy, snapshot):
    before = snapshot(run_copy)
    retrain("--set", "optimizer.name=sgd").refused(1, "optimizer", "sgd", "adamw")
    assert snapshot(run_copy) == before


def test_operational_fields_may_change(retrain):
    changes = ("logging.every=5 steps", "checkpoint.keep_last=1", "loader_threads=2", "threads=2")
    retrain(*(text for change in changes for text in ("--set", change))).succeeded()


def test_other_training_data_are_refused(foveal, mnist, mnist_arguments, write_mnist, tmp_path, snapshot):
    run = ("--run", tmp_path / "run")
    foveal(*mnist_arguments, mnist, *run).succeeded()
    before = snapshot(tmp_path / "run" / "checkpoints")
    other = write_mnist(tmp_path / "other", seed=1)
    outcome = foveal(*mnist_arguments, other, *run, "--steps", 4)
    outcome.refused(1, str(tmp_path / "run"), "data", "--data", "--fresh")
    assert snapshot(tmp_path / "run" / "checkpoints") == before
    foveal(*mnist_arguments, mnist, *run, "--steps", 4).succeeded()


def test_run_refused_for_its_data_still_knows_where_its_own_are(
    foveal, mnist, mnist_arguments, write_mnist, tmp_path
):
    run = ("--run", tmp_path / "run")
    foveal(*mnist_arguments, mnist, *run).succeeded()
    foveal(*mnist_arguments, write_mnist(tmp_path / "other", seed=1), *run).refused(1, "data")
    document = foveal("evaluate", tmp_path / "run", "--split", "train", "--json").succeeded().document
    own = foveal("evaluate", tmp_path / "run", "--split", "train", "--data", mnist, "--json").document
    assert document == own


def test_refused_change_of_an_existing_run_leaves_it_as_it_was(retrain, run_copy, snapshot):
    before = snapshot(run_copy)
    retrain(
        "--steps", 50, "--set", 'logging.activations=["logit"]', "--set", "logging.activations_every=1 step"
    )
    assert snapshot(run_copy) == before


def test_same_data_elsewhere_continue_the_run(foveal, mnist, mnist_arguments, tmp_path):
    run = ("--run", tmp_path / "run")
    foveal(*mnist_arguments, mnist, *run).succeeded()
    moved = mnist.rename(tmp_path / "moved")
    assert foveal(*mnist_arguments, moved, *run, "--steps", 4, "--json").succeeded().document["step"] == 4
    foveal("evaluate", tmp_path / "run").succeeded()


def test_fresh_moves_the_old_run_aside_and_begins_anew(retrain, run_copy, snapshot, tmp_path):
    before = snapshot(run_copy)
    outcome = retrain("--fresh", "--steps", 2, "--json").succeeded()
    (aside,) = (path for path in tmp_path.iterdir() if path != run_copy)
    assert outcome.document["step"] == 2
    assert str(aside) in outcome.err
    assert snapshot(aside) == before


def test_fresh_several_times_in_a_second_keeps_every_old_run(retrain, tmp_path):
    for _ in range(3):
        retrain("--fresh", "--steps", 1).succeeded()
    assert len(list(tmp_path.iterdir())) == 4


def test_fresh_without_an_old_run_is_a_new_run(foveal, tmp_path, tiny):
    foveal("train", tiny, "--fresh", "--steps", 1, "--run", "run").succeeded()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_run_folder_that_is_a_file_is_refused(foveal, tmp_path, tiny):
    (tmp_path / "file").write_text("precious")
    for where in ("file", "file/run"):
        foveal("train", tiny, "--run", where).refused(1, where, "--run")
    assert (tmp_path / "file").read_text() == "precious"


def test_folder_of_something_else_is_refused_and_left_alone(foveal, tmp_path, tiny, snapshot):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("precious")
    for extra in ((), ("--fresh",)):
        outcome = foveal("train", tiny, "--run", "photos", *extra)
        outcome.refused(1, "photos", "not empty", "--run")
    assert list(snapshot(tmp_path / "photos")) == ["a.txt"]


def test_empty_folder_becomes_a_run(foveal, tmp_path, tiny):
    (tmp_path / "run").mkdir()
    foveal("train", tiny, "--steps", 1, "--run", "run").succeeded()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a folder")
def test_run_folder_that_cannot_be_made_is_refused(foveal, tiny):
    foveal("train", tiny, "--run", "/proc/run").refused(1, "/proc/run", "--run")


@pytest.fixture
def read_only_run(trained_run, tiny, monkeypatch):
    """A run that may be read and not written, in the current folder, with its recipe beside it."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's folder: other users may not enter that
        folder = Path(name)
        shutil.copytree(trained_run, folder / "run")
        shutil.copy(tiny, folder / "tiny.toml")
        monkeypatch.chdir(folder)
        for path in (folder, folder / "run"):
            path.chmod(0o555)
        try:
            with as_ordinary_user():
                yield folder / "run"
        finally:
            for path in (folder, folder / "run"):
                path.chmod(0o755)


def test_run_folder_that_may_not_be_written_is_refused(foveal, read_only_run, snapshot):
    before = snapshot(read_only_run)
    outcome = foveal("train", "tiny.toml", "--run", read_only_run, "--steps", 60)
    outcome.refused(1, str(read_only_run), "written", "--run")
    assert snapshot(read_only_run) == before


def test_run_folder_that_may_not_be_written_can_be_evaluated(foveal, read_only_run, snapshot):
    before = snapshot(read_only_run)
    foveal("evaluate", read_only_run).succeeded()
    assert snapshot(read_only_run) == before


@pytest.mark.parametrize("extra", [("--steps", 60), ("--fresh",)])
def test_run_that_another_process_trains_is_refused_and_left_alone(
    retrain, run_copy, snapshot, tmp_path, extra
):
    before = snapshot(run_copy)
    with exclusive_lock(run_copy / ".lock", "the test holds it"):
        retrain(*extra).refused(1, str(run_copy), "another process", "--run")
    assert snapshot(run_copy) == before
    assert list(tmp_path.iterdir()) == [run_copy]


def test_run_that_another_process_trains_can_be_evaluated(foveal, run_copy):
    with exclusive_lock(run_copy / ".lock", "the test holds it"):
        foveal("evaluate", run_copy).succeeded()
