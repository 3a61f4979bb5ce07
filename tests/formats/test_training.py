"""A network trains from every format: the same digits, written to it, give the same accuracy."""

from __future__ import annotations

import csv
import gzip
import io

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.data.catalog import open_data
from foveal.data.formats.convert import convert
from foveal.recipe import DataPart
from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

SETTINGS = (
    "epochs=8",
    "device=cpu",
    "threads=1",
    "loader_threads=1",
    "precision=float32",
    "evaluation.every=never",
    "logging.every=never",
    "checkpoint.every=never",
)


def parts():
    """Name, images uint8 [N, 8, 8, 1] and labels of the digits' parts."""
    data = open_data(DataPart(name="digits"))
    return [("train", data.train.images, data.train.targets), ("test", data.test.images, data.test.targets)]


def digits():
    """A factory, for preloaded arrays."""
    classes = tuple("0123456789")
    train, test = (foveal.ArraySource(images, labels, classes) for _, images, labels in parts())
    return foveal.DataSet(train, test=test)


def stream():
    """A factory, for examples that are fed one after the other."""
    data = digits()

    def feed():
        yield from zip(data.train.images, data.train.targets.tolist(), strict=True)

    source = foveal.StreamSource(feed, data.train.classes, (8, 8, 1), shuffle_buffer=1200, seed=0)
    return foveal.DataSet(source, test=data.test)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def fixed_length(folder):
    for name, images, labels in parts():
        records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return "fixed_length", {"image_shape": [8, 8, 1], "classes": 10}


def idx(folder):
    for name, images, labels in parts():
        stem = "t10k" if name == "test" else name
        for kind, values in (("images-idx3", images[..., 0]), ("labels-idx1", labels.astype(np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return "idx", {}


def arrays(folder):
    named = {f"{kind}_{name}": part for name, *both in parts() for kind, part in zip("xy", both, strict=True)}
    for name, values in named.items():
        np.save(folder / f"{name}.npy", values)
    return "arrays", {}


def csv_of_pixels(folder):
    for name, images, labels in parts():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *(f"pixel{number}" for number in range(64))])
            writer.writerows(np.concatenate([labels[:, None], images.reshape(-1, 64)], axis=1).tolist())
    return "csv", {"label": "label", "shape": [8, 8, 1]}


def csv_of_files(folder):
    for name, images, labels in parts():
        (folder / name).mkdir()
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "digit"])
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                (folder / name / f"{number}.png").write_bytes(png(image))
                writer.writerow([f"{name}/{number}.png", label])
    return "csv", {"image": "file", "label": "digit"}


def records_of_files(folder):
    convert(digits(), folder / "digits.tfrecord", shards=2)
    return "tfrecord", {}


def records_of_pixels(folder):
    for name, images, labels in parts():
        with RecordWriter(folder / f"{name}.tfrecord.gz", "gzip") as writer:
            for image, label in zip(images, labels.tolist(), strict=True):
                writer.write(build_example({"image_raw": image.tobytes(), "label": label}))
    return "tfrecord", {"shape": [8, 8, 1]}


def parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    for name, images, labels in parts():
        column = [{"bytes": png(image), "path": None} for image in images]
        files.write_table(
            pyarrow.table({"image": column, "label": labels}), folder / f"{name}-00000-of-00001.parquet"
        )
    return "parquet", {}


def images_in_folders(folder):
    for name, images, labels in parts():
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            (folder / name / str(label)).mkdir(parents=True, exist_ok=True)
            (folder / name / str(label) / f"{number:04}.png").write_bytes(png(image))
    return "folder", {}


def accuracy(run, **data):
    recipe = foveal.override_recipe(foveal.load_recipe("digits"), SETTINGS)
    part = DataPart(**data)
    extra = {"steps": 150, "epochs": None} if part.name.endswith(":stream") else {}
    return foveal.train(recipe.model_copy(update={"data": part, **extra}), run).accuracy


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    """The run on the digits held in memory."""
    run = tmp_path_factory.mktemp("preloaded") / "run"
    return run, accuracy(run, name=f"{__name__}:digits")


def weights(run):
    (path,) = run.glob("checkpoints/step-*/model.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize(
    "write",
    [
        fixed_length,
        idx,
        arrays,
        csv_of_pixels,
        csv_of_files,
        records_of_files,
        records_of_pixels,
        parquet,
    ],
)
def test_training_gives_the_same_weights_from_every_format_that_keeps_the_order(write, preloaded, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    name, options = write(folder)
    run, expected = preloaded
    assert accuracy(tmp_path / "run", name=name, path=folder, options=options) == expected > 0.97
    assert weights(tmp_path / "run") == weights(run)


def test_training_gives_the_same_accuracy_from_folders_of_images(preloaded, tmp_path):
    folder = tmp_path / "data"
    name, options = images_in_folders(folder)
    found = accuracy(tmp_path / "run", name=name, path=folder, options=options)
    assert found == pytest.approx(preloaded[1], abs=0.02)


def test_training_gives_the_same_accuracy_from_an_iterable(preloaded, tmp_path):
    assert accuracy(tmp_path / "run", name=f"{__name__}:stream") == pytest.approx(preloaded[1], abs=0.02)
