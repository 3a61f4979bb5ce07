from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from foveal import tensorflow
from foveal.errors import CheckpointError, DamagedCheckpointError, UsageError
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from foveal.tensorflow.object_graph import GRAPH_KEY, TrackableObjectGraph
from foveal.tensorflow.state_file import read_state

LAYERS = ("conv1", "conv2", "local3", "local4", "softmax_linear")
MNIST = ("conv2d", "conv2d_1", "dense", "dense_1")
END = "/.ATTRIBUTES/VARIABLE_VALUE"


def vector(*values):
    return np.array(values, np.float32)


def write(folder, *names, **tensors):
    """Checkpoints of a scalar each, without a state file."""
    for name in names:
        write_bundle(folder / name, {"w": np.float32(1)} | tensors)


def aged(folder, *names):
    """Give the indexes of checkpoints times, from the oldest to the newest."""
    for time, name in enumerate(names):
        os.utime(folder / f"{name}.index", (1_000_000 + time, 1_000_000 + time))


def keras(folder):
    """A network of one layer with the Adam of Keras before 2.11, as tf.train.Checkpoint stores it."""
    kernel, slot = "net/layer-0/kernel", "net/layer-0/kernel/.OPTIMIZER_SLOT/optimizer/"
    stored = {  # by key: the name that it has besides, and the value
        kernel: ("d1/kernel", vector(1, 2)),
        f"{slot}m": ("Adam/d1/kernel/m", vector(3, 4)),
        f"{slot}v": ("Adam/d1/kernel/v", vector(5, 6)),
        "optimizer/iter": ("Adam/iter", np.int64(7)),
        "optimizer/decay": ("Adam/decay", np.float32(0)),
        "save_counter": ("save_counter", np.int64(2)),
    }
    graph = TrackableObjectGraph()
    for _ in range(10):
        graph.nodes.add()
    edges = [(0, "net", 1), (0, "optimizer", 2), (0, "save_counter", 3), (1, "layer-0", 4), (4, "kernel", 5)]
    for parent, name, child in [*edges, (2, "iter", 8), (2, "decay", 9)]:
        graph.nodes[parent].children.add(local_name=name, node_id=child)
    for number, key in zip((5, 6, 7, 8, 9, 3), stored, strict=True):
        graph.nodes[number].attributes.add(
            name="VARIABLE_VALUE", full_name=stored[key][0], checkpoint_key=key + END
        )
    for name, number in (("m", 6), ("v", 7)):
        graph.nodes[2].slot_variables.add(
            slot_name=name, original_variable_node_id=5, slot_variable_node_id=number
        )
    config = "net/.ATTRIBUTES/OBJECT_CONFIG_JSON"
    graph.nodes[1].attributes.add(name="OBJECT_CONFIG_JSON", checkpoint_key=config)
    tensors = {key + END: value for key, (_, value) in stored.items()}
    tensors[config] = np.array(b"{}", object)
    tensors[GRAPH_KEY] = np.array(graph.SerializeToString(), object)
    save_checkpoint(folder / "ckpt-7", tensors)
    return folder / "ckpt-7"


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize(
        ("folder", "kind"),
        {
            "cifar10_train": "V2",
            "dtypes_v1": "V1",
            "dtypes_v2": "V2",
            "mnist_convnet_model": "V2",
            "object_graph": "V2 objects",
            "object_graph_keras": "V2 objects",
            "partitioned": "V2",
            "sharded": "V2",
            "slots_adam": "V2",
        }.items(),
    )
    def test_is_found_by_its_folder_and_read_whole(self, fixtures, folder, kind):
        checkpoint = Checkpoint(fixtures / folder)
        assert checkpoint.format == kind
        tensors = checkpoint.read()
        assert list(tensors) == checkpoint.names() == list(checkpoint) == sorted(checkpoint)
        assert len(checkpoint) == len(tensors)
        for name, tensor in tensors.items():
            assert (tensor.shape, tensor.dtype) == (checkpoint.shape(name), checkpoint.dtype(name))

    @pytest.mark.parametrize("folder", ["dtypes_v1", "dtypes_v2"])
    def test_gives_the_expected_values_of_the_latest(self, fixtures, folder):
        checkpoint = Checkpoint(fixtures / folder)
        assert checkpoint.path.name == "model.ckpt-300"
        expected = np.load(fixtures / "dtypes_expected.npz")
        for key in expected:
            if key.replace("|", "/") in checkpoint and key != "text":
                np.testing.assert_array_equal(checkpoint.get(key.replace("|", "/")), expected[key])
        assert not Checkpoint(fixtures / folder / "model.ckpt-20").get("f32").any()

    def test_has_attribute_paths_where_it_is_object_based(self, fixtures):
        checkpoint = Checkpoint(fixtures / "object_graph")
        expected = np.load(fixtures / "object_graph_expected.npz")
        assert checkpoint.names() == [
            "model/layers/0", "model/layers/1", "model/w", "save_counter", "step"
        ]  # fmt: skip
        for key in expected:
            np.testing.assert_array_equal(checkpoint.get(key.replace("|", "/")), expected[key])
        assert checkpoint.variables == ["model/layers/0", "model/layers/1", "model/w"]
        assert checkpoint.global_step == expected["step"]
        assert (checkpoint.optimizer, checkpoint.slots) == (None, {})

    def test_has_the_slots_of_keras(self, fixtures):
        checkpoint = Checkpoint(fixtures / "object_graph_keras")
        expected = np.load(fixtures / "object_graph_keras_expected.npz")
        layers = [f"net/layer_with_weights-{layer}" for layer in (0, 1)]
        names = [f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")]
        for number, name in enumerate(names):
            np.testing.assert_array_equal(checkpoint.get(name), expected[f"net|{number}"])
        slots = [f"optimizer/_variables/{number}" for number in range(1, 9)]
        assert checkpoint.slots == {
            "m": dict(zip(names, slots[::2], strict=True)),
            "v": dict(zip(names, slots[1::2], strict=True)),
        }
        assert checkpoint.optimizer == "Adam"
        assert checkpoint.variables == sorted(names)
        assert checkpoint.global_step == 1

    @pytest.mark.parametrize(
        ("name", "optimizer", "slots"),
        [
            ("momentum", "Momentum", {"momentum": "Momentum"}),
            ("adam", "Adam", {"m": "Adam", "v": "Adam_1"}),
            ("rmsprop", "RMSProp", {"rms": "RMSProp", "momentum": "RMSProp_1"}),
        ],
    )
    def test_has_the_slots_of_tensorflow_1(self, fixtures, name, optimizer, slots):
        checkpoint = Checkpoint(fixtures / f"slots_{name}")
        names = ["dense/bias", "dense/kernel"]
        assert checkpoint.slots == {
            slot: {name: f"{name}/{end}" for name in names} for slot, end in slots.items()
        }
        assert checkpoint.optimizer == optimizer
        assert checkpoint.variables == names
        assert checkpoint.global_step == 3
        expected = np.load(fixtures / f"slots_{name}_expected.npz")
        for key in expected:
            np.testing.assert_array_equal(checkpoint.get(key.replace("|", "/")), expected[key])

    def test_has_averages(self, fixtures):
        checkpoint = Checkpoint(fixtures / "cifar10_train")
        names = [f"{layer}/{name}" for layer in LAYERS for name in ("biases", "weights")]
        assert checkpoint.averages == {name: f"{name}/ExponentialMovingAverage" for name in names}
        assert checkpoint.variables == names
        assert checkpoint.global_step == 60_000

    def test_has_a_step_and_variables(self, fixtures):
        checkpoint = Checkpoint(fixtures / "mnist_convnet_model")
        assert checkpoint.variables == [f"{layer}/{name}" for layer in MNIST for name in ("bias", "kernel")]
        assert checkpoint.global_step == 20_000

    def test_consists_of_its_files(self, fixtures):
        files = Checkpoint(fixtures / "sharded").files()
        data = [f"model.ckpt-5.data-0000{shard}-of-00002" for shard in (0, 1)]
        assert files == [fixtures / "sharded" / name for name in ("model.ckpt-5.index", *data)]
        assert Checkpoint(fixtures / "dtypes_v1").files() == [fixtures / "dtypes_v1" / "model.ckpt-300"]


class TestObjects:
    def test_of_keras_have_their_slots_in_the_graph(self, tmp_path):
        checkpoint = Checkpoint(keras(tmp_path))
        kernel = "net/layer-0/kernel"
        slots = {slot: {kernel: f"{kernel}/.OPTIMIZER_SLOT/optimizer/{slot}"} for slot in ("m", "v")}
        assert checkpoint.slots == slots
        assert checkpoint.get(slots["v"][kernel]).tolist() == [5, 6]
        assert (checkpoint.format, checkpoint.optimizer, checkpoint.global_step) == ("V2 objects", "Adam", 7)
        assert checkpoint.variables == [kernel]

    def test_that_are_no_variables_keep_their_keys(self, tmp_path):
        checkpoint = Checkpoint(keras(tmp_path))
        config = "net/.ATTRIBUTES/OBJECT_CONFIG_JSON"
        assert checkpoint.get(config).item() == b"{}"
        assert config not in checkpoint.variables
        assert GRAPH_KEY not in checkpoint
        assert f"save_counter{END}" not in checkpoint

    def test_beside_which_others_lie_are_told_by_all_names(self, tmp_path):
        graph = TrackableObjectGraph()
        graph.nodes.add()
        tensors = {GRAPH_KEY: np.array(graph.SerializeToString(), object), "w": vector(1)}
        save_checkpoint(tmp_path / "c", tensors)
        assert Checkpoint(tmp_path / "c").variables == ["w"]

    @pytest.mark.parametrize(
        ("graph", "problem"),
        {
            "damaged": (np.array(b"\xff", object), "the object graph: it cannot be decoded"),
            "rootless": (np.array(b"", object), "the object graph: it has no root"),
            "numbers": (np.array(1), "the object graph: it is not one string"),
            "strings": (np.array([b"", b""], object), "the object graph: it is not one string"),
        }.values(),
        ids=["damaged", "rootless", "numbers", "strings"],
    )
    def test_with_a_damaged_graph_are_refused(self, tmp_path, graph, problem):
        write_bundle(tmp_path / "c", {GRAPH_KEY: graph})
        with pytest.raises(DamagedCheckpointError, match=problem) as caught:
            Checkpoint(tmp_path / "c")
        assert str(tmp_path / "c.index") in str(caught.value)

    def test_that_share_a_name_are_refused(self, tmp_path):
        graph = TrackableObjectGraph()
        graph.nodes.add().children.add(local_name="w", node_id=1)
        graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key="k")
        tensors = {GRAPH_KEY: np.array(graph.SerializeToString(), object), "k": vector(1), "w": vector(2)}
        write_bundle(tmp_path / "c", tensors)
        with pytest.raises(DamagedCheckpointError, match="calls a tensor as another is called"):
            Checkpoint(tmp_path / "c")


class TestReading:
    @pytest.mark.parametrize("threads", [None, 1, 2, 16])
    def test_gives_the_tensors_in_the_order_of_the_names(self, fixtures, threads):
        checkpoint = Checkpoint(fixtures / "cifar10_train")
        names = ["local4/weights", "conv1/biases", "global_step", "local4/weights"]
        tensors = checkpoint.read(names, threads)
        assert list(tensors) == names[:3]
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, checkpoint.get(name))

    @pytest.mark.parametrize("threads", [1, 4])
    def test_of_a_damaged_tensor_fails_whatever_reads_it(self, fixtures, tmp_path, threads):
        shutil.copytree(fixtures / "slots_adam", tmp_path / "run")
        data = tmp_path / "run" / "model.ckpt-3.data-00000-of-00001"
        data.chmod(0o644)
        data.write_bytes(data.read_bytes()[:-1] + b"\x55")
        with pytest.raises(DamagedCheckpointError, match="checksum of tensor 'global_step'"):
            Checkpoint(tmp_path / "run").read(threads=threads)

    def test_of_a_name_that_is_not_there_hints_at_another(self, fixtures):
        checkpoint = Checkpoint(fixtures / "object_graph")
        with pytest.raises(CheckpointError, match="no tensor is named 'model/v': did you mean 'model/w'"):
            checkpoint.read(["model/w", "model/v"], 4)
        for call in (checkpoint.get, checkpoint.shape, checkpoint.dtype):
            with pytest.raises(CheckpointError, match="name one of those it has"):
                call("?")

    def test_with_no_thread_is_refused(self, fixtures):
        with pytest.raises(UsageError, match="0 threads"):
            Checkpoint(fixtures / "object_graph").read(threads=0)

    @pytest.mark.parametrize("folder", ["dtypes_v1", "dtypes_v2"])
    def test_is_safe_in_several_threads(self, fixtures, folder):
        checkpoint, wrong = Checkpoint(fixtures / folder), []
        expected = Checkpoint(fixtures / folder).get("big")

        def work():
            if not np.array_equal(checkpoint.get("big"), expected) or checkpoint.global_step is not None:
                wrong.append(threading.current_thread())

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong

    @pytest.mark.parametrize("value", [np.float32(3), np.array([3]), np.array(b"3", object)])
    def test_takes_nothing_but_an_integer_for_the_step(self, tmp_path, value):
        write(tmp_path, "c", global_step=value, step=np.int32(5))
        assert Checkpoint(tmp_path / "c").global_step == 5


class TestFinding:
    @pytest.mark.parametrize(
        "name", ["model.ckpt-300", "model.ckpt-300.index", "model.ckpt-300.data-00000-of-00001", "checkpoint"]
    )
    def test_takes_the_name_of_any_file(self, fixtures, name):
        assert Checkpoint(fixtures / "dtypes_v2" / name).path == fixtures / "dtypes_v2" / "model.ckpt-300"

    def test_takes_text_for_a_path(self, fixtures):
        assert Checkpoint(str(fixtures / "sharded")).path == fixtures / "sharded" / "model.ckpt-5"

    def test_says_what_to_give_for_a_graph(self, tmp_path):
        (tmp_path / "model.ckpt-5.meta").write_bytes(b"graph")
        with pytest.raises(CheckpointError, match=r"is a graph, without values: .* as .*model\.ckpt-5$"):
            Checkpoint(tmp_path / "model.ckpt-5.meta")

    def test_takes_the_latest_of_the_state_file(self, tmp_path):
        save_checkpoint(tmp_path / "model.ckpt-30", {"w": np.float32(1)})
        save_checkpoint(tmp_path / "model.ckpt-20", {"w": np.float32(2)})
        assert Checkpoint(tmp_path).get("w") == 2

    def test_without_a_state_file_takes_the_greatest_step(self, tmp_path):
        write(tmp_path, "model.ckpt-1000", "model.ckpt-999", "model.ckpt")
        aged(tmp_path, "model.ckpt-1000", "model.ckpt-999", "model.ckpt")
        assert Checkpoint(tmp_path).path.name == "model.ckpt-1000"

    def test_without_steps_takes_the_newest(self, tmp_path):
        write(tmp_path, "b", "c", "a")
        aged(tmp_path, "b", "c", "a")
        assert Checkpoint(tmp_path).path.name == "a"

    def test_without_a_state_file_finds_v1_checkpoints(self, fixtures, tmp_path):
        for step in (20, 300):
            shutil.copy(fixtures / "dtypes_v1" / f"model.ckpt-{step}", tmp_path)
        (tmp_path / "events.out").write_bytes(b"no checkpoint")
        (tmp_path / "graph.pbtxt").write_bytes(b"")
        assert Checkpoint(tmp_path).path.name == "model.ckpt-300"

    def test_takes_the_file_of_a_shard_for_the_v1_checkpoint(self, fixtures, tmp_path):
        shutil.copy(fixtures / "dtypes_v1" / "model.ckpt-300", tmp_path / "m-300-00000-of-00001")
        for path in (tmp_path / "m-300-00000-of-00001", tmp_path, tmp_path / "m-300-?????-of-00001"):
            checkpoint = Checkpoint(path)
            assert checkpoint.path == tmp_path / "m-300-?????-of-00001"
            assert checkpoint.files() == [tmp_path / "m-300-00000-of-00001"]
        assert [(each.step, each.format) for each in list_checkpoints(tmp_path)] == [(300, "V1")]

    def test_reads_a_saved_model(self, tmp_path):
        write(tmp_path / "variables", "variables", w=np.float32(7))
        (tmp_path / "saved_model.pb").write_bytes(b"")
        assert Checkpoint(tmp_path).get("w") == 7
        assert [each.path for each in list_checkpoints(tmp_path)] == [tmp_path / "variables" / "variables"]

    @pytest.mark.parametrize(
        "name", ["", "nothing", "nothing/model.ckpt", "x-?????-of-00000", "a\0b", "x" * 300]
    )
    def test_of_nothing_says_so(self, tmp_path, name):
        with pytest.raises(CheckpointError, match=r"there is no checkpoint|cannot read") as caught:
            Checkpoint(tmp_path / name)
        assert str(tmp_path) in str(caught.value)

    def test_of_another_name_hints_at_the_newest(self, tmp_path):
        write(tmp_path, "model.ckpt-5", "model.ckpt-6")
        with pytest.raises(CheckpointError, match=r"no checkpoint .*-7: name another, as .*model\.ckpt-6$"):
            Checkpoint(tmp_path / "model.ckpt-7")

    def test_of_a_latest_that_is_gone_hints_at_the_newest(self, tmp_path):
        save_checkpoint(tmp_path / "model.ckpt-5", {"w": np.float32(1)})
        save_checkpoint(tmp_path / "model.ckpt-6", {"w": np.float32(1)})
        (tmp_path / "model.ckpt-6.index").unlink()
        with pytest.raises(CheckpointError, match=r"model\.ckpt-6' as the latest, .*, as .*model\.ckpt-5$"):
            Checkpoint(tmp_path)

    def test_of_a_file_that_is_no_checkpoint_says_so(self, tmp_path):
        (tmp_path / "model.h5").write_bytes(b"x" * 100)
        with pytest.raises(DamagedCheckpointError, match="ends a table file"):
            Checkpoint(tmp_path / "model.h5")

    def test_in_a_folder_that_cannot_be_read_says_so(self, tmp_path, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        for call in (Checkpoint, list_checkpoints):
            with pytest.raises(CheckpointError, match=f"cannot read {tmp_path}: Permission denied"):
                call(tmp_path)


class TestListing:
    def test_has_all_from_the_oldest_to_the_newest(self, fixtures):
        folder = fixtures / "dtypes_v2"
        found = list_checkpoints(folder)
        assert [each.path for each in found] == [folder / "model.ckpt-20", folder / "model.ckpt-300"]
        assert [(each.step, each.format, each.latest) for each in found] == [
            (20, "V2", False),
            (300, "V2", True),
        ]
        assert found[1].nbytes == sum(file.stat().st_size for file in Checkpoint(folder).files())

    def test_has_those_that_the_state_file_does_not_name_and_not_those_that_are_gone(self, tmp_path):
        for step in (1, 2, 3):
            save_checkpoint(tmp_path / f"model.ckpt-{step}", {"w": np.float32(step)})
        write(tmp_path, "model.ckpt-4", "other")
        (tmp_path / "model.ckpt-2.index").unlink()
        found = list_checkpoints(tmp_path)
        names = [(each.path.name, each.latest) for each in found]
        assert names == [
            ("other", False), ("model.ckpt-1", False), ("model.ckpt-3", True), ("model.ckpt-4", False)
        ]  # fmt: skip

    def test_has_those_of_the_state_file_that_lie_elsewhere(self, tmp_path):
        run, best = tmp_path / "run", tmp_path / "best"
        save_checkpoint(best / "model.ckpt-9", {"w": np.float32(1)})
        write(run, "model.ckpt-5")
        (run / "checkpoint").write_text(f'model_checkpoint_path: "{best}/model.ckpt-9"\n')
        found = list_checkpoints(run)
        assert [(each.path, each.latest) for each in found] == [
            (run / "model.ckpt-5", False),
            (best / "model.ckpt-9", True),
        ]

    def test_leaves_out_what_no_file_can_be_called(self, tmp_path):
        write(tmp_path, "m-1")
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{"x" * 300}"\n')
        assert [(each.step, each.latest) for each in list_checkpoints(tmp_path)] == [(1, False)]
        with pytest.raises(CheckpointError, match=r"as the latest, which is not there: .*m-1$"):
            Checkpoint(tmp_path)

    def test_tells_the_formats(self, fixtures, tmp_path):
        keras(tmp_path)
        assert [each.format for each in list_checkpoints(tmp_path)] == ["V2 objects"]
        assert {each.format for each in list_checkpoints(fixtures / "dtypes_v1")} == {"V1"}

    def test_has_damaged_ones_too(self, tmp_path):
        write(tmp_path, "a-1")
        (tmp_path / "a-2.index").write_bytes(b"damaged")
        (tmp_path / "a-3").write_bytes(b"\x57\xfb\x80\x8b\x24\x75\x47\xdb")  # no more than the magic number
        found = list_checkpoints(tmp_path)
        assert [(each.step, each.format, each.nbytes) for each in found[1:]] == [(2, "V2", 7)]

    def test_of_an_empty_folder_is_empty(self, tmp_path):
        assert list_checkpoints(tmp_path) == []

    @pytest.mark.parametrize("name", ["gone", "file"])
    def test_of_no_folder_is_refused(self, tmp_path, name):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(CheckpointError, match="is no folder"):
            list_checkpoints(tmp_path / name)

    def test_of_a_damaged_state_file_is_refused(self, tmp_path):
        (tmp_path / "checkpoint").write_bytes(b"\xff")
        for call in (list_checkpoints, Checkpoint):
            with pytest.raises(DamagedCheckpointError, match="not UTF-8"):
                call(tmp_path)


class TestSaving:
    def test_round_trips_and_names_it_the_latest(self, tmp_path):
        tensors = {"w": vector(1, 2), "global_step": np.int64(5), "names": np.array([b"a"], object)}
        save_checkpoint(tmp_path / "run" / "model.ckpt-5", tensors)
        checkpoint = Checkpoint(tmp_path / "run")
        assert checkpoint.path == tmp_path / "run" / "model.ckpt-5"
        assert {name: each.tolist() for name, each in checkpoint.read().items()} == {
            name: each.tolist() for name, each in sorted(tensors.items())
        }
        assert checkpoint.global_step == 5

    def test_keeps_the_others_that_are_still_there_in_the_state_file(self, tmp_path):
        for step in (1, 2, 3, 1):
            save_checkpoint(tmp_path / f"m-{step}", {"w": np.float32(step)})
            (tmp_path / "m-2.index").unlink(missing_ok=True)
        state = read_state(tmp_path)
        assert state.latest == tmp_path / "m-1"
        assert state.paths == (tmp_path / "m-3", tmp_path / "m-1")
        assert len(state.timestamps) == 2
        assert state.timestamps[0] <= state.timestamps[1]

    def test_keeps_a_state_without_times_so(self, fixtures, tmp_path):
        shutil.copytree(fixtures / "dtypes_v2", tmp_path / "run")
        (tmp_path / "run").chmod(0o755)
        (tmp_path / "run" / "checkpoint").chmod(0o644)
        save_checkpoint(tmp_path / "run" / "model.ckpt-400", {"w": np.float32(1)})
        state = read_state(tmp_path / "run")
        assert [path.name for path in state.paths] == ["model.ckpt-20", "model.ckpt-300", "model.ckpt-400"]
        assert state.timestamps == ()

    def test_leaves_the_state_file_alone_when_told_so(self, tmp_path):
        save_checkpoint(tmp_path / "m", {"w": np.float32(1)}, state=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data-00000-of-00001", "m.index"]

    def test_to_a_folder_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match=r"is a folder: name a checkpoint in it, as .*model\.ckpt$"):
            save_checkpoint(tmp_path, {"w": np.float32(1)})

    def test_beside_a_damaged_state_file_changes_nothing(self, tmp_path):
        (tmp_path / "checkpoint").write_bytes(b"\xff")
        with pytest.raises(DamagedCheckpointError):
            save_checkpoint(tmp_path / "m", {"w": np.float32(1)})
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_package_exports_what_it_names_and_nothing_else():
    assert set(tensorflow.__all__) <= set(dir(tensorflow))
    assert tensorflow.Checkpoint is Checkpoint
    assert all(getattr(tensorflow, name).__name__ == name for name in tensorflow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tensorflow.nothing
