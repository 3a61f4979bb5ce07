"""What the variables of TensorFlow's checkpoints are for and hold, and how those of two differ."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from foveal.checkpoints.tensor_difference import TensorDifference
from foveal.checkpoints.tensorflow_inspection import Part, compare_checkpoints, parts, summarise_variables
from foveal.errors import DamagedCheckpointError, UsageError
from foveal.tensorflow.checkpoint import Checkpoint, save_checkpoint

TEXTS = np.array([b"one", b"", b"\x1b[2J"], object)


@pytest.fixture
def made(tmp_path):
    """Write a checkpoint of some tensors and open it."""

    def make(name, **tensors):
        save_checkpoint(tmp_path / name, tensors, state=False)
        return Checkpoint(tmp_path / name)

    return make


def summaries(checkpoint, pattern=None, *, values=False):
    return {each.name: each for _, each in summarise_variables(checkpoint, pattern, values=values)}


# ---- what they are for


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (
            "slots_adam",
            {
                "beta1_power": Part("optimizer scalar"),
                "beta2_power": Part("optimizer scalar"),
                "dense/bias": Part("variable"),
                "dense/bias/Adam": Part("slot", "dense/bias", "m"),
                "dense/bias/Adam_1": Part("slot", "dense/bias", "v"),
                "dense/kernel": Part("variable"),
                "dense/kernel/Adam": Part("slot", "dense/kernel", "m"),
                "dense/kernel/Adam_1": Part("slot", "dense/kernel", "v"),
                "global_step": Part("step"),
            },
        ),
        (
            "slots_momentum",
            {
                "dense/bias": Part("variable"),
                "dense/bias/Momentum": Part("slot", "dense/bias", "momentum"),
                "dense/kernel": Part("variable"),
                "dense/kernel/Momentum": Part("slot", "dense/kernel", "momentum"),
                "global_step": Part("step"),
            },
        ),
        (
            "object_graph",
            {
                "model/layers/0": Part("variable"),
                "model/layers/1": Part("variable"),
                "model/w": Part("variable"),
                "save_counter": Part("other"),
                "step": Part("step"),
            },
        ),
    ],
    ids=["slots_adam", "slots_momentum", "object_graph"],
)
def test_part_of_each_variable_is_known(fixtures, folder, expected):
    assert parts(Checkpoint(fixtures / folder)) == expected


def test_keras_optimizer_has_slots_a_step_and_a_scalar(fixtures):
    found = parts(Checkpoint(fixtures / "object_graph_keras"))
    assert found["optimizer/_iterations"] == Part("step")
    assert found["optimizer/_learning_rate"] == Part("optimizer scalar")
    slots = [(part.of, part.slot) for part in found.values() if part.role == "slot"]
    owners = [f"net/layer_with_weights-{layer}/{each}" for layer in "01" for each in ("bias", "kernel")]
    assert sorted(slots) == sorted((owner, slot) for owner in owners for slot in "mv")
    assert [name for name, part in found.items() if part.role == "variable"] == owners


def test_moving_averages_belong_to_their_variables(fixtures):
    found = parts(Checkpoint(fixtures / "cifar10_train"))
    name = "conv1/weights"
    assert found[f"{name}/ExponentialMovingAverage"] == Part("moving average", name)
    assert str(found[f"{name}/ExponentialMovingAverage"]) == "moving average of conv1/weights"
    assert sum(part.role == "moving average" for part in found.values()) == 10


def test_scalars_that_belong_to_no_optimizer_are_something_else(made):
    scalar, weight = np.float32(0), np.ones(2)
    found = parts(
        made(
            "a",
            **{"w": weight, "w/biased": weight, "w/local_step": scalar, "learning_rate": scalar},
            **{"a/global_step": np.int64(2), "global_step": np.int64(1), "good_steps": np.int64(1)},
        )
    )
    assert {name: part.role for name, part in found.items()} == {
        "a/global_step": "other",
        "global_step": "step",
        "good_steps": "other",
        "learning_rate": "optimizer scalar",
        "w": "variable",
        "w/biased": "other",
        "w/local_step": "other",
    }


def test_slot_of_a_step_is_a_slot(made):
    found = parts(made("a", step=np.int64(1), **{"Adam/m/step": np.int64(1)}))
    assert found == {"Adam/m/step": Part("slot", "step", "m"), "step": Part("step")}


def test_part_is_described_in_words():
    assert str(Part("slot", "dense/kernel", "m")) == "slot m of dense/kernel"
    assert str(Part("optimizer scalar")) == "optimizer scalar"


# ---- what they hold


@pytest.mark.parametrize("folder", ["dtypes_v1", "dtypes_v2"])
def test_statistics_of_every_dtype_are_those_of_the_expected_values(fixtures, folder):
    expected = np.load(fixtures / "dtypes_expected.npz")
    found = summaries(Checkpoint(fixtures / folder))
    assert len(found) > 120
    for name, summary in found.items():
        if name in ("text", "strings") or summary.dtype == "string":
            continue
        array = expected["bf16_as_f32" if name == "bf16" else name.replace("/", "|")]
        assert (summary.shape, summary.elements) == (array.shape, array.size), name
        numbers = array.reshape(-1).view(array.real.dtype).astype(np.float64)
        if numbers.size:
            measured = [summary.mean, summary.std, summary.min, summary.max, summary.norm]
            norm = np.linalg.norm(numbers)
            assert measured == pytest.approx(
                [numbers.mean(), numbers.std(), numbers.min(), numbers.max(), norm], rel=1e-12
            ), name
        else:
            assert summary.mean is None


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float8_e5m2",
        "float8_e4m3fn",
        "float16",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex128",
    ],
)
def test_dtype_that_numpy_or_torch_hardly_knows_is_summarised_and_compared(made, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    a, b = made("a", x=np.array([1, 0, 1, 0], kind)), made("b", x=np.array([1, 0, 0, 0], kind))
    summary = summaries(a, values=True)["x"]
    assert (summary.dtype, summary.nbytes, summary.max) == (dtype, 4 * kind.itemsize, 1.0)
    assert summary.zeros == pytest.approx(0.75 if dtype == "complex128" else 0.5)
    assert summary.values.startswith("[")
    (difference,) = compare_checkpoints(a, b).differences
    assert (difference.kind, difference.elements, difference.max_abs) == ("values", 1, 1.0)
    assert compare_checkpoints(a, a).equal == 1


def test_strings_have_a_size_and_no_statistics(made):
    summary = summaries(made("a", texts=TEXTS), values=True)["texts"]
    assert (summary.dtype, summary.shape, summary.elements, summary.nbytes) == ("string", (3,), 3, 7)
    assert summary.mean is summary.norm is summary.zeros is None
    assert summary.values == r"[b'one' b'' b'\x1b[2J']"


def test_long_string_is_shortened(made):
    summary = summaries(made("a", text=np.array(b"x" * 10_000, object)), values=True)["text"]
    assert summary.nbytes == 10_000
    assert summary.values == f"b'{'x' * 64}'..."


def test_values_are_given_only_if_asked_for(made):
    assert summaries(made("a", x=np.ones(2), texts=TEXTS))["x"].values is None


def test_filter_chooses_names_and_refuses_to_choose_none(fixtures):
    checkpoint = Checkpoint(fixtures / "slots_adam")
    assert list(summaries(checkpoint, "kernel/Adam")) == ["dense/kernel/Adam", "dense/kernel/Adam_1"]
    with pytest.raises(UsageError, match="'zzz'"):
        summaries(checkpoint, "zzz")
    with pytest.raises(UsageError, match="not a regular expression"):
        compare_checkpoints(checkpoint, checkpoint, "(")


def test_every_checksum_is_verified_of_what_is_shown_and_of_nothing_else(made, tmp_path):
    checkpoint = made("a", x=np.zeros(4, np.uint8), y=np.zeros(4, np.uint8))
    data = tmp_path / "a.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert list(summaries(checkpoint, "x")) == ["x"]
    with pytest.raises(DamagedCheckpointError, match="checksum of tensor 'y'"):
        summaries(checkpoint)


# ---- how they differ


def test_same_values_in_both_formats_are_equal(fixtures):
    compared = compare_checkpoints(Checkpoint(fixtures / "dtypes_v1"), Checkpoint(fixtures / "dtypes_v2"))
    assert {(each.name, each.kind) for each in compared.differences} == {
        (name, "only in the second") for name in ("bf16", "f16", "text", "u16")
    }
    assert compared.equal == 134


def test_each_kind_of_difference_is_told(made):
    a = made(
        "a", same=np.ones(2), v=np.array([1.0, 2.0]), d=np.float32([1, 2]), s=np.ones(2), first=np.ones(1)
    )
    b = made(
        "b", same=np.ones(2), v=np.array([1.0, 3.0]), d=np.int32([1, 3]), s=np.ones((2, 1)), last=np.ones(1)
    )
    compared = compare_checkpoints(a, b)
    assert compared.equal == 1
    assert {each.name: each for each in compared.differences} == {
        "v": TensorDifference("v", "values", ("float64 [2]", "float64 [2]"), 1, 1.0, 1 / 3),
        "d": TensorDifference("d", "dtype", ("float32 [2]", "int32 [2]"), 1, 1.0, 1 / 3),
        "s": TensorDifference("s", "shape", ("float64 [2]", "float64 [2, 1]")),
        "first": TensorDifference("first", "only in the first", ("float64 [1]", None)),
        "last": TensorDifference("last", "only in the second", (None, "float64 [1]")),
    }


def test_strings_are_compared_one_by_one_and_with_numbers(made):
    a, b = made("a", x=TEXTS), made("b", x=np.array([b"one", b"two", b""], object))
    (difference,) = compare_checkpoints(a, b).differences
    assert difference == TensorDifference("x", "values", ("string [3]", "string [3]"), 2)
    assert compare_checkpoints(a, a).differences == ()
    (difference,) = compare_checkpoints(a, made("c", x=np.ones(3))).differences
    assert difference == TensorDifference("x", "dtype", ("string [3]", "float64 [3]"), 3)
