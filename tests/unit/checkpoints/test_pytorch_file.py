"""PyTorch files from anywhere: nothing of them runs, nothing unpacks to more than its size."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from foveal.checkpoints.pytorch_file import read_state_dict
from foveal.errors import CheckpointError


class Command:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def archive(path, records, compression=zipfile.ZIP_STORED):
    """A zip file such as PyTorch's, of these contents."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def records_of(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {name: file.read(name) for name in file.namelist()}


def refused(path, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"w": x}, lambda x: {"state_dict": {"w": x}}])
def test_code_in_a_file_is_named_and_does_not_run(tmp_path, legacy, wrap):
    path = tmp_path / "evil.pt"
    torch.save(wrap(Command(tmp_path / "ran")), path, _use_new_zipfile_serialization=not legacy)
    refused(path, "would run code of '(posix|nt).mkdir'")
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_with_code_does_not_run(tmp_path):
    for protocol in range(6):
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(Command(tmp_path / "ran"), protocol))
        refused(tmp_path / "evil.pt", "evil")
        assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_by_the_classes_it_needs(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", r"torch\.nn\.modules\.linear\.Linear.*save it anew")


@pytest.mark.parametrize(
    "content", [{"a": 1}, {}, [torch.zeros(2)], torch.zeros(2), {0: torch.zeros(2)}, {"model": 3}]
)
def test_what_holds_no_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "no tensors by name")


def test_tensors_without_plain_values_are_refused(tmp_path):
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"w": tensor}, tmp_path / "odd.pt")
        refused(tmp_path / "odd.pt", "tensor 'w' is sparse, quantized or without data")


def test_numbers_beside_the_tensors_are_passed_over(tmp_path):
    torch.save({"w": torch.ones(2), "step": 3, "_extra_state": None}, tmp_path / "some.pt")
    tensors, keys = read_state_dict(tmp_path / "some.pt")
    assert (tensors.keys(), keys) == ({"w"}, ())


def test_parameters_come_without_their_gradients(tmp_path):
    torch.save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "some.pt")
    tensors, _ = read_state_dict(tmp_path / "some.pt")
    assert not tensors["w"].requires_grad


class TestBombs:
    """Small files that would be large in memory."""

    def compressed(self, path):
        records = records_of({"w": torch.zeros(1 << 26)})  # 256 MiB
        return archive(path, records, zipfile.ZIP_DEFLATED)

    def bytearray(self, path):
        pickled = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x1f\x85R."  # 512 MiB
        return archive(path, {"a/data.pkl": pickled, "a/version": b"3\n"})

    def beyond_its_record(self, path):
        records = records_of({"w": torch.zeros(4)})
        name = next(name for name in records if name.endswith("data.pkl"))
        longer = records[name].replace(b"K\x04", b"J\x00\x00\x00\x40")  # 4 GiB
        assert longer != records[name]
        return archive(path, records | {name: longer})

    def test_are_refused_before_they_unfold(self, tmp_path):
        kinds = (self.compressed, self.bytearray, self.beyond_its_record)
        paths = [kind(tmp_path / f"{kind.__name__}.pt") for kind in kinds]
        assert all(path.stat().st_size < 1 << 20 for path in paths)
        program = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from foveal.checkpoints.pytorch_file import read_state_dict\n"
            "from foveal.errors import CheckpointError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "for path in sys.argv[1:]:\n"
            "    try: read_state_dict(Path(path))\n"
            "    except CheckpointError as error: print(error, file=sys.stderr)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        command = [sys.executable, "-c", program, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(done.stderr.splitlines()) == len(paths), done.stderr
        unit = 1 if sys.platform == "darwin" else 1 << 10
        assert int(done.stdout) * unit < 64 << 20

    def test_records_that_share_their_bytes_are_refused(self, tmp_path):
        path = archive(tmp_path / "bomb.pt", {"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(1 << 16)})
        with zipfile.ZipFile(path, "a") as file:
            file.filelist += [info for info in file.infolist() if info.filename == "a/data/0"] * 20
            file._didModify = True
        refused(path, "shared records")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_gives_its_tensors_or_a_named_error(tmp_path, legacy):
    path = tmp_path / "damaged.pt"
    torch.save(
        {"w": torch.arange(6.0), "n": torch.tensor(3)}, path, _use_new_zipfile_serialization=not legacy
    )
    whole, draw = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(300):
        content = bytearray(whole)
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        for _ in range(draw.randrange(3)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            outcomes.add(type(read_state_dict(path)))
        except CheckpointError:
            outcomes.add(CheckpointError)
    assert outcomes == {tuple, CheckpointError}
    path.write_bytes(whole)
    assert read_state_dict(path)[0].keys() == {"w", "n"}
