from __future__ import annotations

import json
import os

import google_crc32c
import numpy as np
import pytest
import safetensors.torch
import torch

from foveal.checkpoints import layout
from foveal.checkpoints.layout import (
    read_checkpoint,
    read_manifest,
    read_part,
    read_state,
    verify_checkpoint,
    write_checkpoint,
)
from foveal.checkpoints.tensor_file import TensorFileSummary
from foveal.errors import CheckpointError, DamagedCheckpointError

STATE = {
    "step": 3,
    "best": {"accuracy": 0.5, "step": None},
    "logs": [["metrics.jsonl", 120]],
    "name": "ünï 😀",
}


def tensors():
    return {
        "model": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)},
        "ema": {"weight": torch.ones(2, 3, dtype=torch.bfloat16)},
        "optimizer": {},
    }


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "step-3", tensors(), STATE)
    return tmp_path / "step-3"


def sealed(document):
    """A manifest of any content, with a CRC that is right."""
    text = document if isinstance(document, str) else json.dumps(document)
    body = text[:-1].encode() + b',\n  "crc32c": "'
    return body + f"{google_crc32c.value(body):08x}".encode() + b'"\n}\n'


def manifest_without_crc(folder):
    document = json.loads((folder / "manifest.json").read_text())
    del document["crc32c"]
    return document


def damaged(folder, text):
    for read in (read_checkpoint, verify_checkpoint):
        with pytest.raises(DamagedCheckpointError, match=text) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


# ---- what is written


def test_checkpoint_comes_back(folder):
    read = read_checkpoint(folder)
    assert read.folder == folder
    assert read.state == STATE
    assert read.tensors.keys() == tensors().keys()
    for part, content in tensors().items():
        assert read.tensors[part].keys() == content.keys()
        for name, tensor in content.items():
            assert read.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(read.tensors[part][name], tensor)
    verify_checkpoint(folder)


def test_folder_holds_these_files_and_nothing_is_left_beside_it(folder):
    names = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in folder.parent.iterdir()] == ["step-3"]


def test_manifest_describes_every_file(folder):
    raw = (folder / "manifest.json").read_bytes()
    document = json.loads(raw)
    assert (document["format"], document["version"]) == ("foveal-checkpoint", 1)
    assert int(document["crc32c"], 16) == google_crc32c.value(raw[:-12])
    assert raw[-12:] == document["crc32c"].encode() + b'"\n}\n'
    assert set(document["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, entry in document["files"].items():
        content = (folder / name).read_bytes()
        assert entry["size"] == len(content)
        assert entry["crc32c"] == f"{google_crc32c.value(content):08x}"
    bias = google_crc32c.value(torch.arange(6.0).numpy().tobytes())
    assert document["files"]["model.safetensors"]["tensors"]["weight"] == f"{bias:08x}"


def test_state_is_sorted_indented_json(folder):
    assert (folder / "state.json").read_text() == json.dumps(STATE, sort_keys=True, indent=2) + "\n"


def test_manifest_of_the_smallest_checkpoint_is_as_specified(tmp_path):
    write_checkpoint(tmp_path / "x", {}, {})
    assert (tmp_path / "x" / "state.json").read_bytes() == b"{}\n"
    assert (tmp_path / "x" / "manifest.json").read_bytes() == (
        b'{\n  "format": "foveal-checkpoint",\n  "version": 1,\n  "files": {\n    "state.json": {\n'
        b'      "size": 3,\n      "crc32c": "f01f9d27"\n    }\n  },\n  "crc32c": "10b62c98"\n}\n'
    )


def test_library_reads_the_parts(folder):
    read = safetensors.torch.load_file(folder / "model.safetensors")
    assert torch.equal(read["weight"], torch.arange(6.0).view(2, 3))


def test_missing_parent_folders_are_made(tmp_path):
    write_checkpoint(tmp_path / "a" / "b" / "c", tensors(), STATE)
    verify_checkpoint(tmp_path / "a" / "b" / "c")


def test_leftovers_of_a_crash_are_removed(tmp_path):
    (tmp_path / ".x.tmp" / "deep").mkdir(parents=True)
    (tmp_path / ".x.tmp" / "model.safetensors").write_bytes(b"half")
    write_checkpoint(tmp_path / "x", tensors(), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / ".y.tmp").symlink_to("x")
    write_checkpoint(tmp_path / "y", tensors(), STATE)
    verify_checkpoint(tmp_path / "x")
    verify_checkpoint(tmp_path / "y")


def test_existing_folder_is_never_overwritten(folder):
    with pytest.raises(CheckpointError, match="exists already"):
        write_checkpoint(folder, {}, {})
    folder.with_name("link").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="exists already"):
        write_checkpoint(folder.with_name("link"), {}, {})
    assert read_state(folder) == STATE


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"metrics": {"loss": float("nan")}}, r"state\.metrics\.loss is nan"),
        ({"a": [0.0, float("-inf")]}, r"state\.a\[1\] is -inf"),
        ({"a": torch.zeros(1)}, r"state\.a is a Tensor"),
        ({"a": np.float32(1)}, r"state\.a is a float32"),
        ({"a": {1: 2}}, r"state\.a has the key 1"),
        ({"a": 10**5000}, "digits"),
    ],
)
def test_state_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, state, text):
    with pytest.raises(CheckpointError, match=text):
        write_checkpoint(tmp_path / "runs" / "x", tensors(), state)
    assert not list(tmp_path.iterdir())


def test_state_that_contains_itself_is_refused(tmp_path):
    state = {}
    state["self"] = state
    with pytest.raises(CheckpointError, match="recursion"):
        write_checkpoint(tmp_path / "x", {}, state)


def test_state_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_STATE_LIMIT", 100)
    with pytest.raises(CheckpointError, match="keep arrays as tensors"):
        write_checkpoint(tmp_path / "x", {}, {"a": "x" * 100})


@pytest.mark.parametrize("part", ["", "..", "a/b", "Model", "model.x"])
def test_part_name_that_is_no_plain_word_is_refused(tmp_path, part):
    with pytest.raises(CheckpointError, match="a part cannot be named"):
        write_checkpoint(tmp_path / "x", {part: {}}, {})
    assert not list(tmp_path.iterdir())


def test_tensor_that_cannot_be_stored_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="'bad'"):
        write_checkpoint(tmp_path / "x", tensors() | {"zzz": {"bad": torch.zeros(1, device="meta")}}, {})
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "write_synced", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "x", tensors(), {})
    assert not list(tmp_path.iterdir())


# ---- reading less than everything


def test_chosen_parts_are_read_and_the_others_not_touched(folder):
    (folder / "optimizer.safetensors").unlink()
    assert read_checkpoint(folder, ["model"]).tensors.keys() == {"model"}
    assert read_checkpoint(folder, []).state == STATE
    damaged(folder, r"optimizer\.safetensors: No such file")


def test_chosen_tensors_are_read(folder):
    read = read_part(folder, "model", names={"steps"})
    assert read == {"steps": torch.tensor(3)}


def test_manifest_is_read_once_when_given(folder):
    manifest = read_manifest(folder)
    assert manifest.parts == ["ema", "model", "optimizer"]
    assert isinstance(manifest.files["ema.safetensors"], TensorFileSummary)
    (folder / "manifest.json").unlink()
    assert read_state(folder, manifest) == STATE
    assert read_part(folder, "ema", manifest=manifest).keys() == {"weight"}


def test_unknown_part_is_named_with_those_there_are(folder):
    with pytest.raises(CheckpointError, match=r"no part 'emma'.*\(ema, model, optimizer\)"):
        read_checkpoint(folder, ["emma"])


def test_missing_checkpoint_is_not_called_damaged(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        read_checkpoint(tmp_path / "nothing")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_checkpoint_deleted_meanwhile_is_not_called_damaged(folder):
    manifest = read_manifest(folder)
    folder.rename(folder.with_name("gone"))
    for read in (lambda: read_state(folder, manifest), lambda: read_part(folder, "ema", manifest=manifest)):
        with pytest.raises(CheckpointError, match="No such file") as caught:
            read()
        assert not isinstance(caught.value, DamagedCheckpointError)


# ---- damage: one test each


def test_missing_manifest(folder):
    (folder / "manifest.json").unlink()
    damaged(folder, "has no manifest.json: it is unfinished or damaged")


def test_flipped_bit_anywhere_in_the_manifest(folder):
    path = folder / "manifest.json"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 32]) + content[position + 1 :])
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is damaged"):
            read_manifest(folder)


@pytest.mark.parametrize("length", [0, 3, 11, 12, 40])
def test_truncated_manifest(folder, length):
    os.truncate(folder / "manifest.json", length)
    damaged(folder, "manifest.json is damaged")


def test_manifest_with_bytes_after_it(folder):
    with (folder / "manifest.json").open("ab") as file:
        file.write(b"\n")
    damaged(folder, "manifest.json is damaged")


def test_manifest_beyond_the_limit(folder, monkeypatch):
    monkeypatch.setattr(layout, "_MANIFEST_LIMIT", 100)
    damaged(folder, "the limit is 100")


def test_version_of_the_future_asks_for_a_newer_foveal(folder):
    (folder / "manifest.json").write_bytes(sealed(manifest_without_crc(folder) | {"version": 2}))
    with pytest.raises(CheckpointError, match=r"version 2.*too old: install a newer one") as caught:
        read_manifest(folder)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, "format"),
        ({"version": 0}, "version is 0"),
        ({"version": True}, "version is True"),
        ({"version": "1"}, "version is '1'"),
        ({"files": []}, "list the files"),
        ({"files": {}}, "list the files"),
        ({"files": {"state.json": {}, "manifest.json": {}}}, "list the files"),
        ({"files": {"state.json": []}}, "no size"),
        ({"files": {"state.json": {"crc32c": "00000000"}}}, "no size"),
        ({"files": {"state.json": {"size": -1, "crc32c": "00000000"}}}, "no size"),
        ({"files": {"state.json": {"size": True, "crc32c": "00000000"}}}, "no size"),
        ({"files": {"state.json": {"size": 1.0, "crc32c": "00000000"}}}, "no size"),
        ({"files": {"state.json": {"size": 1}}}, "CRC None"),
        ({"files": {"state.json": {"size": 1, "crc32c": 0}}}, "CRC 0"),
        ({"files": {"state.json": {"size": 1, "crc32c": "0"}}}, "CRC '0'"),
        ({"files": {"state.json": {"size": 1, "crc32c": "0000000G"}}}, "CRC"),
    ],
)
def test_manifest_that_was_never_ours(folder, changes, text):
    (folder / "manifest.json").write_bytes(sealed(manifest_without_crc(folder) | changes))
    damaged(folder, text)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.json", "a/b.json", "x.pt", "x", "X.json", "x.json\n"]
)
def test_manifest_with_a_file_name_that_is_none_of_ours(folder, name):
    document = manifest_without_crc(folder)
    document["files"][name] = {"size": 1, "crc32c": "00000000", "tensors": {}}
    (folder / "manifest.json").write_bytes(sealed(document))
    damaged(folder, "it lists a file")


@pytest.mark.parametrize("listed", [None, [], {"weight": 1}, {"weight": "123"}])
def test_manifest_without_the_tensors_of_a_part(folder, listed):
    document = manifest_without_crc(folder)
    document["files"]["model.safetensors"]["tensors"] = listed
    (folder / "manifest.json").write_bytes(sealed(document))
    damaged(folder, "manifest.json is damaged")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":2}', "twice"),
        ('{"a":NaN}', "NaN"),
        ('{"a":' + "[" * 50_000 + "]" * 50_000 + "}", "nested too deep"),
        ("{,}", "damaged"),
    ],
)
def test_manifest_that_is_not_strict_json(folder, text, reason):
    (folder / "manifest.json").write_bytes(sealed(text))
    damaged(folder, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "not an object"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e400}', "too large"),
        (b'{"a":1,"a":1}', "twice"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deep"),
        (b'{"a":"\xff"}', "utf-8"),
        (b"", "damaged"),
    ],
)
def test_state_that_is_not_a_strict_json_object(folder, content, reason):
    (folder / "state.json").write_bytes(content)
    document = manifest_without_crc(folder)
    document["files"]["state.json"] = {"size": len(content), "crc32c": f"{google_crc32c.value(content):08x}"}
    (folder / "manifest.json").write_bytes(sealed(document))
    damaged(folder, reason)


def test_state_changed_after_it_was_written(folder):
    content = (folder / "state.json").read_bytes()
    (folder / "state.json").write_bytes(content.replace(b'"step": 3', b'"step": 4'))
    damaged(folder, "state.json is damaged")


def test_state_of_another_size(folder):
    with (folder / "state.json").open("ab") as file:
        file.write(b" ")
    damaged(folder, "state.json is damaged")


def test_state_file_beyond_the_limit(folder):
    os.truncate(folder / "state.json", 65 << 20)
    damaged(folder, "the limit is")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    damaged(folder, f"{name}: No such file")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_link_in_place_of_a_file(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    damaged(folder, f"cannot read .*{name}")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    damaged(folder, name)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_pipe_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    damaged(folder, "not a regular file")


def test_tensor_changed_after_it_was_written(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    damaged(folder, "bytes of tensor 'weight' are not those that were written")
    assert read_checkpoint(folder, ["ema"]).state == STATE


def test_part_swapped_with_another(folder):
    (folder / "model.safetensors").write_bytes((folder / "ema.safetensors").read_bytes())
    damaged(folder, "model.safetensors")


def test_file_of_another_checkpoint(folder):
    other = folder.with_name("step-4")
    changed = tensors()
    changed["model"]["steps"] += 1
    write_checkpoint(other, changed, STATE)
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    damaged(folder, "tensor 'steps'")


def test_crc_of_the_whole_file_is_verified(folder):
    document = manifest_without_crc(folder)
    document["files"]["model.safetensors"]["crc32c"] = "00000000"
    (folder / "manifest.json").write_bytes(sealed(document))
    damaged(folder, "model.safetensors")
