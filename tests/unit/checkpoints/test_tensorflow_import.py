"""TensorFlow's checkpoints under a network's names: weights, averages, slots, the step."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from foveal.checkpoints.tensorflow_import import import_tensors, import_training, is_tensorflow
from foveal.errors import CheckpointError
from foveal.tensorflow import Checkpoint, load_name_map, read_name_map, save_checkpoint

DENSE = """
[tensors]
"logits.weight" = { variable = "dense/kernel", layout = "IO" }
"logits.bias" = { variable = "dense/bias" }
"""
SLOTS = {
    "momentum": ("Momentum", {"momentum_buffer": "Momentum"}),
    "adam": ("Adam", {"exp_avg": "Adam", "exp_avg_sq": "Adam_1"}),
    "rmsprop": ("RMSProp", {"average": "RMSProp", "momentum": "RMSProp_1"}),
}


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.toml"
    path.write_text(DENSE)
    return read_name_map(path)


class TestIsTensorflow:
    def test_of_a_prefix_a_folder_and_a_v1_file(self, fixtures):
        assert is_tensorflow(fixtures / "mnist_convnet_model/model.ckpt-20000")
        assert is_tensorflow(fixtures / "mnist_convnet_model")
        assert is_tensorflow(fixtures / "object_graph_keras")  # no state file: the index tells
        assert is_tensorflow(fixtures / "dtypes_v1/model.ckpt-300")

    def test_of_the_pattern_of_a_v1_checkpoint_in_several_files_and_of_a_saved_model(
        self, fixtures, tmp_path
    ):
        for shard in range(2):
            shutil.copy(fixtures / "dtypes_v1/model.ckpt-300", tmp_path / f"m-{shard:05}-of-00002")
        assert is_tensorflow(tmp_path / "m-?????-of-00002")
        save_checkpoint(tmp_path / "saved/variables/variables", {"w": np.zeros(1)}, state=False)
        assert is_tensorflow(tmp_path / "saved")

    def test_not_of_a_run_nor_of_other_files(self, trained_run, tmp_path):
        (tmp_path / "text").write_text("abc")
        (tmp_path / "empty").touch()
        assert not any(map(is_tensorflow, (trained_run, trained_run / "recipe.toml", tmp_path)))
        assert not any(is_tensorflow(tmp_path / name) for name in ("text", "empty", "none"))


class TestWeights:
    def test_have_the_networks_names_and_layout(self, fixtures):
        stored = Checkpoint(fixtures / "mnist_convnet_model")
        imported = import_tensors(stored, load_name_map("mnist_cnn"))
        kernel = stored.get("conv2d_1/kernel")
        assert np.array_equal(imported.tensors["conv2.weight"], kernel.transpose(3, 2, 0, 1))
        assert np.array_equal(imported.tensors["dense.weight"], stored.get("dense/kernel").T)
        assert np.array_equal(imported.tensors["logits.bias"], stored.get("dense_1/bias"))
        assert (len(imported.tensors), imported.missing, imported.unused) == (8, (), ())
        assert all(tensor.is_contiguous() for tensor in imported.tensors.values())

    def test_are_averages_if_asked_for(self, fixtures):
        stored, names = Checkpoint(fixtures / "cifar10_train"), load_name_map("cifar10_cnn")
        raw, averaged = (import_tensors(stored, names, ema=ema).tensors for ema in (False, True))
        assert np.array_equal(raw["local4.bias"], stored.get("local4/biases"))
        assert np.array_equal(averaged["local4.bias"], stored.get("local4/biases/ExponentialMovingAverage"))
        assert not np.array_equal(raw["local4.bias"], averaged["local4.bias"])

    def test_averages_are_refused_where_there_are_none(self, fixtures):
        with pytest.raises(CheckpointError, match="has no moving averages"):
            import_tensors(Checkpoint(fixtures / "mnist_convnet_model"), load_name_map("mnist_cnn"), ema=True)

    def test_what_is_missing_and_what_is_left_over_is_named(self, tmp_path, dense):
        save_checkpoint(tmp_path / "other", {"dense/bias": np.zeros(3, np.float32), "dense_1/bias": [1.0]})
        imported = import_tensors(Checkpoint(tmp_path / "other"), dense)
        assert [*imported.tensors] == ["logits.bias"]
        assert (imported.missing, imported.unused) == (("logits.weight",), ("dense_1/bias",))

    def test_a_variable_of_another_rank_is_refused_in_one_line(self, tmp_path, dense):
        save_checkpoint(tmp_path / "odd", {"dense/kernel": np.zeros((1, 4, 3), np.float32)})
        with pytest.raises(CheckpointError) as caught:
            import_tensors(Checkpoint(tmp_path / "odd"), dense)
        for words in ("odd", "dense/kernel", "logits.weight", "[1, 4, 3]"):
            assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_text_is_refused_in_one_line(self, tmp_path, dense):
        save_checkpoint(tmp_path / "text", {"dense/bias": np.array([b"a"], object)})
        with pytest.raises(CheckpointError, match="dense/bias"):
            import_tensors(Checkpoint(tmp_path / "text"), dense)


class TestTraining:
    @pytest.mark.parametrize("kind", SLOTS)
    def test_slots_have_pytorchs_names_and_layout(self, fixtures, dense, kind):
        training = import_training(Checkpoint(fixtures / f"slots_{kind}"), dense)
        expected = np.load(fixtures / f"slots_{kind}_expected.npz")
        optimizer, slots = SLOTS[kind]
        assert (training.step, training.optimizer, training.averages) == (3, optimizer, {})
        assert training.slots.keys() == {
            f"{slot}/logits.{each}" for slot in slots for each in ("weight", "bias")
        }
        for ours, theirs in slots.items():
            assert np.array_equal(
                training.slots[f"{ours}/logits.weight"], expected[f"dense|kernel|{theirs}"].T
            )
            assert np.array_equal(training.slots[f"{ours}/logits.bias"], expected[f"dense|bias|{theirs}"])

    def test_averages_are_paired_with_the_networks_tensors(self, fixtures):
        stored, names = Checkpoint(fixtures / "cifar10_train"), load_name_map("cifar10_cnn")
        training = import_training(stored, names)
        assert (training.step, training.optimizer, training.slots) == (60_000, None, {})
        assert training.averages.keys() == names.tensors.keys()
        kernel = stored.get("local3/weights/ExponentialMovingAverage")
        assert np.array_equal(training.averages["local3.weight"], kernel.T)

    def test_a_step_below_0_is_refused(self, tmp_path, dense):
        save_checkpoint(tmp_path / "odd", {"dense/bias": np.zeros(3), "global_step": np.int64(-1)})
        with pytest.raises(CheckpointError, match=r"step is -1.*init\.resume=false"):
            import_training(Checkpoint(tmp_path / "odd"), dense)

    def test_there_is_none_without_a_step(self, tmp_path, dense):
        save_checkpoint(tmp_path / "plain", {"dense/bias": np.zeros(3, np.float32)})
        assert import_training(Checkpoint(tmp_path / "plain"), dense) is None
