"""What a run shows in TensorBoard is what its recipe asks for, at the steps it asks for."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.graph_pb2 import GraphDef

import foveal
from foveal.device import resolve_machine
from foveal.errors import RecipeError
from foveal.recipe import from_toml, override
from foveal.reproducibility.comparison import compare_logs
from foveal.tensorflow.records import read_records
from foveal.training.learner import Learner
from foveal.training.monitoring import Monitor

if TYPE_CHECKING:
    from pathlib import Path

WATCHING = (
    "steps=12",
    "logging.every=3 steps",
    "logging.loss_averages=0.9",
    "logging.histograms=['activations', 'weights', 'gradients']",
    "logging.histograms_every=4 steps",
    "logging.images=2",
    "logging.images_every=6 steps",
    "logging.graph=true",
    "checkpoint.every=5 steps",
    "optimizer={name='sgd', learning_rate=0.1, weight_decay=0.01, decayed='^logits'}",
)


def events(run: Path) -> list[Event]:
    (path,) = run.glob("events.out.tfevents.*")
    return [Event.FromString(record.data) for record in read_records(path, compression=None)]


def steps_of(run: Path, kind: str) -> dict[str, list[int]]:
    """The steps at which each tag of a kind stands."""
    found = defaultdict(list)
    for event in events(run):
        for value in event.summary.value:
            if value.WhichOneof("value") == kind:
                found[value.tag].append(event.step)
    return found


@pytest.fixture(scope="module")
def watched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("monitoring") / "run"
    foveal.train(override(from_toml(tiny), WATCHING), run)
    return run


@pytest.fixture(scope="module")
def parameters(watched: Path) -> list[str]:
    result = foveal.summarise(watched)
    return [each.name for each in result.tensors if each.role == "parameter"]


@pytest.mark.parametrize("kind", ["weights", "gradients"])
def test_every_parameter_has_its_histograms(watched: Path, parameters: list[str], kind: str) -> None:
    found = {tag: steps for tag, steps in steps_of(watched, "histo").items() if tag.startswith(kind)}
    assert found == {f"{kind}/{name}": [4, 8, 12] for name in parameters}


def test_every_layer_has_a_histogram_and_its_share_of_zeros(watched: Path) -> None:
    layers = [each.name for each in foveal.summarise(watched).layers]
    assert "features.2" in layers
    histograms, scalars = steps_of(watched, "histo"), steps_of(watched, "simple_value")
    for name in layers:
        assert histograms[f"activations/{name}"] == scalars[f"sparsity/{name}"] == [4, 8, 12]
    values = {value.tag: value for event in events(watched) for value in event.summary.value}
    assert 0.1 < values["sparsity/features.2"].simple_value < 0.9
    assert values["activations/features.2"].histo.min == 0
    assert values["activations/logits"].histo.num == 100 * 10


def test_images_are_those_that_the_step_was_trained_on(watched: Path) -> None:
    assert steps_of(watched, "image") == {"images/0": [6, 12], "images/1": [6, 12]}
    images = [value.image for event in events(watched) for value in event.summary.value if value.image.height]
    assert {(each.height, each.width, each.colorspace) for each in images} == {(8, 8, 1)}
    assert len({each.encoded_image_string for each in images}) == 4


def test_losses_learning_rate_and_throughput_are_scalars_of_every_logged_step(watched: Path) -> None:
    found = steps_of(watched, "simple_value")
    parts = ("cross_entropy", "weight_decay/logits.weight", "weight_decay/logits.bias", "total")
    kinds = ("losses", "loss_averages")
    for tag in (*map("/".join, itertools.product(kinds, parts)), "learning_rate", "time/examples_per_second"):
        assert found[tag] == [1, 3, 6, 9, 12], tag


def test_the_averages_of_the_losses_follow_every_step_and_not_only_the_logged_ones(
    tiny: Path, watched: Path, tmp_path: Path
) -> None:
    def records(run: Path) -> dict[int, dict]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line for line in lines}

    foveal.train(override(from_toml(tiny), [*WATCHING, "logging.every=1 step"]), tmp_path / "run")
    average, every = 0.0, records(tmp_path / "run")
    for record in every.values():
        losses = record["losses"]
        assert losses["cross_entropy"] == record["loss"]
        assert losses["total"] == pytest.approx(record["loss"] + sum(losses["weight_decay"].values()))
        average += (losses["total"] - average) * 0.1
        assert record["loss_averages"]["total"] == pytest.approx(average, rel=1e-5)
    assert all(
        every[step]["loss_averages"] == each["loss_averages"] for step, each in records(watched).items()
    )


def test_the_graph_stands_there_once_before_the_first_step(watched: Path) -> None:
    found = [(event.step, event.graph_def) for event in events(watched) if event.graph_def]
    ((step, graph),) = found
    assert step == 0
    assert {"images", "logits/linear", "features/0/weight"} <= {
        node.name for node in GraphDef.FromString(graph).node
    }


@pytest.mark.parametrize("stops", [(5, 12), (4, 9, 12), (1, 2, 12)], ids=str)
def test_a_run_in_parts_shows_what_one_in_a_single_part_shows(
    tiny: Path, watched: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    always = [
        *WATCHING,
        *(f"logging.{name}=1 step" for name in ("every", "histograms_every", "images_every")),
    ]
    for run, ends in ((tmp_path / "whole", (12,)), (tmp_path / "parts", stops)):
        for steps in ends:
            foveal.train(
                override(from_toml(tiny), [*always, "evaluation.every=never", f"steps={steps}"]), run
            )
    assert compare_logs(tmp_path / "parts", tmp_path / "whole") == []
    last = "checkpoints/step-000000012/model.safetensors"
    assert (tmp_path / "parts" / last).read_bytes() == (watched / last).read_bytes()


def test_nothing_that_is_not_asked_for_is_written(trained_run: Path) -> None:
    assert steps_of(trained_run, "histo") == steps_of(trained_run, "image") == {}
    assert not any(event.graph_def for event in events(trained_run))
    assert "losses" not in (trained_run / "metrics.jsonl").read_text()


def test_frozen_parameters_have_no_gradients_and_micro_batches_are_summed(tiny: Path, tmp_path: Path) -> None:
    settings = (*WATCHING, "freeze=['^features']", "micro_batch=25", "logging.histograms=['gradients']")
    foveal.train(override(from_toml(tiny), settings), tmp_path / "run")
    assert set(steps_of(tmp_path / "run", "histo")) == {"gradients/logits.weight", "gradients/logits.bias"}


def test_averages_can_be_asked_for_in_the_middle_of_a_run(tiny: Path, tmp_path: Path) -> None:
    for settings in (("steps=4",), ("steps=8", "logging.loss_averages=0.5", "logging.every=1 step")):
        foveal.train(override(from_toml(tiny), settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (first,) = [line for line in lines if line["step"] == 5]
    assert math.isclose(first["loss_averages"]["total"], first["loss"] / 2, rel_tol=1e-6)


def test_images_that_tensorboard_cannot_show_are_refused(tiny: Path) -> None:
    source = foveal.ArraySource(np.zeros((4, 8, 8, 2), np.uint8), np.zeros(4, np.int64), ("a", "b"))
    recipe = override(from_toml(tiny), ["logging.images=1", "device=cpu"])
    learner = Learner(resolve_machine(recipe), foveal.DataSet(train=source))
    with pytest.raises(RecipeError, match=r"logging\.images = 1: TensorBoard shows images of 1, 3 or 4"):
        Monitor(learner)
