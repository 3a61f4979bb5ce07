"""The graph of a network as TensorBoard shows it: every operation, in the scope of its module."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveal.inference import undisturbed

if TYPE_CHECKING:
    from torch import Tensor, nn


def network_graph(model: nn.Module, images: Tensor) -> bytes:
    """The operations of a forward pass in evaluation mode, which leaves no trace in the network.

    Nodes are operations (``conv1/conv2d``), parameters and buffers (``conv1/weight``), ``images`` and
    ``logits``; they know shape and device. Modules are scopes.

    Args:
        model: the network.
        images: float32 ``[B, C, H, W]``, on its device.

    Returns:
        A serialised ``GraphDef`` (TensorFlow's ``core/framework/graph.proto``).
    """
    recorder = _Recorder()
    with ExitStack() as hooks, undisturbed(model):
        recorder.node("images", "Placeholder", [], [images])
        for name, parameter in model.named_parameters():
            recorder.node(name, "Parameter", [], [parameter])
        for name, buffer in model.named_buffers():
            recorder.node(name, "Buffer", [], [buffer])
        for name, module in model.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(partial(recorder.enter, name)))
                hooks.enter_context(module.register_forward_hook(recorder.leave))
        with recorder:
            logits = model(images)
        recorder.node("logits", "Identity", [logits], [logits])
    return recorder.serialised()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes a node of every operation that is done while it is active."""

    def __init__(self) -> None:
        from tensorboardX.proto.graph_pb2 import GraphDef
        from tensorboardX.proto.versions_pb2 import VersionDef

        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = GraphDef(versions=VersionDef(producer=22))
        self._scopes: list[str] = []
        self._names: Counter[str] = Counter()
        self._outputs: dict[int, str] = {}  # by the tensor's id, what the graph calls it
        self._kept: list[Tensor] = []  # so that no id is given twice

    def enter(self, name: str, *_arguments: object) -> None:
        """A module's forward begins."""
        self._scopes.append(name)

    def leave(self, *_arguments: object) -> None:
        """It ends."""
        self._scopes.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.node(".".join([*self._scopes[-1:], name]), name, _tensors((args, kwargs)), _tensors(result))
        return result

    def node(self, path: str, operation: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Add a node; ``path`` has dots, as modules' names have."""
        from tensorboardX.proto.attr_value_pb2 import AttrValue
        from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

        name = re.sub(r"[^\w./-]", "_", path.replace(".", "/"))
        self._names[name] += 1
        if self._names[name] > 1:
            name += f"_{self._names[name] - 1}"
        shapes = [
            TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in each.shape]) for each in outputs
        ]
        device = outputs[0].device if outputs else None
        self._graph.node.add(
            name=name,
            op=operation,
            input=[self._outputs[id(each)] for each in inputs if id(each) in self._outputs],
            device=f"/device:{device.type.upper()}:{device.index or 0}" if device else "",
            attr={"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))},
        )
        for number, each in enumerate(outputs):
            self._outputs[id(each)] = f"{name}:{number}" if number else name
            self._kept.append(each)

    def serialised(self) -> bytes:
        """The graph so far."""
        content: bytes = self._graph.SerializeToString()
        return content


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
