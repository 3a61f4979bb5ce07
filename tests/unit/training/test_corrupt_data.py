"""Training on data of which some records are damaged."""

from __future__ import annotations

import json

import pytest

import foveal
from foveal.data.catalog import open_data
from foveal.errors import DataError
from foveal.recipe import DataPart
from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

DAMAGED = {"train": (5, 17, 90), "test": (3,)}
SETTINGS = (
    "steps=12",
    "batch_size=40",
    "schedule.name=constant",
    "device=cpu",
    "threads=1",
    "precision=float32",
    "logging.every=1 step",
    "checkpoint.every=5 steps",
    "evaluation.every=never",
    "data.options.shape=[8, 8, 1]",
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The first digits as records; a bit of the data of some is flipped."""
    folder = tmp_path_factory.mktemp("records")
    digits = open_data(DataPart(name="digits"))
    for name, source in (("train", digits.train), ("test", digits.test)):
        path = folder / f"{name}.tfrecord"
        with RecordWriter(path) as writer:
            for image, label in zip(source.images[:100], source.targets[:100].tolist(), strict=True):
                writer.write(build_example({"image_raw": image.tobytes(), "label": label}))
        content = bytearray(path.read_bytes())
        length = len(content) // 100
        for number in DAMAGED[name]:
            content[number * length + length // 2] ^= 1
        path.write_bytes(content)
    return folder


def recipe(records, *settings):
    data = f"data={{name='tfrecord', path='{records}'}}"
    return foveal.override_recipe(foveal.load_recipe("digits"), [data, *SETTINGS, *settings])


def ledger(run, part):
    lines = (run / "corrupt.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["part"] == part]


def weights(run):
    return (run / "checkpoints/step-000000012/model.safetensors").read_bytes()


SKIP = ("data.on_corrupt=skip", "data.corrupt_budget=4")


def test_ends_at_the_first_of_them_with_its_file_and_number(records, tmp_path):
    with pytest.raises(DataError, match=r"train\.tfrecord record (5|17|90)\b.*checksum"):
        foveal.train(recipe(records), tmp_path / "run")


def test_goes_on_with_others_in_their_places_where_that_is_allowed(records, tmp_path):
    assert foveal.train(recipe(records, *SKIP), tmp_path / "run").finished
    train, test = (ledger(tmp_path / "run", part) for part in ("train", "test"))
    assert sorted(each["key"].rsplit(" ", 1)[1] for each in train) == ["17", "5", "90"]
    assert [each["key"].rsplit("/", 1)[1] for each in test] == ["test.tfrecord record 3"]
    assert all("checksum" in each["reason"] for each in train + test)
    measured = foveal.evaluate(tmp_path / "run")
    assert (measured.examples, len(measured.corrupt)) == (99, 1)
    assert measured.record()["left_out"] == 1


def test_is_the_same_after_an_interruption(records, tmp_path):
    foveal.train(recipe(records, *SKIP), tmp_path / "whole")
    foveal.train(recipe(records, *SKIP, "steps=3"), tmp_path / "cut")
    foveal.train(recipe(records, *SKIP), tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert ledger(tmp_path / "cut", "train") == ledger(tmp_path / "whole", "train")


def test_ends_where_there_are_more_than_the_budget_allows(records, tmp_path):
    with pytest.raises(
        DataError, match=r"damaged record number 3, more than data.corrupt_budget allows \(2\)"
    ):
        foveal.train(recipe(records, "data.on_corrupt=skip", "data.corrupt_budget=2"), tmp_path / "run")


def test_can_be_allowed_when_a_run_is_continued(records, tmp_path):
    with pytest.raises(DataError):
        foveal.train(recipe(records, "checkpoint.every=1 step"), tmp_path / "run")
    assert foveal.train(recipe(records, *SKIP), tmp_path / "run").finished
    foveal.train(recipe(records, *SKIP), tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
