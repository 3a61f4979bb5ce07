"""Real TensorFlow restores what foveal writes, and foveal reads what TensorFlow then writes.

Runs where TensorFlow is installed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import foveal
from foveal.checkpoints.tensorflow_export import export_run
from foveal.inference import open_run
from foveal.models.layers import SameMaxPool2d
from foveal.models.response_norm import LocalResponseNorm
from foveal.tensorflow.checkpoint import Checkpoint, save_checkpoint
from foveal.tensorflow.checkpoint_messages import DTYPES, STRING
from foveal.tensorflow.name_maps import Placement, load_name_map

NUMBERS = {dtype.name: dtype for number, dtype in DTYPES.items() if number != STRING}
STRINGS = {
    "text": np.array([[b"a", b""], [b"\0" * 300, "é".encode()]], object),
    "one text": np.array(b"one", object),
    "no text": np.empty((0, 2), object),
}
# The tutorial's layers in the order in which its graph makes them: name, shape of the kernel.
LAYERS = {"conv2d": (5, 5, 1, 32), "conv2d_1": (5, 5, 32, 64), "dense": (3136, 1024), "dense_1": (1024, 10)}


@pytest.fixture(scope="module")
def tf():
    pytest.importorskip("tensorflow.python")
    import tensorflow as tf

    return tf


@pytest.fixture
def session(tf):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        yield session


def samples(dtype):
    """Random bits, those of NaN among them, in several shapes."""
    if dtype == np.bool_:
        values = np.arange(256) % 3 == 0
    else:
        values = np.random.default_rng(0).bytes(256 * dtype.itemsize)
        values = np.frombuffer(values, dtype)
    return {
        "vector": values,
        "tensor": values.reshape(4, 1, 8, 8),
        "scalar": values[7],
        "empty": values[:0].reshape(0, 5),
        "empty/in the middle": values[:0].reshape(3, 0, 2),
        "one": values[:1],
    }


def bits(array):
    array = np.asarray(array)
    content = array.tolist() if array.dtype == object else array.tobytes()
    return array.dtype.name, array.shape, content


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


WHOLE = normal(10, 4)


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def close(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-5)


class TestTensorFlowReads:
    @pytest.mark.parametrize("name", NUMBERS)
    def test_every_bit_of_a_dtype(self, tf, tmp_path, name):
        tensors = samples(NUMBERS[name])
        save_checkpoint(tmp_path / "model", tensors)
        reader = tf.train.load_checkpoint(str(tmp_path / "model"))
        assert reader.get_variable_to_shape_map() == {
            key: list(value.shape) for key, value in tensors.items()
        }
        for key, value in tensors.items():
            assert reader.get_variable_to_dtype_map()[key] == tf.as_dtype(NUMBERS[name])
            assert bits(reader.get_tensor(key)) == bits(value), key

    def test_strings(self, tf, tmp_path):
        save_checkpoint(tmp_path / "model", STRINGS)
        reader = tf.train.load_checkpoint(str(tmp_path / "model"))
        for key, value in STRINGS.items():
            found = np.asarray(reader.get_tensor(key))
            assert (found.shape, found.tolist()) == (value.shape, value.tolist()), key

    @pytest.mark.parametrize("name", NUMBERS)
    def test_a_dtype_with_the_operation_that_savers_restore_with(self, tf, tmp_path, name):
        tensors = samples(NUMBERS[name])
        save_checkpoint(tmp_path / "model", tensors)
        found = tf.raw_ops.RestoreV2(
            prefix=str(tmp_path / "model"),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            dtypes=[tf.as_dtype(NUMBERS[name])] * len(tensors),
        )
        for value, expected in zip(found, tensors.values(), strict=True):
            assert bits(value.numpy()) == bits(expected)

    def test_the_state_file_that_names_the_latest(self, tf, tmp_path):
        for step in (1, 12, 3):
            save_checkpoint(tmp_path / f"model.ckpt-{step}", {"global_step": np.int64(step)})
        latest = tf.train.latest_checkpoint(str(tmp_path))
        assert latest == str(tmp_path / "model.ckpt-3")
        assert tf.train.load_variable(latest, "global_step") == 3
        known = tf.train.get_checkpoint_state(str(tmp_path)).all_model_checkpoint_paths
        assert list(known) == [str(tmp_path / f"model.ckpt-{step}") for step in (1, 12, 3)]

    def test_a_full_tensor_into_a_variable_in_three_parts(self, tf, session, tmp_path):
        v1 = tf.compat.v1
        save_checkpoint(tmp_path / "model", {"p/weights": WHOLE, "plain": np.float32(2)})
        parts = v1.get_variable("p/weights", WHOLE.shape, partitioner=v1.fixed_size_partitioner(3))
        plain = v1.get_variable("plain", ())
        assert [part.shape.as_list() for part in parts] == [[4, 4], [3, 4], [3, 4]]
        v1.train.Saver().restore(session, str(tmp_path / "model"))
        found = np.concatenate(session.run(list(parts)))
        assert bits(found) == bits(WHOLE)
        assert session.run(plain) == 2


class TestOurLayouts:
    """The layers that name maps know, with the same weights in TensorFlow and in PyTorch."""

    def test_of_a_convolution(self, tf):
        images, kernel = normal(2, 7, 6, 3), normal(3, 5, 3, 4)
        weight = torch.from_numpy(Placement("v", "HWIO").to_network(kernel))
        ours = functional.conv2d(nchw(images), weight, padding=(1, 2))
        close(ours.permute(0, 2, 3, 1), tf.nn.conv2d(images, kernel, 1, "SAME"))

    def test_of_a_depthwise_convolution(self, tf):
        images, kernel = normal(2, 7, 6, 3), normal(3, 5, 3, 2)
        weight = torch.from_numpy(Placement("v", "HWIM", multiplier=2).to_network(kernel))
        ours = functional.conv2d(nchw(images), weight, padding=(1, 2), groups=3)
        close(ours.permute(0, 2, 3, 1), tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME"))

    @pytest.mark.parametrize("flattened", [None, (4, 5, 3)], ids=["in TensorFlow's order", "in PyTorch's"])
    def test_of_a_dense_layer_after_a_flatten(self, tf, flattened):
        images, kernel = normal(2, 4, 5, 3), normal(60, 7)
        weight = torch.from_numpy(Placement("v", "IO", flattened).to_network(kernel))
        inputs = nchw(images).flatten(1) if flattened else torch.from_numpy(images).flatten(1)
        close(functional.linear(inputs, weight), tf.matmul(tf.reshape(images, [2, -1]), kernel))

    @pytest.mark.parametrize("size", [(8, 7), (5, 6), (1, 2)], ids=str)
    def test_of_same_pooling_and_response_norms(self, tf, size):
        images = 9 * normal(2, *size, 12) - 20
        norm = LocalResponseNorm(4, 1.0, 0.001 / 9, 0.75)(nchw(images)).permute(0, 2, 3, 1)
        close(norm, tf.nn.local_response_normalization(images, 4, 1.0, 0.001 / 9, 0.75))
        pooled = SameMaxPool2d(3, 2)(nchw(images)).permute(0, 2, 3, 1)
        assert bits(pooled.contiguous().numpy()) == bits(tf.nn.max_pool2d(images, 3, 2, "SAME").numpy())


class TestWeRead:
    def test_a_variable_that_tensorflow_saved_in_three_parts(self, tf, session, tmp_path):
        v1 = tf.compat.v1
        parts = v1.get_variable("p/weights", WHOLE.shape, partitioner=v1.fixed_size_partitioner(3))
        session.run(v1.global_variables_initializer())
        prefix = v1.train.Saver().save(session, str(tmp_path / "model"), global_step=7)
        checkpoint = Checkpoint(prefix)
        assert checkpoint.names() == ["p/weights"]
        assert bits(checkpoint.get("p/weights")) == bits(np.concatenate(session.run(list(parts))))
        assert Checkpoint(tmp_path).path == tmp_path / "model-7"

    def test_what_tensorflow_saves_of_what_it_restored_of_ours(self, tf, session, tmp_path):
        v1 = tf.compat.v1
        tensors = {name: value for name, value in samples(np.dtype(np.float32)).items() if " " not in name}
        save_checkpoint(tmp_path / "ours", tensors | STRINGS)
        variables = {
            name: v1.get_variable(f"v{number}", value.shape, tf.string if name in STRINGS else tf.float32)
            for number, (name, value) in enumerate((tensors | STRINGS).items())
        }
        saver = v1.train.Saver(variables)
        saver.restore(session, str(tmp_path / "ours"))
        saver.save(session, str(tmp_path / "theirs"))
        theirs = Checkpoint(tmp_path / "theirs")
        for name, value in (tensors | STRINGS).items():
            assert bits(theirs.get(name)) == bits(value), name
        for ending in (".index", ".data-00000-of-00001"):
            ours = tmp_path / f"ours{ending}"
            assert ours.read_bytes() == (tmp_path / f"theirs{ending}").read_bytes()

    def test_a_v1_checkpoint(self, tf, session, tmp_path):
        v1 = tf.compat.v1
        v1.get_variable("a/weights", initializer=WHOLE)
        v1.get_variable("global_step", initializer=np.int64(41), trainable=False)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=v1.train.SaverDef.V1)
        prefix = saver.save(session, str(tmp_path / "model.ckpt"), global_step=41)
        checkpoint = Checkpoint(prefix)
        assert checkpoint.format == "V1"
        assert checkpoint.global_step == 41
        assert bits(checkpoint.get("a/weights")) == bits(WHOLE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tutorial's recipe for a few steps, with momentum and averages, on digits as large as its images."""
    settings = (
        "data={name='digits'}",
        "augmentation=[{name='resize', size=[28, 28]}]",
        "preprocessing=[{name='resize', size=[28, 28]}]",
        "optimizer.momentum=0.9",
        "ema={decay=0.9}",
        "batch_size=10",
        "steps=12",
        "device=cpu",
        "threads=1",
        "precision=float32",
        "evaluation.every=never",
        "evaluation.final=false",
    )
    run = tmp_path_factory.mktemp("run") / "run"
    foveal.train(foveal.override_recipe(foveal.load_recipe("mnist-tutorial"), settings), run)
    return run


class TestATrainedRun:
    @pytest.mark.parametrize("averaged", [False, True], ids=["raw", "averaged"])
    def test_gives_the_same_logits_and_step_in_tensorflow(self, tf, session, run, tmp_path, averaged):
        v1 = tf.compat.v1
        export_run(run, tmp_path / "model.ckpt-12")
        images = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)
        trained = open_run(run, weights="ema" if averaged else "raw")
        with torch.inference_mode():
            expected = trained.network(nchw(images)).numpy()

        step = v1.train.get_or_create_global_step()
        logits = tutorial(tf, images)
        averages = v1.train.ExponentialMovingAverage(0.9).variables_to_restore()
        saver = v1.train.Saver(averages) if averaged else v1.train.Saver()
        saver.restore(session, v1.train.latest_checkpoint(str(tmp_path)))
        found = session.run(logits)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        assert session.run(step) == 12

    def test_goes_on_in_tensorflow_with_its_momentum(self, tf, session, run, tmp_path):
        v1 = tf.compat.v1
        export_run(run, tmp_path / "model.ckpt-12")
        images = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_mean(tf.square(tutorial(tf, images)))
        update = v1.train.MomentumOptimizer(0.01, 0.9).minimize(loss, global_step=step)
        v1.train.Saver().restore(session, str(tmp_path / "model.ckpt-12"))
        variables = {each.op.name: each for each in v1.global_variables()}
        before = session.run(variables)
        session.run(update)
        after = session.run(variables)

        checkpoint = Checkpoint(tmp_path)
        assert checkpoint.optimizer == "Momentum"
        assert {name: bits(value) for name, value in before.items()} == {
            name: bits(checkpoint.get(name)) for name in checkpoint.names() if not name.endswith("Average")
        }
        assert after["global_step"] == 13
        gradients = our_gradients(run, images)
        for name, gradient in gradients.items():
            expected = before[name] - 0.01 * (0.9 * before[f"{name}/Momentum"] + gradient)
            moved = np.abs(expected - before[name]).max()
            assert np.abs(after[name] - expected).max() < 1e-3 * moved + 1e-7, name


def our_gradients(run, images):
    """Those of the mean of the squares of a run's logits, by TensorFlow's names and in its layout."""
    network = open_run(run, weights="raw").network
    network(nchw(images)).square().mean().backward()
    placements = load_name_map("mnist_cnn").tensors
    return {
        placements[name].variable: placements[name].to_tensorflow(parameter.grad.numpy())
        for name, parameter in network.named_parameters()
    }


def tutorial(tf, images):
    """The logits of the tf.layers tutorial's network, without the layers."""
    v1 = tf.compat.v1

    def layer(name, operation, values):
        with v1.variable_scope(name):
            kernel = v1.get_variable("kernel", LAYERS[name])
            return operation(values, kernel) + v1.get_variable("bias", LAYERS[name][-1:])

    def convolve(values, kernel):
        return tf.nn.conv2d(values, kernel, 1, "SAME")

    hidden = tf.constant(images)
    for name in ("conv2d", "conv2d_1"):
        hidden = tf.nn.max_pool2d(tf.nn.relu(layer(name, convolve, hidden)), 2, 2, "VALID")
    hidden = tf.nn.relu(layer("dense", tf.matmul, tf.reshape(hidden, [-1, 3136])))
    return layer("dense_1", tf.matmul, hidden)
