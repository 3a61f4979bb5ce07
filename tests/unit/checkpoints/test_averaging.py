from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors.torch
import torch

from foveal.checkpoints import inspection
from foveal.checkpoints.averaging import average_weights
from foveal.checkpoints.manager import CheckpointManager
from foveal.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def write(tmp_path: Path):
    def save(name: str, **tensors: Any) -> Path:
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key: torch.as_tensor(value) for key, value in tensors.items()}, path)
        return path

    return save


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "mean.safetensors"


@pytest.fixture(autouse=True)
def _folder(out: Path) -> None:
    out.parent.mkdir()


def checkpoints(folder: Path) -> CheckpointManager:
    manager = CheckpointManager(folder / "checkpoints")
    for step in (1, 2):
        model = {
            "w": torch.full((2,), float(step)),
            "var": torch.tensor([8.0 * step]),
            "n": torch.tensor(step),
        }
        tensors = {
            "model": model,
            "ema": {"w": torch.full((2,), 10.0 * step)},
            "optimizer": {"m/w": model["w"]},
        }
        manager.save(step, tensors, {"step": step})
    return manager


def test_mean_of_files_is_computed_in_float64_and_rounded_once(write: Any, out: Path) -> None:
    values = [2.0**24, 1.0, 1.0, 1.0]  # float32 would lose each 1
    paths = [write(f"f{n}", w=torch.tensor([value])) for n, value in enumerate(values)]
    result = average_weights(paths, out)
    mean = safetensors.torch.load_file(out)["w"]
    assert mean.dtype == torch.float32
    assert mean.item() == torch.tensor((2.0**24 + 3) / 4).item()
    assert (result.out, result.sources, result.averaged, result.nbytes) == (out, tuple(paths), 1, 4)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
def test_mean_has_the_dtype_of_what_it_is_of(write: Any, out: Path, dtype: torch.dtype) -> None:
    paths = [write(name, w=torch.tensor(value, dtype=dtype)) for name, value in (("a", 1), ("b", 2))]
    average_weights(paths, out)
    mean = safetensors.torch.load_file(out)["w"]
    assert (mean.dtype, mean.shape, mean.item()) == (dtype, (), 1.5)


def test_integers_are_those_of_the_last_and_named_where_they_differ(write: Any, out: Path) -> None:
    a = write("a", n=torch.tensor([1, 2]), same=torch.tensor(True), w=torch.zeros(1))
    b = write("b", n=torch.tensor([1, 3]), same=torch.tensor(True), w=torch.ones(1))
    result = average_weights([a, b], out)
    read = safetensors.torch.load_file(out)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"n": [1, 3], "same": True, "w": [0.5]}
    assert (result.averaged, result.equal, result.last) == (1, 1, ("n",))


def test_of_checkpoints_the_network_alone_is_averaged(tmp_path: Path, out: Path) -> None:
    manager = checkpoints(tmp_path)
    result = average_weights([manager.path(1), tmp_path], out)
    assert result.sources == (manager.path(1), manager.path(2))
    read = safetensors.torch.load_file(out)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "w": [1.5, 1.5],
        "var": [12.0],
        "n": 2,
    }


def test_averages_stand_in_for_the_weights_they_are_of(tmp_path: Path, out: Path) -> None:
    manager = checkpoints(tmp_path)
    average_weights([manager.path(1), manager.path(2)], out, ema=True)
    read = safetensors.torch.load_file(out)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "w": [15.0] * 2,
        "var": [12.0],
        "n": 2,
    }


def test_mean_does_not_depend_on_how_much_is_read_at_a_time(
    write: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [{f"t{n}": torch.randn(9, generator=generator) for n in range(5)} for _ in range(3)]
    paths = [write(f"f{number}", **each) for number, each in enumerate(tensors)]
    average_weights(paths, out)
    monkeypatch.setattr(inspection, "_GROUP", 1)
    average_weights(paths, out.with_name("again.safetensors"))
    assert out.read_bytes() == out.with_name("again.safetensors").read_bytes()


def test_file_is_one_that_others_read(write: Any, out: Path) -> None:
    average_weights([write("a", w=[1.0]), write("b", w=[2.0])], out)
    with safetensors.safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"w": [1.0]}, r"tensor 'b' is only in .*first"),
        ({"w": [1.0], "b": [1.0], "c": [1.0]}, r"tensor 'c' is only in .*second"),
        ({"w": [1.0], "b": [1.0, 2.0]}, r"tensor 'b' is float32 \[1\] and float32 \[2\]"),
        ({"w": [1.0], "b": [1]}, r"tensor 'b' is float32 \[1\] and int64 \[1\]"),
        ({"w": [1.0], "b": [float("nan")]}, r"second\.safetensors: tensor 'b' is not finite"),
    ],
)
def test_weights_that_do_not_match_are_refused(write: Any, out: Path, second: Any, text: str) -> None:
    paths = [write("first", w=[1.0], b=[1.0]), write("second", **second)]
    with pytest.raises(CheckpointError, match=text):
        average_weights(paths, out)
    assert not list(out.parent.iterdir())


def test_nothing_is_ever_overwritten(write: Any, out: Path) -> None:
    paths = [write("a", w=[1.0]), write("b", w=[2.0])]
    for existing in (paths[0], out):
        if existing is out:
            out.symlink_to("nowhere")
        before = paths[0].read_bytes()
        with pytest.raises(CheckpointError, match="exists already: name another file"):
            average_weights(paths, existing)
        assert paths[0].read_bytes() == before
    assert os.path.lexists(out)


def test_what_cannot_be_meant_is_refused(write: Any, out: Path, tmp_path: Path) -> None:
    a = write("a", w=[1.0])
    with pytest.raises(UsageError, match="at least two"):
        average_weights([a], out)
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        average_weights([a, a], out.with_suffix(".pt"))
    with pytest.raises(CheckpointError, match="holds no averaged weights: leave out --ema"):
        average_weights([a, a], out, ema=True)
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file"):
        average_weights([a, a], tmp_path / "missing" / "x.safetensors")
    assert not list(out.parent.iterdir())
