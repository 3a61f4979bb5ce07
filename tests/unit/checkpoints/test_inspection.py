from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from foveal.checkpoints import inspection
from foveal.checkpoints.inspection import (
    TensorSummary,
    find_checkpoint,
    list_checkpoints,
    open_tensors,
    summarise,
    verify_stored,
)
from foveal.checkpoints.layout import write_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.tensor_difference import compare_stored
from foveal.errors import CheckpointError, DamagedCheckpointError, RunError, UsageError

TENSORS = {
    "model": {"conv.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)},
    "ema": {"conv.weight": torch.ones(2, 3)},
    "optimizer": {"momentum/conv.weight": torch.zeros(2, 3)},
}


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    made = CheckpointManager(tmp_path / "run" / "checkpoints")
    for step, score in ((10, 0.9), (20, 0.5)):
        made.save(step, TENSORS, {"step": step, "score": score})
    return made


@pytest.fixture
def bare(tmp_path: Path):
    def write(tensors: dict[str, torch.Tensor], name: str = "bare.safetensors") -> Path:
        safetensors.torch.save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


# ---- finding


def test_checkpoint_is_found_by_its_run_by_the_folder_of_all_and_by_itself(
    manager: CheckpointManager,
) -> None:
    run = manager.folder.parent
    assert find_checkpoint(run) == find_checkpoint(manager.folder) == manager.path(20)
    assert find_checkpoint(run, "best") == find_checkpoint(run, 10) == manager.path(10)
    assert find_checkpoint(manager.path(10)) == manager.path(10)
    shutil.copytree(manager.path(10), run.parent / "mine")
    assert find_checkpoint(run.parent / "mine") == run.parent / "mine"


def test_what_is_no_checkpoint_is_named_and_said_what_is_wanted(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"")
    for name, text in (
        ("nothing", "there is nothing: name a run, a checkpoint or a"),
        ("empty", "neither a checkpoint nor a run with one: name a run"),
        ("weights.pt", "not a .safetensors file: name one"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: {re.escape(text)}"):
            open_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match="no checkpoint of step 11; there are: 10, 20"):
        find_checkpoint(manager.folder.parent, 11)
    (tmp_path / "step-000000001").mkdir()
    with pytest.raises(DamagedCheckpointError, match=r"has no manifest\.json"):
        open_tensors(tmp_path / "step-000000001")


def test_link_in_place_of_a_checkpoint_or_a_part_is_refused(
    tmp_path: Path, manager: CheckpointManager
) -> None:
    part = manager.path(20) / "model.safetensors"
    part.rename(tmp_path / "moved.safetensors")
    part.symlink_to(tmp_path / "moved.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors"):
        open_tensors(manager.path(20))
    manager.path(30).symlink_to(manager.path(10))
    with pytest.raises(DamagedCheckpointError, match="is a link"):
        open_tensors(manager.folder.parent)


def test_names_in_a_checkpoint_begin_with_the_part(manager: CheckpointManager) -> None:
    stored = open_tensors(manager.folder.parent)
    assert set(stored.infos) == {
        "model/conv.weight",
        "model/steps",
        "ema/conv.weight",
        "optimizer/momentum/conv.weight",
    }
    read = stored.read(["model/steps", "optimizer/momentum/conv.weight"])
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "model/steps": 3,
        "optimizer/momentum/conv.weight": [[0.0] * 3] * 2,
    }
    optimizer = stored.of_part("optimizer")
    assert list(optimizer.infos) == list(optimizer.read(["momentum/conv.weight"])) == ["momentum/conv.weight"]
    assert stored.of_part("nothing").infos == {}


def test_what_is_read_of_a_checkpoint_is_verified(manager: CheckpointManager) -> None:
    path = manager.path(20) / "ema.safetensors"
    stored = open_tensors(manager.path(20))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert stored.read(["model/steps"])["model/steps"] == 3
    with pytest.raises(DamagedCheckpointError, match=r"ema\.safetensors: .*'conv\.weight'"):
        stored.read(["ema/conv.weight"])
    assert manager.steps() == [10, 20]


def test_tensors_are_read_a_few_at_a_time(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_GROUP", 100)
    path = bare({f"t{number}": torch.zeros(size) for number, size in enumerate((10, 15, 60, 1, 1))})
    groups = list(open_tensors(path).in_groups(["t0", "t1", "t2", "t3", "t4"]))
    assert groups == [["t0", "t1"], ["t2"], ["t3", "t4"]]
    assert [each.name for each in summarise(open_tensors(path))] == ["t0", "t1", "t2", "t3", "t4"]


# ---- summaries


def summary_of(bare: Any, tensor: torch.Tensor, **options: Any) -> TensorSummary:
    (found,) = summarise(open_tensors(bare({"x": tensor})), **options)
    return found


def test_summary_is_that_of_numpy(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK", 1000)
    values = np.random.default_rng(0).normal(5, 2, (70, 101)).astype(np.float32)
    values[3, :7] = 0
    found, wide = summary_of(bare, torch.from_numpy(values)), values.astype(np.float64)
    assert (found.dtype, found.shape, found.elements, found.nbytes) == ("float32", (70, 101), 7070, 28280)
    numbers = (found.mean, found.std, found.min, found.max, found.norm)
    expected = (wide.mean(), wide.std(), wide.min(), wide.max(), np.linalg.norm(wide))
    assert numbers == pytest.approx(expected, rel=1e-12)
    assert (found.zeros, found.nan, found.inf, found.values) == (7 / 7070, 0, 0, None)


def test_numbers_that_are_none_are_counted_and_left_out(bare: Any) -> None:
    found = summary_of(bare, torch.tensor([1.0, math.nan, math.inf, -math.inf, 0.0, 5.0]))
    assert (found.nan, found.inf, found.mean, found.min, found.max) == (1, 2, 2.0, 0.0, 5.0)
    assert found.zeros == 1 / 6
    found = summary_of(bare, torch.full((3,), math.nan))
    assert (found.nan, found.mean, found.std, found.min, found.norm) == (3, None, None, None, None)


@pytest.mark.parametrize(
    ("tensor", "mean", "high"),
    [
        (torch.tensor([True, False, True, True]), 0.75, 1),
        (torch.tensor([1, 3], dtype=torch.uint64), 2, 3),
        (torch.tensor([1, 3], dtype=torch.uint16), 2, 3),
        (torch.tensor([-1, 3], dtype=torch.int8), 1, 3),
        (torch.tensor([1.5, 2.5], dtype=torch.bfloat16), 2, 2.5),
        (torch.tensor([1.5, 2.5], dtype=torch.float16), 2, 2.5),
        (torch.tensor([1 + 3j]), 2, 3),
        (torch.tensor(7), 7, 7),
        (torch.zeros(0, 3), None, None),
        (torch.tensor([1e300, 1e308], dtype=torch.float64), 1e300 / 2 + 1e308 / 2, 1e308),
    ],
)
def test_every_dtype_and_shape_has_a_summary_that_json_can_hold(
    bare: Any, tensor: torch.Tensor, mean: float | None, high: float | None
) -> None:
    found = summary_of(bare, tensor, values=True)
    assert found.mean == (None if mean is None else pytest.approx(mean))
    assert found.max == high
    assert found.values is not None
    json.dumps([found.std, found.norm, found.zeros], allow_nan=False)


def test_values_are_shortened_as_numpy_does(bare: Any) -> None:
    few = summary_of(bare, torch.tensor([0.5, 1.5], dtype=torch.bfloat16), values=True)
    assert few.values == "[0.5 1.5]"
    many = summary_of(bare, torch.arange(2000), values=True)
    assert many.values == "[   0    1    2 ... 1997 1998 1999]"


def test_filter_is_searched_in_names(manager: CheckpointManager) -> None:
    stored = open_tensors(manager.path(20))
    assert [each.name for each in summarise(stored, "^model/.*weight$")] == ["model/conv.weight"]
    with pytest.raises(UsageError, match="no tensor's name matches 'bias'"):
        list(summarise(stored, "bias"))
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        list(summarise(stored, "("))


# ---- differences


def test_equal_checkpoints_do_not_differ(manager: CheckpointManager) -> None:
    result = compare_stored(open_tensors(manager.path(10)), open_tensors(manager.path(20)))
    assert (result.equal, result.differences) == (4, ())


def test_differences_are_named_and_measured(bare: Any) -> None:
    nan = torch.tensor([math.nan, 1.0])
    common = {"same": torch.ones(3), "nan": nan}
    a = common | {
        "values": torch.tensor([1.0, 2.0, 4.0]),
        "shape": torch.zeros(2),
        "dtype": torch.ones(2),
        "a": torch.zeros(1),
        "zero": torch.tensor([0.0]),
        "lost": torch.tensor([1.0]),
    }
    b = common | {
        "values": torch.tensor([1.0, 3.0, 3.0]),
        "shape": torch.zeros(3),
        "dtype": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "b": torch.zeros(1),
        "zero": torch.tensor([-0.0]),
        "lost": torch.tensor([math.inf]),
    }
    result = compare_stored(open_tensors(bare(a, "a.safetensors")), open_tensors(bare(b, "b.safetensors")))
    assert result.equal == 2
    found = {
        each.name: (each.kind, each.elements, each.max_abs, each.max_relative) for each in result.differences
    }
    assert found == {
        "values": ("values", 2, 1.0, pytest.approx(1 / 3)),
        "shape": ("shape", None, None, None),
        "dtype": ("dtype", 1, 1.0, 0.5),
        "a": ("only in the first", None, None, None),
        "b": ("only in the second", None, None, None),
        "zero": ("values", 1, 0.0, 0.0),
        "lost": ("values", 1, None, None),
    }
    (shape,) = (each for each in result.differences if each.name == "shape")
    assert shape.forms == ("float32 [2]", "float32 [3]")


def test_difference_in_any_piece_of_a_large_tensor_is_found(
    bare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.checkpoints.tensor_difference.CHUNK", 10)
    a, b = torch.zeros(5, 7), torch.zeros(5, 7)
    b[0, 0], b[4, 6] = 1.0, 3.0
    stored = [open_tensors(bare({"x": each}, f"{name}.safetensors")) for name, each in (("a", a), ("b", b))]
    (found,) = compare_stored(*stored).differences
    assert (found.elements, found.max_abs) == (2, 3.0)


def test_file_is_compared_with_the_weights_of_a_checkpoint(bare: Any, manager: CheckpointManager) -> None:
    model = open_tensors(bare(TENSORS["model"]))
    assert compare_stored(model, open_tensors(manager.path(10))).equal == 2
    assert compare_stored(open_tensors(manager.path(10)), model, "steps").equal == 1


# ---- verifying and listing


def test_run_checkpoint_and_file_are_verified_and_nothing_is_moved(
    bare: Any, manager: CheckpointManager
) -> None:
    path = manager.path(10) / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    for place in (manager.folder.parent, manager.folder):
        found = verify_stored(place)
        assert list(found) == [manager.path(10), manager.path(20)]
        assert "ema.safetensors" in str(found[manager.path(10)])
        assert found[manager.path(20)] is None
    assert list(verify_stored(manager.path(20)).values()) == [None]
    assert "ema.safetensors" in str(verify_stored(manager.path(10))[manager.path(10)])
    assert manager.steps() == [10, 20]
    shutil.copytree(manager.path(20), manager.path(30))
    assert "step is 20" in str(verify_stored(manager.path(30))[manager.path(30)])
    copy = Path(shutil.copytree(manager.path(20), manager.folder / "mine"))
    assert verify_stored(copy) == {copy: None}
    file = bare({"x": torch.ones(3)})
    assert verify_stored(file) == {file: None}
    file.write_bytes(file.read_bytes()[:-1])
    assert "reaches beyond the end" in str(verify_stored(file)[file])
    with pytest.raises(CheckpointError, match="there is nothing"):
        verify_stored(manager.folder / "nothing")


def test_list_says_why_each_is_kept(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    manager = CheckpointManager(run / "checkpoints")
    manager.keep(20)
    (manager.path(30) / "manifest.json").write_bytes(b"")
    (manager.folder / "damaged" / "step-000000010").mkdir(parents=True)
    listing = list_checkpoints(run, lambda _name: True)
    first, second, third = listing.checkpoints
    assert (first.step, first.kept, first.problem) == (20, ("one of the last 3", "kept by name"), None)
    assert first.nbytes == sum(path.stat().st_size for path in manager.path(20).iterdir())
    assert (second.step, second.metrics, second.kept) == (30, {}, ())
    assert "manifest.json is damaged" in str(second.problem)
    assert (third.step, third.problem) == (40, None)
    assert set(third.metrics) >= {"accuracy", "loss"}
    assert "the best by accuracy" in third.kept
    assert listing.damaged == ("step-000000010",)


def test_only_a_run_can_be_listed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        list_checkpoints(tmp_path, lambda _name: True)


def test_tensor_of_any_name_can_be_looked_at(tmp_path: Path) -> None:
    name = "a/b\x1b[31m\n../☃"
    write_checkpoint(tmp_path / "x", {"model": {name: torch.ones(1)}}, {})
    (found,) = summarise(open_tensors(tmp_path / "x"))
    assert found.name == f"model/{name}"
