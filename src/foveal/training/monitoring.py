"""What a run shows of its inside: parts of the loss, activations, distributions, images, the graph.

All of it only looks: what is learnt has the same bits with it and without.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from foveal.errors import RecipeError
from foveal.inference import undisturbed
from foveal.models.registry import end_points
from foveal.training.graph import network_graph
from foveal.training.hooks import Every
from foveal.training.losses import LossParts
from foveal.training.summaries import CHANNELS, histogram, image, scalar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from foveal.training.learner import Learner
    from foveal.training.step import PreparedBatch

_PROBABILITIES = "probabilities"  # the softmax of the logits, which no module computes


class Monitor:
    """Watches a learner, as the recipe's ``logging`` table asks for.

    What it shows of step n is a function of the learner's state, the recipe and n, but for the moving
    averages of the loss, which :meth:`state` holds.
    """

    def __init__(self, learner: Learner) -> None:
        """Check what is asked for.

        Raises:
            UnknownNameError: the network has no activation of a name.
            RecipeError: TensorBoard cannot show images like these.
        """
        self._learner = learner
        self._part = part = learner.recipe.logging
        channels = learner.image_shape[2]
        if part.images and channels not in CHANNELS:
            raise RecipeError(
                f"logging.images = {part.images}: TensorBoard shows images of 1, 3 or 4 channels, "
                f"these have {channels}: set it to 0"
            )
        self._modules = [name for name in part.activations if name != _PROBABILITIES]
        with end_points(learner.model, self._modules):
            pass  # an unknown name shows now, not hours into training
        self._activations_due = Every(part.activations_every, learner.sampler)
        self._histograms_due = Every(part.histograms_every, learner.sampler)
        self._images_due = Every(part.images_every, learner.sampler)
        self._gradients: list[Any] = []
        self._losses: LossParts | None = None
        if part.loss_averages is not None:
            optimizer = learner.train_step.optimizer
            self._losses = LossParts(part.loss_averages, learner.model, learner.recipe.optimizer, optimizer)

    def learn(self, batch: PreparedBatch) -> Tensor:
        """Have the learner do its present step, and note what cannot be seen before or after it.

        Returns:
            As :meth:`Learner.learn`.
        """
        weight_decay = self._losses.weight_decay() if self._losses else []
        with self._watching_gradients():
            loss = self._learner.learn(batch)
        if self._losses:
            self._losses.add(loss, weight_decay)
        return loss

    def losses(self) -> dict[str, Any]:
        """The parts of the last step's loss and their averages, if they are asked for."""
        return self._losses.record() if self._losses else {}

    def activations(self, batch: PreparedBatch) -> dict[str, Any]:
        """Statistics of named activations of the last step's batch, where they are due.

        With the present weights, in inference mode.
        """
        learner, wanted = self._learner, self._part.activations
        if not wanted or not self._activations_due.due(learner.step):
            return {}
        with undisturbed(learner.model), end_points(learner.model, self._modules) as found:
            found[_PROBABILITIES] = learner.model(batch.images.to(learner.device)).softmax(dim=1)
        return {"activations": {name: _statistics(found[name]) for name in wanted}}

    def summaries(self, batch: PreparedBatch) -> list[Any]:
        """What is due for TensorBoard alone after the last step: ``Summary.Value`` messages.

        Weights are those after the step; activations, too, are of these and in inference mode; gradients are
        those the step used.
        """
        found, self._gradients = self._gradients, []
        step, part = self._learner.step, self._part
        if part.images and self._images_due.due(step):
            shown = batch.images[: part.images]
            found += [image(f"images/{number}", each) for number, each in enumerate(shown)]
        if part.histograms and self._histograms_due.due(step):
            if "weights" in part.histograms:
                parameters = self._learner.model.named_parameters()
                found += [histogram(f"weights/{name}", each) for name, each in parameters]
            if "activations" in part.histograms:
                found += self._layers(batch)
        return found

    def graph(self) -> bytes | None:
        """The network's graph, a serialised ``GraphDef``, if it is asked for."""
        if not self._part.graph:
            return None
        height, width, channels = self._learner.image_shape
        images = torch.zeros(1, channels, height, width, device=self._learner.device)
        return network_graph(self._learner.model, images)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it."""
        return {"loss_averages": self._losses.state()} if self._losses else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave; what is not there begins anew."""
        if self._losses:
            self._losses.load(state.get("loss_averages", {}))

    def _watching_gradients(self) -> AbstractContextManager[object]:
        if "gradients" not in self._part.histograms or not self._histograms_due.due(self._learner.step + 1):
            return nullcontext()
        return self._learner.train_step.optimizer.register_step_pre_hook(self._note_gradients)

    def _note_gradients(self, *_arguments: object) -> None:
        """Called by the optimizer when all gradients are there and nothing is updated yet."""
        parameters = self._learner.model.named_parameters()
        gradients = ((name, each.grad) for name, each in parameters if each.grad is not None)
        self._gradients = [histogram(f"gradients/{name}", each) for name, each in gradients]

    def _layers(self, batch: PreparedBatch) -> list[Any]:
        """The distribution of what each module without parts gives, and the share of zeros in it."""
        found: dict[str, list[Any]] = {}  # of a module that is used several times, the last

        def note(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
            # Here, so that no two layers' activations are in memory for it.
            if isinstance(output, torch.Tensor):
                zeros = (output == 0).sum().item() / max(output.numel(), 1)
                found[name] = [histogram(f"activations/{name}", output), scalar(f"sparsity/{name}", zeros)]

        model = self._learner.model
        with undisturbed(model), ExitStack() as hooks:
            for name, module in model.named_modules():
                if name and not any(True for _ in module.children()):
                    hooks.enter_context(module.register_forward_hook(partial(note, name)))
            model(batch.images.to(self._learner.device))
        return [each for pair in found.values() for each in pair]


def _statistics(values: Tensor) -> dict[str, float]:
    """Of an activation."""
    values = values.float()
    return {
        "mean": values.mean().item(),
        "deviation": values.std(correction=0).item(),
        "min": values.min().item(),
        "max": values.max().item(),
        "zeros": (values == 0).float().mean().item(),
    }
