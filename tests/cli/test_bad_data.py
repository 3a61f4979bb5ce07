"""Data files that are missing, damaged or do not fit: one line says which and where, and no run is begun."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def overwrite(path, offset, content):
    old = path.read_bytes()
    path.write_bytes(old[:offset] + content + old[offset + len(content) :])


def pack_and_cut(path):
    packed = gzip.compress(path.read_bytes())
    path.with_name(f"{path.name}.gz").write_bytes(packed[: len(packed) // 2])
    path.unlink()


DAMAGES = {
    "train images missing": (lambda d: (d / IMAGES).unlink(), (IMAGES, "neither")),
    "test labels missing": (
        lambda d: (d / "t10k-labels-idx1-ubyte").unlink(),
        ("t10k-labels-idx1-ubyte", "neither"),
    ),
    "images cut off": (lambda d: cut(d / IMAGES, 1000), (IMAGES, "1000 bytes", "cut off")),
    "labels cut off": (lambda d: cut(d / LABELS, 20), (LABELS, "20 bytes", "cut off")),
    "cut off in the header": (lambda d: cut(d / IMAGES, 9), (IMAGES, "header", "9 of 16")),
    "empty file": (lambda d: cut(d / IMAGES, 0), (IMAGES, "0 bytes")),
    "compressed file cut off": (lambda d: pack_and_cut(d / IMAGES), (f"{IMAGES}.gz", "cannot be read")),
    "not IDX": (lambda d: overwrite(d / IMAGES, 0, b"PK\3\4"), (IMAGES, "magic number", "504b0304")),
    "labels named as images": (
        lambda d: shutil.copy(d / LABELS, d / IMAGES),
        (IMAGES, "magic number", "00000801"),
    ),
    "of 32-bit numbers": (lambda d: overwrite(d / IMAGES, 2, b"\x0c"), (IMAGES, "magic number", "00000c03")),
    "size that overflows": (
        lambda d: overwrite(d / IMAGES, 4, b"\xff" * 12),
        (IMAGES, "4294967295 x 4294967295 x 4294967295"),
    ),
    "label out of range": (
        lambda d: overwrite(d / LABELS, 8 + 17, b"\x0a"),
        ("record 17", "label 10", "out of range", "0 to 9"),
    ),
    "a folder instead of a file": (
        lambda d: ((d / IMAGES).unlink(), (d / IMAGES).mkdir()),
        (IMAGES, "neither"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_named_and_no_run_is_begun(foveal, mnist, mnist_arguments, tmp_path, name):
    damage, words = DAMAGES[name]
    damage(mnist)
    outcome = foveal(*mnist_arguments, mnist, "--run", tmp_path / "run")
    outcome.refused(1, str(mnist), *words)
    assert not (tmp_path / "run").exists()


def test_different_numbers_of_images_and_labels_are_both_named(
    foveal, mnist, mnist_arguments, write_idx, tmp_path
):
    write_idx(mnist / LABELS, np.zeros(39))
    outcome = foveal(*mnist_arguments, mnist, "--run", tmp_path / "run")
    outcome.refused(1, str(mnist / IMAGES), "40 images", "39 labels")
    assert not (tmp_path / "run").exists()


def test_files_without_examples_are_refused(foveal, mnist, mnist_arguments, write_idx, tmp_path):
    write_idx(mnist / IMAGES, np.zeros((0, 8, 8)))
    write_idx(mnist / LABELS, np.zeros(0))
    foveal(*mnist_arguments, mnist, "--run", tmp_path / "run").refused(1, "train part", "no examples")
    assert not (tmp_path / "run").exists()


def test_parts_of_different_image_sizes_are_refused(foveal, mnist, mnist_arguments, write_idx, tmp_path):
    write_idx(mnist / "t10k-images-idx3-ubyte", np.zeros((20, 12, 12)))
    outcome = foveal(*mnist_arguments, mnist, "--run", tmp_path / "run")
    outcome.refused(2, "test part", "12 x 12 x 1", "8 x 8 x 1")
    assert not (tmp_path / "run").exists()


def test_empty_folder_is_refused_naming_the_files_wanted(foveal, mnist_arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = foveal(*mnist_arguments, tmp_path / "empty", "--run", tmp_path / "run")
    outcome.refused(1, str(tmp_path / "empty"), IMAGES, ".gz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "train a recipe whose data come with foveal", "evaluate"])
def test_data_folder_that_does_not_exist_is_refused(
    foveal, mnist_arguments, trained_run, tiny, tmp_path, command
):
    missing = tmp_path / "missing"
    if command == "evaluate":
        outcome = foveal("evaluate", trained_run, "--data", missing)
    elif command == "train":
        outcome = foveal(*mnist_arguments, missing, "--run", tmp_path / "run")
    else:
        outcome = foveal("train", tiny, "--data", missing, "--run", tmp_path / "run")
    code = 1 if command == "train" else 2  # the digits have no folder at all
    outcome.refused(code, str(missing), "--data")
    assert not (tmp_path / "run").exists()


def test_data_folder_that_is_a_file_is_refused(foveal, mnist, mnist_arguments, tmp_path):
    outcome = foveal(*mnist_arguments, mnist / IMAGES, "--run", tmp_path / "run")
    outcome.refused(1, str(mnist / IMAGES), "not a folder", "--data")
    assert not (tmp_path / "run").exists()


def test_incomplete_folder_in_foveal_data_is_named(foveal, mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEAL_DATA", str(tmp_path))
    (mnist / LABELS).unlink()
    outcome = foveal("train", "mnist-tutorial", "--run", tmp_path / "run")
    outcome.refused(1, str(mnist), LABELS)
    assert not (tmp_path / "run").exists()


def test_without_network_and_files_all_files_wanted_and_their_folder_are_named(foveal, tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.data.download._PAUSES", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outcome = foveal("train", "mnist-tutorial", "--run", tmp_path / "run")
    names = [
        f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    outcome.refused(1, *names, str(tmp_path / "cache"), "--data", after=True)
    assert not (tmp_path / "run").exists()


def test_damaged_data_leave_the_run_that_they_belong_to_as_it_was(
    foveal, mnist, mnist_arguments, snapshot, tmp_path
):
    command = (*mnist_arguments, mnist, "--run", tmp_path / "run")
    foveal(*command).succeeded()
    before = snapshot(tmp_path / "run")
    cut(mnist / IMAGES, 1000)
    foveal(*command, "--steps", 4).refused(1, str(mnist / IMAGES))
    foveal(*command, "--fresh").refused(1, str(mnist / IMAGES))
    foveal("evaluate", tmp_path / "run").refused(1, str(mnist / IMAGES))
    assert snapshot(tmp_path / "run") == before
    assert not list(tmp_path.glob("run.*"))


def test_evaluating_on_images_of_another_size_is_refused(
    foveal, mnist, mnist_arguments, write_mnist, tmp_path
):
    network = ("--set", "model={name='mnist_cnn'}")
    foveal(*mnist_arguments, mnist, "--run", tmp_path / "run", *network).succeeded()
    other = write_mnist(tmp_path / "other", side=12)
    foveal("evaluate", tmp_path / "run", "--data", other).refused(1, "12", "8")


def test_holding_out_more_examples_than_there_are_is_refused(foveal, mnist, mnist_arguments, tmp_path):
    outcome = foveal(*mnist_arguments, mnist, "--run", tmp_path / "run", "--set", "data.validation=40")
    outcome.refused(2, "data.validation = 40", "40 examples")
    assert not (tmp_path / "run").exists()
