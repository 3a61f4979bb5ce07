"""What the variables of a checkpoint are for, by their names: averages, slots, scalars, the step, or weights.

Sources: TensorFlow's ``python/training/slot_creator.py``, ``moving_averages.py`` and the optimizers beside
them; ``keras/optimizers`` of TensorFlow 2.4 (``legacy``), of 2.11 and of Keras 3. A slot is a tensor that an
optimizer keeps for a variable, as a momentum, and has its shape.

    VAR/Adam, VAR/Adam_1           TensorFlow 1.x: numbered in the order in which an optimizer makes its slots
    VAR/ExponentialMovingAverage   a moving average, made in the same way
    Adam/VAR/m                     Keras until 2.10
    Adam/m/VAR                     Keras from 2.11
    adam/VA_R_momentum             Keras 3, where the slashes of VAR became underscores

Scopes may stand in front, as in ``OptimizeLoss/dense/kernel/Momentum``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from foveal.tensorflow.object_graph import ObjectGraph

    Shape = tuple[int, ...]

_AVERAGE: Final = "ExponentialMovingAverage"
_SLOTS: Final[Mapping[str, tuple[str, ...]]] = {  # of TensorFlow 1.x, in the order in which they are made
    "Momentum": ("momentum",),
    "Adam": ("m", "v"),
    "RMSProp": ("rms", "momentum"),
    "Adagrad": ("accumulator",),
    "AdagradDA": ("gradient_accumulator", "gradient_squared_accumulator"),
    "ProximalAdagrad": ("accumulator",),
    "Adadelta": ("accum", "accum_update"),
    "Ftrl": ("accum", "linear"),
}
_CENTERED: Final = ("rms", "mg", "momentum")  # of RMSProp, which has one more slot when it is centered

_MOMENTS: Final = {"m": "m", "v": "v", "vhat": "vhat"} | {
    "momentum": "m",
    "velocity": "v",
    "velocity_hat": "vhat",
}
_KERAS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {  # by name without case and underscores
    "adam": ("Adam", _MOMENTS),
    "adamw": ("AdamW", _MOMENTS),
    "nadam": ("Nadam", _MOMENTS),
    "adamax": ("Adamax", {"m": "m", "v": "v", "u": "v", "momentum": "m", "norm": "v"}),
    "lion": ("Lion", {"m": "m", "momentum": "m"}),
    "sgd": ("SGD", {"m": "momentum", "momentum": "momentum"}),
    "rmsprop": (
        "RMSprop",
        {"rms": "rms", "velocity": "rms", "mg": "mg", "average_gradient": "mg", "momentum": "momentum"},
    ),
    "adagrad": ("Adagrad", {"accumulator": "accumulator"}),
    "adadelta": (
        "Adadelta",
        {
            "accum_grad": "accum",
            "accumulated_grad": "accum",
            "accum_var": "accum_update",
            "accumulated_delta_var": "accum_update",
        },
    ),
    "ftrl": ("Ftrl", {"accumulator": "accum", "linear": "linear"}),
}
_KERAS_SLOTS: Final = frozenset().union(*(kinds for _, kinds in _KERAS.values()))
_KERAS_AVERAGE: Final = "average"

_SCALARS: Final = {"beta1_power", "beta2_power", "learning_rate", "current_loss_scale", "good_steps"}
_ATTRIBUTES: Final = "/.ATTRIBUTES/"  # in a key of an object graph, in front of what is no variable
_STEPS: Final = {"global_step": 0, "iterations": 1, "_iterations": 1, "iter": 1, "iteration": 1, "step": 2}
_SHADOWS: Final = {"biased", "local_step"}  # what a moving average that corrects for its zero start keeps
_SAVES: Final = "save_counter"  # tf.train.Checkpoint's count of its saves
_SCOPES: Final = 32  # that may stand in front of a name
_NUMBERED: Final = re.compile(r"(.+?)(?:_([1-9][0-9]{0,3}))?")


class Roles(NamedTuple):
    """What tensors are for.

    Attributes:
        averages: by variable the name of its moving average.
        slots: by TensorFlow 1.x' name of the slot: by variable the name of the slot.
        optimizer: the one that most of the slots are of; those of Keras have its names (SGD, RMSprop).
        others: all that are no weights: averages, slots, scalars of optimizers, steps and other counters.
    """

    averages: dict[str, str]
    slots: dict[str, dict[str, str]]
    optimizer: str | None
    others: set[str]


class _Slot(NamedTuple):
    """A slot or, without an optimizer, a moving average; the number is that of TensorFlow 1.x."""

    optimizer: str
    kind: str
    number: int
    variable: str


def find_roles(shapes: Mapping[str, Shape]) -> Roles:
    """Tell what tensors are for.

    Of two optimizers of one kind that share a variable only the first one's slots are paired with it.

    Args:
        shapes: of the tensors, by name.
    """
    flat = {name.replace("/", "_"): name for name in shapes}
    found = {name: slot for name in shapes if (slot := _slot(name, shapes, flat)) is not None}
    counts = Counter((slot.optimizer, slot.variable) for slot in found.values() if not slot.kind)
    averages: dict[str, str] = {}
    slots: defaultdict[str, dict[str, str]] = defaultdict(dict)
    optimizers: Counter[str] = Counter()
    for name, slot in sorted(found.items(), key=lambda item: item[1].number):
        if not slot.optimizer:
            averages.setdefault(slot.variable, name)
        elif kind := slot.kind or _kind(slot, counts[slot.optimizer, slot.variable]):
            slots[kind].setdefault(slot.variable, name)
            optimizers[slot.optimizer] += 1
    others = {name for name, shape in shapes.items() if name in found or _is_counter(name, shape, shapes)}
    return Roles(averages, dict(slots), _main(optimizers), others)


def find_object_roles(shapes: Mapping[str, Shape], graph: ObjectGraph) -> Roles:
    """Tell what the tensors of an object-based checkpoint are for.

    The graph has the slots of TensorFlow 1.x' optimizers and of Keras' until 2.10. Those of later ones, and
    averages, are found by the names that their variables have besides; where several share one, they are
    not paired.

    Args:
        shapes: of the tensors, by name.
        graph: theirs.
    """
    counts = Counter(graph.full_names.values())
    names = {full: name for name, full in graph.full_names.items() if counts[full] == 1}
    found = find_roles({full: shapes[name] for full, name in names.items()})
    averages = {names[variable]: names[average] for variable, average in found.averages.items()}
    slots: defaultdict[str, dict[str, str]] = defaultdict(dict)
    optimizers = Counter({found.optimizer: 1} if found.optimizer else {})
    for given, variable, slot in graph.slots:
        optimizer, kinds = _optimizer(graph.full_names[slot])
        optimizers.update([optimizer] if optimizer else [])
        slots[kinds.get(given, given)].setdefault(variable, slot)
    for kind, pairs in found.slots.items():
        for variable, slot in pairs.items():
            slots[kind].setdefault(names[variable], names[slot])
    others = {name for name, shape in shapes.items() if _is_counter(name, shape, shapes)}
    others |= {name for name in shapes if _ATTRIBUTES in f"/{name}"}
    others |= graph.inside | {names[full] for full in found.others} | {slot for _, _, slot in graph.slots}
    return Roles(averages, dict(slots), _main(optimizers), others)


def step_candidates(names: Iterable[str]) -> list[str]:
    """The names that may be those of the step, the likeliest first: a scalar integer among them is it.

    ``global_step`` comes before an optimizer's ``iterations``, and that before a ``step``; of several the one
    that lies highest.
    """
    ranks = {name: _STEPS.get(name.rpartition("/")[2]) for name in names}
    found = [(rank, name.count("/"), name) for name, rank in ranks.items() if rank is not None]
    return [name for _, _, name in sorted(found)]


def _slot(name: str, shapes: Mapping[str, Shape], flat: Mapping[str, str]) -> _Slot | None:
    """What variable a tensor is a slot or an average of; None if it is none.

    Args:
        name: of the tensor.
        shapes: of all tensors, by name.
        flat: all names by how they look with underscores for slashes.
    """
    head, _, last = name.rpartition("/")
    if not head:
        return None
    shape = shapes[name]
    kind, number = _numbered(last)
    if kind in _SLOTS or kind == _AVERAGE:
        _, variable = _variable(head, shape, shapes)
        return _Slot("" if kind == _AVERAGE else kind, "", number, variable) if variable else None
    return _keras_slot(name, shape, shapes, flat)


def _keras_slot(
    name: str, shape: Shape, shapes: Mapping[str, Shape], flat: Mapping[str, str]
) -> _Slot | None:
    """What variable a tensor is a slot of, by the three ways in which Keras has named them."""
    first, _, rest = name.partition("/")
    optimizer, kinds = _keras(first)
    if optimizer:
        kind, _, variable = rest.partition("/")
        if (kind in kinds or kind == _KERAS_AVERAGE) and shapes.get(variable) == shape:
            return _keras_found(optimizer, kinds.get(kind), variable)
        for kind in (*kinds, _KERAS_AVERAGE):
            variable = flat.get(rest.removesuffix(f"_{kind}"), "")
            if rest.endswith(f"_{kind}") and shapes.get(variable) == shape:
                return _keras_found(optimizer, kinds.get(kind), variable)
    head, _, last = name.rpartition("/")
    if last in _KERAS_SLOTS:
        scope, variable = _variable(head, shape, shapes)
        optimizer, kinds = _keras(scope)
        if variable and last in kinds:
            return _keras_found(optimizer, kinds[last], variable)
    return None


def _keras_found(optimizer: str, kind: str | None, variable: str) -> _Slot:
    return _Slot(optimizer, kind, 0, variable) if kind else _Slot("", "", 0, variable)


def _keras(scope: str) -> tuple[str, Mapping[str, str]]:
    """The optimizer of Keras' that a scope is named after, and its slots: TensorFlow 1.x' names by Keras'."""
    kind, _ = _numbered(scope)
    return _KERAS.get(kind.replace("_", "").lower(), ("", {}))


def _variable(path: str, shape: Shape, shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """The last of the scopes in front of a variable of a shape, and the variable; both empty without one."""
    scope = ""
    for _ in range(_SCOPES):
        if shapes.get(path) == shape:
            return scope, path
        scope, _, path = path.partition("/")
    return "", ""


def _main(slots: Counter[str]) -> str | None:
    """The optimizer with the most slots, of several the first by name; None where there is none."""
    return min(slots, key=lambda optimizer: (-slots[optimizer], optimizer), default=None)


def _optimizer(slot: str) -> tuple[str, Mapping[str, str]]:
    """The optimizer of a slot that is known to be one, and its slots: TensorFlow 1.x' names by Keras'."""
    kind, _ = _numbered(slot.rpartition("/")[2])
    return (kind, {}) if kind in _SLOTS else _keras(slot.partition("/")[0])


def _kind(slot: _Slot, count: int) -> str | None:
    """TensorFlow 1.x' name of a slot, by how many a variable has; None if it is another optimizer's."""
    kinds = _CENTERED if (slot.optimizer, count) == ("RMSProp", 3) else _SLOTS[slot.optimizer]
    return kinds[slot.number] if slot.number < len(kinds) else None


def _numbered(name: str) -> tuple[str, int]:
    """A name without the number by which TensorFlow makes names unique, and that number: 0 if it has none."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], int(found[2] or 0)) if found else (name, 0)


def _is_counter(name: str, shape: Shape, shapes: Mapping[str, Shape]) -> bool:
    """Whether a tensor is a scalar of an optimizer's, a step, or another counter."""
    head, _, last = name.rpartition("/")
    if last in _SHADOWS and head in shapes:
        return True
    scope = head.rpartition("/")[2]
    known = last in _STEPS or last == _SAVES or _numbered(last)[0] in _SCALARS or bool(_keras(scope)[0])
    return shape == () and known
