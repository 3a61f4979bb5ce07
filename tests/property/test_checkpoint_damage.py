"""Checkpoints damaged at random: an error by name, or the original values; never anything else.

FOVEAL_FUZZ_CASES sets how many damages each test tries.
"""

from __future__ import annotations

import json
import os
import random

import google_crc32c
import pytest
import torch

from foveal.checkpoints.layout import read_checkpoint, read_manifest, read_part, write_checkpoint
from foveal.checkpoints.tensor_file import read_header, read_tensor_file
from foveal.errors import CheckpointError, DamagedCheckpointError

CASES = int(os.environ.get("FOVEAL_FUZZ_CASES", "5000"))
STATE = {"step": 7, "best": {"accuracy": 0.25}}
TENSORS = {
    "model": {"weight": torch.tensor([[1.5, -2.0], [0.0, 3.0]]), "count": torch.tensor(7)},
    "ema": {"weight": torch.tensor([[1.0, -1.0], [0.5, 3.5]]), "count": torch.tensor(6)},
    "optimizer": {"weight": torch.tensor([1, 2, 3], dtype=torch.int16), "on": torch.tensor([True, False])},
}
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "x", TENSORS, STATE)
    return tmp_path / "x"


def damaged(random_, content, others):
    """One of the ways in which a file comes to differ from what was written."""
    content = bytearray(content)
    kind = random_.choice(["bit", "bytes", "truncate", "extend", "swap", "zero", "cut", "insert", "repeat"])
    start = random_.randrange(len(content) + 1)
    length = random_.randint(1, 16)
    if kind == "bit":
        content[start % len(content)] ^= 1 << random_.randrange(8)
    elif kind == "bytes":
        content[start : start + length] = random_.randbytes(len(content[start : start + length]))
    elif kind == "truncate":
        del content[start:]
    elif kind == "extend":
        content += random_.randbytes(length)
    elif kind == "swap":
        content = bytearray(random_.choice(others))
    elif kind == "zero":
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "cut":
        del content[start : start + length]
    elif kind == "insert":
        content[start:start] = random_.randbytes(length)
    else:
        content[start:start] = content[start : start + length]
    return bytes(content)


def is_original(tensors, part):
    original = TENSORS[part]
    return tensors.keys() == original.keys() and all(
        tensors[name].dtype == original[name].dtype and torch.equal(tensors[name], original[name])
        for name in original
    )


def test_undamaged_control_loads(folder):
    read = read_checkpoint(folder)
    assert read.state == STATE
    assert all(is_original(read.tensors[part], part) for part in TENSORS)


def test_damage_of_any_file_is_named_and_nothing_wrong_is_loaded(folder):
    random_ = random.Random(1)
    originals = {name: (folder / name).read_bytes() for name in FILES}
    for case in range(CASES):
        name = FILES[case % len(FILES)]
        content = damaged(random_, originals[name], list(originals.values()))
        overwrite(folder / name, content)
        if content == originals[name]:
            assert read_checkpoint(folder).state == STATE
            continue
        with pytest.raises(DamagedCheckpointError) as caught:
            read_checkpoint(folder)
        assert name in str(caught.value), f"case {case}"
        overwrite(folder / name, originals[name])
    assert read_checkpoint(folder).state == STATE


def test_two_files_exchanged_are_named(folder):
    for first in FILES:
        for second in FILES[: FILES.index(first)]:
            exchange(folder / first, folder / second)
            with pytest.raises(DamagedCheckpointError):
                read_checkpoint(folder)
            exchange(folder / first, folder / second)
    assert read_checkpoint(folder).state == STATE


def test_single_tensors_read_from_a_damaged_part_have_the_original_values(folder):
    random_ = random.Random(2)
    path, manifest = folder / "model.safetensors", read_manifest(folder)
    original, loaded = path.read_bytes(), 0
    for _ in range(CASES):
        overwrite(path, damaged(random_, original, [original]))
        try:
            read = read_part(folder, "model", names={"weight"}, manifest=manifest)
        except DamagedCheckpointError:
            continue
        loaded += 1
        assert torch.equal(read["weight"], TENSORS["model"]["weight"])
    assert loaded or CASES < 100


def test_damaged_tensor_file_without_known_checksums_is_read_or_named(folder):
    """Nothing tells changed values then, but the structure must hold: no other error, no odd tensor."""
    random_ = random.Random(3)
    path = folder / "optimizer.safetensors"
    original = path.read_bytes()
    for _ in range(CASES):
        overwrite(path, damaged(random_, original, [original]))
        try:
            tensors = read_tensor_file(path)
        except DamagedCheckpointError:
            continue
        assert sum(tensor.nbytes for tensor in tensors.values()) < len(original)
        header = read_header(path)
        assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }


def test_hostile_manifest_with_the_right_checksum_is_read_or_named(folder):
    random_ = random.Random(4)
    path = folder / "manifest.json"
    body = path.read_bytes()[:-12]
    for _ in range(CASES):
        changed = body
        for _ in range(random_.randint(1, 2)):
            changed = damaged(random_, changed, [body])[: 2 * len(body)] or b"{"
        if random_.random() < 0.9:  # so that most get beyond the first check
            changed = changed.removesuffix(body[-14:]) + body[-14:]
        overwrite(path, changed + f"{google_crc32c.value(changed):08x}".encode() + b'"\n}\n')
        try:
            read = read_checkpoint(folder)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert read.state == STATE
        assert all(is_original(read.tensors[part], part) for part in read.tensors)


def test_hostile_header_values_are_named(folder):
    """Valid JSON with every field replaced by every odd value."""
    path = folder / "optimizer.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    odd = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**4000, 1.5, "", "F32", "U8", [], [0], [0, 0], [0, 2]]
    odd += [[-1], [2**62] * 2, [0, 2**70], [[]], {}, {"a": 1}, [0] * 100, [1] * 65, [2, 0], ["0", "2"]]
    for name in header:
        for field in header[name]:
            for value in odd:
                changed = header | {name: header[name] | {field: value}}
                text = json.dumps(changed).encode()
                overwrite(path, len(text).to_bytes(8, "little") + text + data)
                try:
                    tensors = read_tensor_file(path)
                except DamagedCheckpointError:
                    continue
                assert tensors[name].nbytes == TENSORS["optimizer"][name].nbytes


def overwrite(path, content):
    """Like ``write_bytes``, without the flush to the disk that some file systems add to a truncation to 0."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def exchange(first, second):
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
