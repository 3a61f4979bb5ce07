from __future__ import annotations

from typing import Any

import torch
from tensorboardX.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from foveal.models.cifar10_cnn import Cifar10Cnn
from foveal.models.small_cnn import SmallCnn
from foveal.training.graph import network_graph


class Residual(nn.Module):
    """A block whose sum, and whose second use of a layer, no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        first, second = images.flatten(1).chunk(2, dim=1)
        return self.body(self.body(first)) + second


def nodes(model: nn.Module, *shape: int) -> dict[str, Any]:
    graph = GraphDef.FromString(network_graph(model, torch.zeros(1, *shape)))
    assert len({node.name for node in graph.node}) == len(graph.node)
    return {node.name: node for node in graph.node}


def shapes(node: Any) -> list[list[int]]:
    return [[dim.size for dim in shape.dim] for shape in node.attr["_output_shapes"].list.shape]


def test_operations_stand_in_the_scopes_of_their_modules_with_shape_and_device() -> None:
    found = nodes(Cifar10Cnn(10, (24, 24, 3)), 3, 24, 24)
    conv = found["conv2/conv2d"]
    assert (conv.op, conv.device, shapes(conv)) == ("conv2d", "/device:CPU:0", [[1, 64, 12, 12]])
    assert list(conv.input)[1:] == ["conv2/weight", "conv2/bias"]
    assert list(found["pool1/1/relu"].input) == ["pool1/0/max_pool2d"]
    assert found["conv1/conv2d"].input[0] == "images"
    assert list(found["logits"].input) == ["softmax_linear/linear"]


def test_what_happens_between_modules_is_there_too() -> None:
    found = nodes(Residual(), 2, 2, 2)
    assert shapes(found["chunk"]) == [[1, 4], [1, 4]]
    assert list(found["body/0/linear"].input) == ["chunk", "body/0/weight", "body/0/bias"]
    assert found["body/0/linear_1"].input[0] == "body/1/relu"
    assert list(found["add"].input) == ["body/1/relu_1", "chunk:1"]


def test_every_input_is_a_node() -> None:
    found = nodes(SmallCnn(10, (8, 8, 1), widths=[4, 8], kernel=3, stride=1, padding=True), 1, 8, 8)
    assert {name.partition(":")[0] for node in found.values() for name in node.input} <= set(found)
    assert found["features/1/running_mean"].op == "Buffer"


def test_the_network_stays_as_it_is() -> None:
    model = SmallCnn(10, (8, 8, 1), widths=[4, 8], kernel=3, stride=1, padding=True, dropout=0.5).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    network_graph(model, torch.ones(1, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
