"""Real slim restores a run of Inception v3 that foveal exports, computes the same, and gives it back.

Runs where TensorFlow and tf_slim are installed.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import foveal
from foveal.checkpoints.tensorflow_export import export_run
from foveal.inference import open_run
from foveal.models.registry import end_points
from foveal.tensorflow.checkpoint import Checkpoint

SIDE, CLASSES, STEPS = 139, 10, 2
POINTS = ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c", "AuxLogits", "Logits", "Predictions"]


@pytest.fixture(scope="module")
def tf():
    pytest.importorskip("tensorflow.python")
    import tensorflow as tf

    return tf


@pytest.fixture(scope="module")
def slim(tf):  # noqa: ARG001 - tf_slim needs it
    # TensorFlow looks for these layers where tf_keras 2.15 does not have them.
    layers = pytest.importorskip("tf_keras.src.legacy_tf_layers")
    sys.modules.setdefault("tf_keras.legacy_tf_layers", layers)
    return pytest.importorskip("tf_slim.nets.inception_v3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The recipe for a few steps, with a narrow network, on enlarged digits."""
    settings = (
        "data={name='digits'}",
        f"augmentation=[{{name='resize', size=[{SIDE}, {SIDE}]}}]",
        f"preprocessing=[{{name='resize', size=[{SIDE}, {SIDE}]}}]",
        "model.options={depth_multiplier=0.1, min_depth=4}",
        "batch_size=4",
        f"steps={STEPS}",
        "device=cpu",
        "threads=1",
        "precision=float32",
        "evaluation.every=never",
        "evaluation.final=false",
    )
    run = tmp_path_factory.mktemp("run") / "run"
    foveal.train(foveal.override_recipe(foveal.load_recipe("inception-v3"), settings), run)
    return run


@pytest.fixture
def session(tf):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        yield session


@pytest.mark.parametrize("averaged", [False, True], ids=["raw", "averaged"])
def test_slim_computes_the_same_and_what_it_saves_is_what_it_got(tf, slim, session, run, tmp_path, averaged):
    v1 = tf.compat.v1
    export_run(run, tmp_path / f"model.ckpt-{STEPS}")
    images = np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE, 1)).astype(np.float32)
    trained = open_run(run, weights="ema" if averaged else "raw").network
    with torch.inference_mode(), end_points(trained, POINTS) as ours:
        trained(torch.from_numpy(images).permute(0, 3, 1, 2))

    step = v1.train.get_or_create_global_step()
    with slim.arg_scope(slim.inception_v3_arg_scope()):
        _, theirs = slim.inception_v3(
            tf.constant(images), CLASSES, is_training=False, depth_multiplier=0.1, min_depth=4
        )
    averages = v1.train.ExponentialMovingAverage(0.9999).variables_to_restore()
    weights = v1.train.Saver()
    (v1.train.Saver(averages) if averaged else weights).restore(
        session, str(tmp_path / f"model.ckpt-{STEPS}")
    )
    for name, expected in session.run({name: theirs[name] for name in POINTS}).items():
        found = ours[name].permute(0, 2, 3, 1) if ours[name].ndim == 4 else ours[name]
        assert np.abs(found.numpy() - expected).max() < 1e-5 * np.abs(expected).max(), name
    assert session.run(step) == STEPS

    back = Checkpoint(weights.save(session, str(tmp_path / "back" / "model.ckpt")))
    mine = Checkpoint(tmp_path)
    assert set(back.names()) == {*mine.variables, "global_step"}
    assert mine.optimizer == "RMSProp"
    for name in mine.variables:
        kept = mine.averages.get(name, name) if averaged else name
        assert np.array_equal(back.get(name), mine.get(kept)), name
