"""``foveal replay`` and ``foveal bisect`` as they are called."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image


@pytest.fixture
def shorter(foveal, tiny, tmp_path):
    """A run of 12 steps that differs in its learning rate."""
    foveal(
        "train", tiny, "--run", "other", "--steps", 12, "--set", "optimizer.learning_rate=0.02"
    ).succeeded()
    return tmp_path / "other"


class TestReplay:
    def test_shows_examples_loss_gradient_and_picture_and_leaves_the_run_alone(
        self, foveal, run_copy, snapshot, tmp_path
    ):
        before = snapshot(run_copy)
        done = foveal("replay", run_copy, "--step", 30).succeeded()
        logged = json.loads((run_copy / "metrics.jsonl").read_text().splitlines()[3])["loss"]
        lines = done.out.splitlines()
        assert len(lines) == 1 + 100 + 5
        assert all("digits train record" in line for line in lines[1:101])
        assert lines[102:104] == [
            "step 30 of 40, trained forward from the checkpoint of step 20",
            f"loss           {logged!r} (as logged, to the last digit)",
        ]
        assert lines[-1].split() == ["picture", "run-step-30.png"]
        assert "replaying steps 21 to 29" in done.err
        assert snapshot(run_copy) == before
        with Image.open(tmp_path / "run-step-30.png") as picture:
            assert picture.format == "PNG"

    def test_prints_one_json_document(self, foveal, run_copy, tmp_path):
        found = foveal("replay", run_copy, "--step", 21, "--out", "x.png", "--count", 4, "--json").document
        assert (found["step"], found["checkpoint"], found["equal"]) == (21, 20, None)
        assert found["picture"] == "x.png"
        assert (tmp_path / "x.png").exists()
        assert len(found["examples"]) == 100
        assert found["examples"][0].keys() == {"key", "index", "epoch", "classes"}
        assert found["gradient_norm"] > max(found["gradients"].values()) > 0

    def test_of_a_loss_that_is_not_the_logged_one_says_so_and_exits_with_1(self, foveal, run_copy):
        log = run_copy / "metrics.jsonl"
        log.write_text(log.read_text().replace('"loss": 0.', '"loss": 0.0'))
        done = foveal("replay", run_copy, "--step", 40)
        assert done.code == 1
        assert "NOT EQUAL" in done.out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--step", 0], ["--step"]),
            (["--step", 41], ["--step 41", "1 to 40"]),
            (["--step", "x"], ["--step"]),
            ([], ["--step"]),
            (["--step", 1, "--out", "x.gif"], ["x.gif", ".png"]),
            (["--step", 1, "--device", "abacus"], ["abacus"]),
        ],
    )
    def test_refuses_wrong_usage_in_one_line(self, foveal, trained_run, arguments, words):
        foveal("replay", trained_run, *arguments).refused(2, *words)

    def test_of_no_run_is_refused(self, foveal):
        foveal("replay", "nothing", "--step", 1).refused(1, "nothing", "not a run folder")

    def test_of_a_recipe_that_was_damaged_is_refused(self, foveal, run_copy):
        (run_copy / "recipe.toml").write_text("steps = ")
        foveal("replay", run_copy, "--step", 1).refused(2, "recipe.toml")


class TestBisect:
    def test_of_a_run_and_its_copy_says_identical_and_exits_with_0(self, foveal, trained_run, run_copy):
        done = foveal("bisect", trained_run, run_copy).succeeded()
        assert done.out.splitlines()[0] == "40 steps compared"
        assert done.out.splitlines()[-1] == "identical"

    def test_says_in_what_and_where_two_runs_part_and_exits_with_1(self, foveal, trained_run, shorter):
        done = foveal("bisect", trained_run, shorter)
        assert done.code == 1
        lines = done.out.splitlines()
        assert lines[0] == "12 steps compared; steps 1 to 10 done again"
        assert lines[1].split() == ["recipe", "optimizer.learning_rate:", "0.01", "/", "0.02"]
        assert lines[-1] == "the runs part after step 1, in the weights"

    def test_prints_one_json_document(self, foveal, trained_run, shorter):
        found = foveal("bisect", trained_run, shorter, "--json").document
        assert found["first"] == {"kind": "weights", "step": 1}
        assert (found["loss"]["step"], found["batch"], found["data"]) == (2, None, None)
        assert (found["identical"], found["not_reproduced"]) == (False, [])
        assert found["recipe"] == {"optimizer.learning_rate": [0.01, 0.02]}

    def test_names_a_run_that_its_recipe_does_not_give(self, foveal, trained_run, run_copy):
        shutil.rmtree(run_copy / "checkpoints")
        log = run_copy / "metrics.jsonl"
        first, second, third, *others = log.read_text().splitlines(keepends=True)
        log.write_text("".join([first, second, third.replace('"loss": 0.', '"loss": 0.0'), *others]))
        done = foveal("bisect", trained_run, run_copy)
        assert done.code == 1
        assert (
            f"{run_copy} is not reproduced: its recipe and data do not give the loss logged at step 20;\n"
            "steps 10 to 20 went otherwise:" in done.out
        )

    def test_of_no_run_is_refused(self, foveal, trained_run):
        foveal("bisect", trained_run, "nothing").refused(1, "nothing", "not a run folder")
