"""The object graph of a TensorFlow 2 checkpoint: which attribute of which object each of its tensors was.

Specification: TensorFlow's ``core/protobuf/trackable_object_graph.proto``; the paths are from
``python/checkpoint/trackable_view.py``, their escaping from ``python/trackable/trackable_utils.py``. The
graph is a tensor of such a checkpoint, a string. ``docs/formats.md`` has the bytes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.errors import DamagedCheckpointError
from foveal.tensorflow.checkpoint_messages import INT32, TEXT, define

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import NoReturn

GRAPH_KEY: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE: Final = "VARIABLE_VALUE"  # the attribute of a variable that holds its tensor
_SUFFIX: Final = f"/.ATTRIBUTES/{_VALUE}"  # of the key of such a tensor
_LIMIT: Final = 4  # how much longer than the graph all paths together may be
_OPTIMIZERS: Final = (  # what an optimizer's node has, of those without slots in the graph too
    {"_iterations", "_variables"},  # Keras from 2.11
    {"iter", "decay"},  # Keras until 2.10
    {"beta1_power", "beta2_power"},  # TensorFlow 1.x
)
_MODEL: Final = "_trainable_variables"  # what a Keras 3 optimizer has and is not its own: the model's

_, _, _, _, TrackableObjectGraph = define(
    "foveal/tensorflow/trackable_object_graph.proto",
    {
        "ObjectReference": [(1, "node_id", INT32), (2, "local_name", TEXT)],
        "SerializedTensor": [(1, "name", TEXT), (2, "full_name", TEXT), (3, "checkpoint_key", TEXT)],
        "SlotVariableReference": [
            (1, "original_variable_node_id", INT32),
            (2, "slot_name", TEXT),
            (3, "slot_variable_node_id", INT32),
        ],
        "TrackableObject": [
            (1, "*children", "ObjectReference"),
            (2, "*attributes", "SerializedTensor"),
            (3, "*slot_variables", "SlotVariableReference"),
        ],
        "TrackableObjectGraph": [(1, "*nodes", "TrackableObject")],
    },
)


class ObjectGraph(NamedTuple):
    """What an object graph says of the variables of a checkpoint.

    The name of a variable is its path from the root: attributes, or what lists and dictionaries call their
    elements, joined by slashes; within one, ``.`` is doubled and a slash is ``.S``.

    Attributes:
        names: of the variables, by the keys of their tensors. A variable that is no attribute, as a slot of
            some optimizers is, is called as its key without ``/.ATTRIBUTES/VARIABLE_VALUE``.
        full_names: what TensorFlow called the variables, by their names; several may be called the same.
        slots: of each that is noted there: the optimizer's name for it, the variable, the slot.
        inside: the variables that belong to optimizers, but for ``slots``.
    """

    names: dict[str, str]
    full_names: dict[str, str]
    slots: list[tuple[str, str, str]]
    inside: set[str]


def read_object_graph(serialized: bytes, keys: Container[str], path: Path) -> ObjectGraph:
    """Decode an object graph.

    Time and memory stay in proportion to its size, whatever it holds: cycles, nodes that many others share,
    nodes that are not reached.

    Args:
        serialized: the graph.
        keys: of all tensors of the checkpoint.
        path: of the file, for messages.

    Raises:
        DamagedCheckpointError: it cannot be decoded, contradicts itself, or names a tensor that is not there.
    """
    try:
        nodes = TrackableObjectGraph.FromString(serialized).nodes
    except DecodeError as error:
        damaged_graph(path, f"it cannot be decoded: {error}")
    if not nodes:
        damaged_graph(path, "it has no root")
    tree = _Tree(path, nodes, _LIMIT * len(serialized))
    graph = ObjectGraph({}, {}, [], set())
    variables: dict[int, str] = {}
    for number, attribute in _variables(nodes):
        key = attribute.checkpoint_key
        if key not in keys:
            damaged_graph(path, f"node {number} is the tensor {key!r:.200}, which is not there")
        if key in graph.names:
            damaged_graph(path, f"node {number} is the tensor {key!r:.200}, as another is")
        name = tree.path(number) or key.removesuffix(_SUFFIX)
        if name in graph.full_names:
            damaged_graph(path, f"node {number} is called {name!r:.200}, as another is")
        variables[number] = graph.names[key] = name
        graph.full_names[name] = attribute.full_name
        if tree.is_inside(number):
            graph.inside.add(name)
    graph.slots.extend(_slots(path, nodes, variables))
    return graph


def damaged_graph(path: Path, problem: str) -> NoReturn:
    """Raise the error that says what is wrong with the object graph of the index ``path``."""
    raise DamagedCheckpointError(
        f"{path}: the object graph: {problem}: the file is damaged, use another copy"
    )


class _Reached(NamedTuple):
    """How a node is reached: from what node, under what name, and whether within an optimizer."""

    parent: int
    name: str
    inside: bool


class _Tree:
    """The nodes of a graph as they are reached breadth-first, as TensorFlow goes: each by its first path."""

    def __init__(self, path: Path, nodes: Sequence[Any], room: int) -> None:
        """Walk through a graph.

        Args:
            path: of the file, for messages.
            nodes: of the graph; the first is the root.
            room: how many characters all paths may have.
        """
        self._file, self._room = path, room
        self._reached: dict[int, _Reached] = {0: _Reached(0, "", False)}
        waiting = deque([0])
        while waiting:
            number = waiting.popleft()
            children = _children(path, nodes, number)
            optimizer = bool(nodes[number].slot_variables) or any(map(children.keys().__ge__, _OPTIMIZERS))
            inside = self._reached[number].inside or optimizer
            for name, child in children.items():
                if child not in self._reached:
                    self._reached[child] = _Reached(number, name, inside and name != _MODEL)
                    waiting.append(child)

    def is_inside(self, number: int) -> bool:
        """Whether a node belongs to an optimizer."""
        return number in self._reached and self._reached[number].inside

    def path(self, number: int) -> str:
        """The path of a node from the root; empty for the root, and for a node that is not reached."""
        names = []
        while number and number in self._reached:
            number, name, _ = self._reached[number]
            names.append(name.replace(".", "..").replace("/", ".S"))
            self._room -= len(names[-1]) + 1
            if self._room < 0:
                damaged_graph(self._file, f"its paths are more than {_LIMIT} times as long as itself")
        return "/".join(reversed(names))


def _variables(nodes: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The numbers of the nodes that are variables, and the attribute of each that names its tensor."""
    for number, node in enumerate(nodes):
        for attribute in node.attributes:
            if attribute.name == _VALUE:
                yield number, attribute


def _children(path: Path, nodes: Sequence[Any], number: int) -> dict[str, int]:
    """The numbers of the nodes that a node refers to, by their names."""
    references = nodes[number].children
    children = {each.local_name: each.node_id for each in references}
    if len(children) < len(references):
        damaged_graph(path, f"node {number} calls two of its children the same")
    for name, child in children.items():
        _require_node(path, nodes, number, child, f"child {name!r:.200}")
    return children


def _slots(path: Path, nodes: Sequence[Any], variables: Mapping[int, str]) -> Iterator[tuple[str, str, str]]:
    """The slots noted in a graph, of variables that have tensors: what they are called, variable, slot."""
    for number, node in enumerate(nodes):
        for each in node.slot_variables:
            pair = each.original_variable_node_id, each.slot_variable_node_id
            for other in pair:
                _require_node(path, nodes, number, other, f"slot {each.slot_name!r:.200}")
            variable, slot = map(variables.get, pair)
            if variable is not None and slot is not None:
                yield each.slot_name, variable, slot


def _require_node(path: Path, nodes: Sequence[Any], number: int, other: int, what: str) -> None:
    if not 0 <= other < len(nodes):
        damaged_graph(path, f"node {number} has node {other} of {len(nodes)} as {what}")
