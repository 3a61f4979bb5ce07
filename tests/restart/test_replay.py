"""Steps of real runs, done again."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from foveal.data.catalog import open_data
from foveal.data.input import training_pipeline, training_sampler
from foveal.errors import DataError, NonFiniteLossError, RunError, UsageError
from foveal.models.registry import build_model
from foveal.recipe import from_toml, override
from foveal.reproducibility.replay import replay
from foveal.training.loop import train

DROPOUT = "model.options={widths=[16, 32], kernel=3, stride=1, padding=true, dropout=0.2}"
PADDED = 96 + 6, 96 + 13 + 12  # pixels from cell to cell, across and down


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files, and when they were changed."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def logged(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records}


@pytest.fixture(scope="module")
def make(tiny, tmp_path_factory):
    """Train that recipe, changed; every step is logged."""

    def run(*settings, steps=25):
        folder = tmp_path_factory.mktemp("run") / "run"
        recipe = override(from_toml(tiny), [f"steps={steps}", "logging.every=1 step", *settings])
        train(recipe, folder)
        return folder

    return run


@pytest.fixture(scope="module")
def every_step(make):
    """A run with dropout; checkpoints at 10, 20 and 25."""
    return make(DROPOUT)


@pytest.mark.parametrize(
    ("step", "start"),
    [(1, 0), (2, 0), (10, 0), (11, 10), (12, 10), (17, 10), (20, 10), (21, 20), (24, 20), (25, 20)],
)
def test_gives_the_logged_loss_to_the_last_bit_from_the_nearest_checkpoint(every_step, step, start):
    done = replay(every_step, step)
    assert done.loss == done.logged_loss == logged(every_step)[step]
    assert (done.equal, done.start, done.total_steps) == (True, start, 25)


@pytest.mark.parametrize(
    "settings",
    [
        ["precision=bfloat16", "micro_batch=25", DROPOUT],
        [
            'augmentation=[{name="mixup", alpha=0.4}]',
            "optimizer={name='sgd', learning_rate=0.1, momentum=0.9}",
        ],
        ["normalization={per_image=true}", "data.batching=keep_last", "loader_threads=2"],
        ["freeze=['features.0']", "phases=[{steps=5, freeze=['features']}]", "ema.statistics=recompute"],
    ],
)
def test_gives_the_logged_loss_whatever_the_recipe_asks_for(make, tmp_path, settings):
    run = make(*settings, steps=13)
    picture = tmp_path / "batch.png"
    assert [replay(run, step, picture=picture).equal for step in (1, 4, 7, 12, 13)] == [True] * 5
    assert Image.open(picture).size > (500, 500)


def test_gives_the_logged_loss_of_a_run_that_began_with_other_weights(make, every_step):
    run = make(f"init={{path='{every_step}'}}", "seed.init=5", steps=4)
    assert [replay(run, step).equal for step in (1, 3)] == [True, True]
    assert logged(run)[1] < logged(every_step)[1] / 2


def test_shows_the_examples_that_the_sampler_gives_that_step_and_their_classes(every_step):
    recipe = from_toml(every_step / "recipe.toml")
    source = open_data(recipe.data).train
    sample = training_sampler(recipe, source).sample(17)
    targets = source.read(sample.indices).targets
    assert [(each.index, each.key, each.label) for each in replay(every_step, 18).examples] == [
        (index, f"digits train record {index}", str(target))
        for index, target in zip(sample.indices.tolist(), targets.tolist(), strict=True)
    ]


def test_names_every_class_of_a_mixed_example_and_its_share(make):
    run = make('augmentation=[{name="mixup", alpha=1.0}]', steps=1)
    examples = replay(run, 1).examples
    mixed = [each for each in examples if len(each.classes) == 2]
    assert len(mixed) > 50
    assert all(math.isclose(sum(each.classes.values()), 1, abs_tol=1e-6) for each in examples)
    first, second = mixed[0].classes
    assert mixed[0].classes[first] >= mixed[0].classes[second]
    assert mixed[0].label == (
        f"{first} {mixed[0].classes[first]:.0%}, {second} {mixed[0].classes[second]:.0%}"
    )


@pytest.mark.parametrize("step", [3, 18])
def test_draws_the_distorted_images_pixel_by_pixel(every_step, tmp_path, step):
    replay(every_step, step, picture=tmp_path / "batch.png")
    recipe = from_toml(every_step / "recipe.toml")
    source = open_data(recipe.data).train
    sample = training_sampler(recipe, source).sample(step - 1)
    wanted = training_pipeline(recipe, source).distort(sample)
    assert not np.array_equal(wanted, source.read(sample.indices).images)
    with Image.open(tmp_path / "batch.png") as opened:
        sheet = np.asarray(opened)
    for number, image in enumerate(wanted):
        row, column = divmod(number, 10)
        left, top = 16 + column * PADDED[0], 52 + row * PADDED[1]
        cell = sheet[top : top + 96 : 12, left : left + 96 : 12]
        assert np.array_equal(cell, np.broadcast_to(image, (8, 8, 3)))


def test_draws_no_more_images_than_are_asked_for(every_step, tmp_path):
    done = replay(every_step, 1, picture=tmp_path / "few.png", count=3)
    assert len(done.examples) == 100
    assert Image.open(tmp_path / "few.png").width < 4 * PADDED[0]


def test_gives_the_gradients_that_autograd_gives(make):
    run = make("optimizer.weight_decay=0.5", DROPOUT.replace("0.2", "0.0"), steps=1)
    recipe = from_toml(run / "recipe.toml")
    source = open_data(recipe.data).train
    prepared = training_pipeline(recipe, source)(training_sampler(recipe, source).sample(0))
    model = build_model(recipe.model, 10, (8, 8, 1), recipe.seed.init).train()
    logits = model(torch.from_numpy(prepared.images).permute(0, 3, 1, 2))
    loss = functional.cross_entropy(logits, torch.from_numpy(prepared.targets))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    wanted = {
        name: gradient.double().norm().item()
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    done = replay(run, 1)
    assert done.gradients == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert done.gradient_norm == pytest.approx(math.hypot(*wanted.values()), rel=1e-5)


def test_leaves_frozen_parameters_out_of_the_gradients(make):
    run = make("freeze=['features.0']", "phases=[{steps=3, freeze=['features']}]", steps=5)
    assert {name.split(".")[0] for name in replay(run, 3).gradients} == {"logits"}
    learning = replay(run, 4).gradients
    assert "features.3.weight" in learning
    assert "features.0.weight" not in learning


def test_changes_nothing_in_the_run_folder(every_step, tmp_path):
    before = contents(every_step)
    replay(every_step, 22, picture=tmp_path / "batch.png")
    assert contents(every_step) == before


def test_goes_back_to_an_earlier_checkpoint_where_one_is_damaged_and_leaves_it_there(every_step, tmp_path):
    run = Path(shutil.copytree(every_step, tmp_path / "run"))
    for step, name, place in ((20, "model.safetensors", -3), (10, "manifest.json", 40)):
        path = run / "checkpoints" / f"step-{step:09d}" / name
        damaged = bytearray(path.read_bytes())
        damaged[place] ^= 1
        path.write_bytes(damaged)
    before, said = contents(run), []
    done = replay(run, 24, report=said.append)
    assert (done.start, done.equal) == (0, True)
    assert sum("step-000000020" in line and "damaged" in line for line in said) == 1
    assert sum("step-000000010" in line and "damaged" in line for line in said) == 1
    assert contents(run) == before


def test_of_a_step_that_was_not_logged_says_so(trained_run):
    done = replay(trained_run, 7)
    assert (done.logged_loss, done.equal) == (None, None)
    assert math.isfinite(done.loss)


def test_shows_the_step_at_which_a_run_diverged(tiny, tmp_path):
    settings = ["steps=40", "optimizer={name='sgd', learning_rate=1e20}", "schedule={name='constant'}"]
    with pytest.raises(NonFiniteLossError) as diverged:
        train(override(from_toml(tiny), settings), tmp_path / "run")
    step, said = diverged.value.step, []
    done = replay(tmp_path / "run", step, report=said.append)
    assert not math.isfinite(done.loss)
    assert [each.key for each in done.examples] == diverged.value.keys
    assert json.loads(json.dumps(done.report(), allow_nan=False))["loss"] is None
    assert "the run has recorded nothing after step 1" in said


def test_uses_what_can_be_read_of_a_damaged_log(every_step, tmp_path):
    run = Path(shutil.copytree(every_step, tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:5]) + b'{"step": "x"}\n[1]\n\xff\n')
    said = []
    assert replay(run, 5, report=said.append).equal is True
    assert replay(run, 6).equal is None
    assert any("metrics.jsonl: line 6" in line for line in said)


class TestRefuses:
    @pytest.mark.parametrize("step", [0, -1, 26, 10**12])
    def test_a_step_the_run_does_not_have(self, every_step, step):
        with pytest.raises(UsageError, match=f"--step {step}: .* has the steps 1 to 25"):
            replay(every_step, step)

    def test_a_folder_without_a_run(self, tmp_path):
        with pytest.raises(RunError, match="not a run folder"):
            replay(tmp_path, 1)

    def test_a_picture_that_is_no_png_before_anything_is_trained(self, every_step, tmp_path):
        with pytest.raises(UsageError, match=r"batch\.jpg"):
            replay(every_step, 25, picture=tmp_path / "batch.jpg")

    def test_a_device_that_is_not_there(self, every_step):
        with pytest.raises(UsageError, match="nonsense"):
            replay(every_step, 1, device="nonsense")

    def test_data_that_are_gone_or_others(self, make, tmp_path):
        random = np.random.default_rng(0)
        images, labels = random.integers(0, 256, (120, 8, 8), np.uint8), np.arange(120) % 10
        for name in ("right", "wrong"):
            np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=labels)
            images = images ^ 1
        data = ("data.name=arrays", "batch_size=16", f"data.path={tmp_path / 'right.npz'}")
        run = make(*data, steps=3)
        (tmp_path / "right.npz").rename(tmp_path / "moved.npz")
        with pytest.raises(DataError, match=r"right\.npz"):
            replay(run, 2)
        with pytest.raises(RunError, match="not the data it was trained on; say with --data"):
            replay(run, 2, data=tmp_path / "wrong.npz")
        assert replay(run, 2, data=tmp_path / "moved.npz").equal is True

    def test_a_run_on_a_stream(self, make, tmp_path, monkeypatch):
        (tmp_path / "endless_digits.py").write_text(
            "import itertools, numpy as np\n"
            "from foveal import DataSet, StreamSource\n"
            "def endless():\n"
            "    image = np.zeros((8, 8, 1), np.uint8)\n"
            "    feed = lambda: itertools.repeat((image, 0))\n"
            "    return DataSet(StreamSource(feed, ('a', 'b'), (8, 8, 1)))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        run = make("data={name='endless_digits:endless'}", "checkpoint.every=2 steps", steps=2)
        with pytest.raises(RunError, match="stream"):
            replay(run, 1)
