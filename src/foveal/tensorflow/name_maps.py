"""Which variable of TensorFlow's each tensor of a network is, and how its axes lie there.

A map is a TOML file; those of foveal's networks are in ``maps``, your own may be anywhere::

    [tensors]
    "conv1.weight" = { variable = "conv2d/kernel", layout = "HWIO" }
    "conv1.bias" = { variable = "conv2d/bias" }
    "fc.weight" = { variable = "fc/kernel", layout = "IO", flattened = [7, 7, 64] }

What many layers have alike is written once; in variables, a layer's dots become slashes::

    [[repeated]]
    layers = ["block1.conv1", "block1.conv2"]
    tensors = { "{layer}.weight" = { variable = "net/{layer}/weights", layout = "HWIO" } }

Sources: the layouts of ``tf.nn.conv2d``, ``tf.nn.depthwise_conv2d`` and ``tf.matmul``; those of PyTorch's
``Conv2d`` and ``Linear``. ``docs/tensorflow.md`` shows how to write a map.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError, UsageError, suggestion

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from pydantic_core import ErrorDetails

__all__ = ["NameMap", "Placement", "load_name_map", "read_name_map"]

_Size = Annotated[int, Field(strict=True, gt=0, lt=1 << 31)]
_Name = Annotated[str, Field(min_length=1)]
_LAYER: Final = "{layer}"
_TENSORS: Final = 100_000  # that repetitions may make, which a small file could make millions of
_MAPS: Final = resources.files("foveal.tensorflow") / "maps"
# pydantic's own words where they speak of Python.
_WORDS: Final = {
    "dict_type": "a table",
    "dataclass_type": "a table",
    "string_type": "a text",
    "string_too_short": "the name of a variable",
    "tuple_type": "a list of height, width and channels",
    "too_long": "a list of height, width and channels",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "greater_than": "above 0",
    "less_than": "below 2147483648",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Placement:
    """Where a tensor of a network is in TensorFlow's checkpoints.

    Attributes:
        variable: TensorFlow's name.
        layout: the axes there. ``HWIO``, a convolution: ``OIHW`` in the network. ``HWIM``, a depthwise one:
            ``[I * M, 1, H, W]`` in the network, the outputs of an input side by side. ``IO``, a dense layer:
            ``OI`` in the network. Empty: the same on both sides.
        flattened: height, width and channels of what the dense layer's input was before it was flattened,
            if the network flattens in the order of ``CHW``; TensorFlow does it in that of ``HWC``.
        multiplier: M, the outputs of a depthwise convolution for each of its inputs.
        optional: a checkpoint may be without it, as of an auxiliary head.
    """

    variable: _Name
    layout: Literal["", "HWIO", "HWIM", "IO"] = ""
    flattened: tuple[_Size, _Size, _Size] | None = None
    multiplier: _Size = 1
    optional: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _require_meaning(self) -> Placement:
        if self.flattened and self.layout != "IO":
            raise ValueError("flattened is for dense layers: it needs layout = 'IO'")
        if self.multiplier > 1 and self.layout != "HWIM":
            raise ValueError("multiplier is for depthwise convolutions: it needs layout = 'HWIM'")
        return self

    def to_network(self, array: NDArray[Any]) -> NDArray[Any]:
        """TensorFlow's array as the network has it: contiguous, in its own memory unless nothing moved.

        Raises:
            CheckpointError: its shape does not suit the layout.
        """
        match self.layout, array.shape:
            case "", _:
                moved = array
            case "HWIO", (_, _, _, _):
                moved = array.transpose(3, 2, 0, 1)
            case "HWIM", (height, width, inputs, self.multiplier):
                moved = array.transpose(2, 3, 0, 1).reshape(inputs * self.multiplier, 1, height, width)
            case "IO", (_, _) if self.flattened is None:
                moved = array.T
            case "IO", (rows, outputs) if self.flattened and rows == math.prod(self.flattened):
                spatial = array.reshape(*self.flattened, outputs)
                moved = spatial.transpose(3, 2, 0, 1).reshape(outputs, rows)
            case _:
                raise self._misfit("variable", array, _AXES_THERE)
        return np.asarray(moved, order="C")

    def to_tensorflow(self, array: NDArray[Any]) -> NDArray[Any]:
        """The network's array as TensorFlow has it: the inverse of :meth:`to_network`.

        Raises:
            CheckpointError: its shape does not suit the layout.
        """
        match self.layout, array.shape:
            case "", _:
                moved = array
            case "HWIO", (_, _, _, _):
                moved = array.transpose(2, 3, 1, 0)
            case "HWIM", (outputs, 1, height, width) if outputs % self.multiplier == 0:
                pairs = array.reshape(outputs // self.multiplier, self.multiplier, height, width)
                moved = pairs.transpose(2, 3, 0, 1)
            case "IO", (_, _) if self.flattened is None:
                moved = array.T
            case "IO", (outputs, columns) if self.flattened and columns == math.prod(self.flattened):
                height, width, channels = self.flattened
                spatial = array.reshape(outputs, channels, height, width)
                moved = spatial.transpose(2, 3, 1, 0).reshape(columns, outputs)
            case _:
                raise self._misfit("the tensor for", array, _AXES_HERE)
        return np.asarray(moved, order="C")

    def _misfit(self, whose: str, array: NDArray[Any], axes: dict[str, str]) -> CheckpointError:
        rows = f"{math.prod(self.flattened)} inputs" if self.flattened else "inputs"
        wanted = axes[self.layout].format(inputs=rows, multiplier=self.multiplier)
        return CheckpointError(
            f"{whose} {self.variable!r} has the shape {list(array.shape)}: layout {self.layout!r} of the "
            f"name map wants [{wanted}]"
        )


_AXES_THERE: Final = {
    "HWIO": "height, width, inputs, outputs",
    "HWIM": "height, width, inputs, {multiplier}",
    "IO": "{inputs}, outputs",
}
_AXES_HERE: Final = {
    "HWIO": "outputs, inputs, height, width",
    "HWIM": "inputs * {multiplier}, 1, height, width",
    "IO": "outputs, {inputs}",
}


class NameMap(BaseModel):
    """The tensors of a network and their places.

    Attributes:
        tensors: by the names of the network's parameters and buffers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: Annotated[dict[str, Placement], Field(min_length=1)]

    @field_validator("tensors")
    @classmethod
    def _require_own_variables(cls, tensors: dict[str, Placement]) -> dict[str, Placement]:
        owners: dict[str, str] = {}
        for name, placement in tensors.items():
            owner = owners.setdefault(placement.variable, name)
            if owner != name:
                raise ValueError(f"{owner!r} and {name!r} are both the variable {placement.variable!r}")
        return tensors


class _Repetition(BaseModel):
    """Tensors that several layers have alike: ``{layer}`` stands for the name of each."""

    model_config = ConfigDict(extra="forbid")

    layers: Annotated[list[_Name], Field(min_length=1)]
    tensors: Annotated[dict[str, Placement], Field(min_length=1)]

    @model_validator(mode="after")
    def _require_places(self) -> _Repetition:
        for name, placement in self.tensors.items():
            if not (_LAYER in name and _LAYER in placement.variable):
                raise ValueError(f"{name!r}: the tensor and its variable both need {_LAYER}")
        return self

    def tensors_of(self, layer: str) -> dict[str, Placement]:
        """Those of one layer."""
        scope = layer.replace(".", "/")
        return {
            name.replace(_LAYER, layer): replace(each, variable=each.variable.replace(_LAYER, scope))
            for name, each in self.tensors.items()
        }


class _File(BaseModel):
    """A map as it is written."""

    model_config = ConfigDict(extra="forbid")

    tensors: Annotated[dict[str, Placement], Field(min_length=1)]
    repeated: list[_Repetition] = []

    @field_validator("repeated")
    @classmethod
    def _require_own_names(cls, repeated: list[_Repetition], info: ValidationInfo) -> list[_Repetition]:
        if sum(len(each.layers) * len(each.tensors) for each in repeated) > _TENSORS:
            raise ValueError(f"makes more than {_TENSORS:,} tensors")
        known = set(info.data.get("tensors", ()))
        for repetition in repeated:
            for layer in repetition.layers:
                names = repetition.tensors_of(layer).keys()
                if twice := sorted(known & names):
                    raise ValueError(f"{twice[0]!r} is there already")
                known |= names
        return repeated

    def expanded(self) -> NameMap:
        """All tensors, one by one."""
        tensors = dict(self.tensors)
        for repetition in self.repeated:
            for layer in repetition.layers:
                tensors |= repetition.tensors_of(layer)
        return NameMap(tensors=tensors)


def load_name_map(model: str) -> NameMap:
    """The map of a network of foveal's.

    Args:
        model: its name in recipes.

    Raises:
        UsageError: there is none for it.
    """
    maps = {Path(each.name).stem: each for each in _MAPS.iterdir() if each.name.endswith(".toml")}
    if model not in maps:
        raise UsageError(
            f"there is no name map for the model {model!r}, only for {', '.join(sorted(maps))}: write one "
            "(docs/tensorflow.md shows how) and give its file (--names, or --init-names to train)"
        )
    return _parse(maps[model].read_bytes(), f"{model}.toml")


def read_name_map(path: Path | str) -> NameMap:
    """Read a map of your own.

    Raises:
        UsageError: it is not TOML, or not a map; one line names the first mistake.
        CheckpointError: it is missing, or cannot be read.
    """
    path = Path(path)
    with open_for_reading(path) as file:
        return _parse(file.readall(), str(path))


def _parse(raw: bytes, origin: str) -> NameMap:
    try:
        values = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin}: not a name map in TOML: {error}") from None
    try:
        return _File.model_validate(values).expanded()
    except ValidationError as error:
        raise UsageError(f"{origin}: {_explain(error.errors(include_url=False))}") from None


def _explain(errors: list[ErrorDetails]) -> str:
    """One line for the first mistake: where it is, what it is, what it should be."""
    # A misspelt key is also a missing one: the spelling is what to say.
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    first = next((error for error in errors if error["type"] in unknown), errors[0])
    *table, last = first["loc"]
    place = ".".join(str(key) if re.fullmatch(r"[\w-]+", str(key)) else repr(key) for key in first["loc"])
    place = place if len(place) <= 300 else f"{place[:300]}..."
    if first["type"] in unknown:
        known = _known_fields(table)
        unquoted = known is Placement.__dataclass_fields__ and isinstance(first["input"], dict)
        quotes = " (write a name with dots in quotes)" if unquoted else ""
        return f"there is no field {place}: {suggestion(str(last), known)}{quotes}"
    if first["type"] in ("missing", "too_short"):
        return f"{place} is missing"
    if first["type"] == "value_error":
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    wanted = _WORDS.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    found = f" = {first['input']!r:.80}" if isinstance(first["input"], str) else ""
    return f"{place}{found}: should be {wanted}"


def _known_fields(table: list[int | str]) -> Collection[str]:
    """The names of the fields of a table, by where it is."""
    if not table:
        return _File.model_fields
    is_repetition = table[0] == "repeated" and len(table) == 2
    return _Repetition.model_fields if is_repetition else Placement.__dataclass_fields__
