"""User code with bugs, for recipes to name as a transform.

A factory is called in every process that trains, before anything is restored.
"""

from __future__ import annotations

import numpy as np
import torch

from foveal import DataSet, StreamSource
from foveal.checkpoints.manager import CheckpointManager
from foveal.data.catalog import open_data
from foveal.recipe import DataPart
from foveal.training import learner, metrics


def harmless():
    """Turns every image upside down."""
    return lambda images, _draws: np.ascontiguousarray(images[:, ::-1])


def global_generator():
    """Shifts images by what the process's own generator gives: it begins anew with each process."""
    generator = np.random.default_rng(0)
    return lambda images, _draws: np.roll(images, generator.integers(-2, 3), axis=2)


def forgotten_slot():
    """Restores one of the optimizer's slots as zeros."""
    restore = learner.load_optimizer_tensors

    def load(optimizer, model, tensors):
        restore(optimizer, model, _without_momentum(tensors))

    learner.load_optimizer_tensors = load
    return harmless()


def unsaved_slot():
    """Saves one of the optimizer's slots as zeros."""
    read = learner.optimizer_tensors
    learner.optimizer_tensors = lambda optimizer, model: _without_momentum(read(optimizer, model))
    return harmless()


def _without_momentum(tensors):
    return {
        name: torch.zeros_like(tensor) if name.startswith("exp_avg/") else tensor
        for name, tensor in tensors.items()
    }


def uncut_logs():
    """Leaves in the logs what was written after the checkpoint."""
    opened = metrics.AppendedFile.__init__
    metrics.AppendedFile.__init__ = lambda self, path, _length, report: opened(self, path, None, report)
    return harmless()


def blind_restart():
    """Finds no checkpoint, and begins every time anew."""
    CheckpointManager.load = lambda *_arguments: None
    return harmless()


def broken_resume():
    """Fails when there is something to restore."""

    def refuse(*_arguments):
        raise RuntimeError("nothing can be restored")

    learner.load_optimizer_tensors = refuse
    return harmless()


def digits_without_validation():
    """A data set."""
    data = open_data(DataPart(name="digits"))
    return DataSet(data.train, None, data.test)


def stream():
    """Another, which comes once."""
    source = StreamSource(lambda: iter([(np.zeros((8, 8, 1), np.uint8), 0)]), ["a", "b"], (8, 8, 1))
    return DataSet(source)
