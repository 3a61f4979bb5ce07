"""What is wrong with a recipe, in one line that a person can act on."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from foveal.errors import suggestion
from foveal.recipe.schema import Recipe
from foveal.recipe.transforms import CustomTransform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

# pydantic's own words where they speak of Python.
_WORDS = {
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "finite_number": "a finite number",
}


# Fields that can be of several types, whose errors name the type after the field.
_UNIONS = (("compile",), ("threads",), ("loader_threads",), ("data", "corrupt_budget"))
# Fields that are lists of transforms.
_LISTS = ("augmentation", "preprocessing")


def explain(errors: list[ErrorDetails], values: Mapping[str, Any]) -> str:
    """One line for the first mistake: the field's name, what it is, what it should be."""
    # A misspelt key is also a missing one: the spelling is what to say.
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    kind, path = first["type"], _keys(first["loc"])
    name = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"there is no field {name!r}: {suggestion(str(path[-1]), _known_keys(path[:-1], values))}"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in first["ctx"]["expected_tags"].split(",")]
        return f"there is no {name} named {first['ctx']['tag']!r}: {suggestion(first['ctx']['tag'], tags)}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{name}{'' if kind == 'missing' else '.name'} is missing"
    if kind == "value_error":
        return f"{name}: {_wanted(first)}" if path else _wanted(first)
    # Of a field that can be several things, each complains.
    wanted = dict.fromkeys(_wanted(error) for error in errors if _keys(error["loc"]) == path)
    return f"{name or 'the recipe'} = {first['input']!r}: should be {', or '.join(wanted)}"


def _wanted(error: ErrorDetails) -> str:
    return _WORDS.get(error["type"]) or re.sub(r"^(Value error, |Input should be )", "", error["msg"])


def _keys(location: tuple[int | str, ...]) -> list[int | str]:
    """An error's location without the tags of unions, which are no keys of the recipe."""
    if location[:1] in (("optimizer",), ("schedule",)):
        return [*location[:1], *location[2:]]
    if location and location[0] in _LISTS:
        keys = [*location[:2], *location[3:]]
        return [*keys[:4], *keys[5:]] if keys[2:3] == ["transforms"] else keys
    return next((list(field) for field in _UNIONS if location[: len(field)] == field), list(location))


def _known_keys(path: list[int | str], values: Mapping[str, Any]) -> list[str]:
    """The keys of the table at ``path``."""
    if not path:
        return list(Recipe.model_fields)
    field = str(path[0])
    if field in ("optimizer", "schedule", *_LISTS):
        table: Any = values
        for key in path:
            table = table[key]
        return list(kinds(field).get(table.get("name"), CustomTransform).model_fields)
    kind: type[BaseModel] = Recipe
    for key in (each for each in path if isinstance(each, str)):  # the others are places in lists
        kind = next(c for c in _members(kind.model_fields[key].annotation) if issubclass(c, BaseModel))
    return list(kind.model_fields)


def kinds(field: str) -> dict[Any, type[BaseModel]]:
    """The classes a table with a ``name`` can be, by that name."""
    return {
        kind.model_fields["name"].default: kind for kind in _members(Recipe.model_fields[field].annotation)
    }


def _members(annotation: Any) -> Iterator[type[Any]]:
    """The classes an annotation is made of: of ``Ema | None``, ``Ema`` and ``NoneType``."""
    if inspect.isclass(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _members(argument)
