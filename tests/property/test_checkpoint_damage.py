"""Checkpoints damaged at random: an error by name, or the original values; never anything else.

FOVEAL_FUZZ_CASES sets how many damages each test tries.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random

import google_crc32c
import pytest
import torch
from tests.property.damage import overwrite

from foveal.checkpoints.inspection import open_tensors, summarise, verify_stored
from foveal.checkpoints.layout import read_checkpoint, read_manifest, read_part, write_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.tensor_difference import compare_stored
from foveal.checkpoints.tensor_file import read_header, read_tensor_file
from foveal.errors import CheckpointError, DamagedCheckpointError

CASES = int(os.environ.get("FOVEAL_FUZZ_CASES", "5000"))
STATE = {"step": 7, "best": {"step": 7, "score": 0.25}}
TENSORS = {
    "model": {"weight": torch.tensor([[1.5, -2.0], [0.0, 3.0]]), "count": torch.tensor(7)},
    "ema": {"weight": torch.tensor([[1.0, -1.0], [0.5, 3.5]]), "count": torch.tensor(6)},
    "optimizer": {"weight": torch.tensor([1, 2, 3], dtype=torch.int16), "on": torch.tensor([True, False])},
}
# Of the same names, dtypes, shapes and sizes, and with no tensor the same: another step of the same run.
OTHER_STATE = {"step": 8, "best": {"step": 8, "score": 0.75}}
OTHER_TENSORS = {
    part: {name: ~tensor if tensor.dtype is torch.bool else tensor + 1 for name, tensor in content.items()}
    for part, content in TENSORS.items()
}
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "x", TENSORS, STATE)
    return tmp_path / "x"


@pytest.fixture
def other(tmp_path):
    write_checkpoint(tmp_path / "y", OTHER_TENSORS, OTHER_STATE)
    return tmp_path / "y"


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


def is_all_original(read):
    return read.state == STATE and all(is_original(read.tensors[part], part) for part in TENSORS)


def test_undamaged_control_loads(folder):
    assert is_all_original(read_checkpoint(folder))


def test_damage_of_any_file_is_named_and_nothing_wrong_is_loaded(folder, other):
    random_ = random.Random(1)
    originals = {name: (folder / name).read_bytes() for name in FILES}
    others = [*originals.values(), *((other / name).read_bytes() for name in FILES)]
    for case in range(CASES):
        name = FILES[case % len(FILES)]
        content = damaged(random_, originals[name], others)
        overwrite(folder / name, content)
        if content == originals[name]:
            assert is_all_original(read_checkpoint(folder))
            continue
        with pytest.raises(DamagedCheckpointError) as caught:
            read_checkpoint(folder)
        # The other checkpoint's manifest is a good one: what disagrees with it is named.
        names = FILES if content in others and name == "manifest.json" else [name]
        assert any(each in str(caught.value) for each in names), f"case {case}"
        assert "\n" not in str(caught.value)
        overwrite(folder / name, originals[name])
    assert is_all_original(read_checkpoint(folder))


def test_any_mixture_of_two_checkpoints_is_refused(folder, other):
    for chosen in range(1, 2 ** len(FILES) - 1):
        swapped = [name for number, name in enumerate(FILES) if chosen >> number & 1]
        for name in swapped:
            exchange(folder / name, other / name)
        for mixture in (folder, other):
            with pytest.raises(DamagedCheckpointError):
                read_checkpoint(mixture)
        for name in swapped:
            exchange(folder / name, other / name)
    assert is_all_original(read_checkpoint(folder))


def test_whole_checkpoint_in_the_place_of_another_step_is_not_used(folder, other):
    manager = CheckpointManager(folder.parent)
    other.rename(manager.path(7))
    with pytest.raises(DamagedCheckpointError, match="step is 8, but the folder is that of step 7"):
        manager.load(7)


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    """The whole way: the damaged one is moved aside, and the one before gives its original values."""
    random_ = random.Random(5)
    said = []
    manager = CheckpointManager(tmp_path / "run", said.append)
    manager.save(7, TENSORS, STATE)
    for _ in range(CASES // 50):
        manager.save(8, OTHER_TENSORS, OTHER_STATE)
        path = manager.path(8) / random_.choice(FILES)
        original = path.read_bytes()
        content = damaged(random_, original, [(manager.path(7) / path.name).read_bytes()])
        path.write_bytes(content)
        read = manager.load()
        if content == original:
            assert read.state == OTHER_STATE
        else:
            assert is_all_original(read)
            assert str(path.parent) in said[-1]
            assert manager.steps() == [7]
    assert is_all_original(manager.load(7))


def test_looking_into_what_is_damaged_ends_in_a_named_error_or_an_answer(folder):
    random_ = random.Random(6)
    path = folder.parent / "bare.safetensors"
    original = (folder / "optimizer.safetensors").read_bytes()
    path.write_bytes(original)
    answers = 0
    for _ in range(CASES):
        overwrite(path, damaged(random_, original, [original]))
        try:
            stored = open_tensors(path)
            summaries = list(summarise(stored, values=True))
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert verify_stored(path) == {path: str(error)}  # noqa: PT017
            continue
        answers += 1
        json.dumps([dataclasses.asdict(each) for each in summaries], allow_nan=False)
        compared = compare_stored(stored, stored)
        assert (compared.equal, compared.differences) == (len(stored.infos), ())
    assert answers or CASES < 100


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


def exchange(first, second):
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
