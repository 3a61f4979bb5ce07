"""Recipes as text: TOML in and out, overrides from a command line, documentation, and what differs."""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
import tomllib
from typing import TYPE_CHECKING, Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from foveal.errors import RecipeError
from foveal.recipe.fields import is_operational
from foveal.recipe.schema import CustomTransform, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

_TOTAL = {"steps", "epochs"}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values: strings, numbers, booleans, lists and dictionaries."""
    return recipe.model_dump(mode="json", exclude_none=True)


def to_toml(recipe: Recipe) -> str:
    """The complete recipe as TOML; :func:`from_toml` gives it back."""
    return tomli_w.dumps(to_dict(recipe))


def from_toml(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file is missing, is not TOML, or is not a recipe.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a recipe in TOML: {error}") from None
    return from_dict(values, str(path))


def from_dict(values: Mapping[str, Any], origin: str) -> Recipe:
    """Check plain values.

    Raises:
        RecipeError: the first mistake in them, in one line that begins with ``origin``.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_explain(error.errors(include_url=False), values)}") from None


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with ``KEY=VALUE`` settings applied, as ``--set`` gives them.

    ``KEY`` is dotted; ``VALUE`` is a TOML value, or else taken as a string. Another ``optimizer.name`` or
    ``schedule.name`` starts that table afresh, keeping the fields that both kinds have.

    Raises:
        RecipeError: a setting is malformed, or the recipe that results is.
    """
    values = to_dict(recipe)
    changes = [_parse(setting) for setting in settings]
    changes.sort(key=lambda change: change[0][-1] != "name")  # a table's kind decides which keys it has
    for path, value in changes:
        _assign(values, path, value)
    return from_dict(values, f"--set {' '.join(settings)}" if changes else recipe.name)


def _parse(setting: str) -> tuple[list[str], Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {setting}: write KEY=VALUE, for example optimizer.learning_rate=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return key.strip().split("."), value


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    table = values
    for key in path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {'.'.join(path)}: {key} is not a table; set the whole of it")
    if path in (["optimizer", "name"], ["schedule", "name"]) and table.get("name") != value:
        known = _kinds(path[0]).get(value)
        kept = {key: old for key, old in table.items() if known and key in known.model_fields}
        table.clear()
        table.update(kept)
    if path[0] in _TOTAL and len(path) == 1:
        for key in _TOTAL:
            values.pop(key, None)
    table[path[-1]] = value


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The semantic fields that differ, as ``{"a.b": (old, new)}``; a new ``auto`` agrees with anything."""
    found = dict(_differences(old, new, ""))
    if old.depends_on_total:
        for key in sorted(_TOTAL):
            if getattr(old, key) != getattr(new, key):
                found[key] = (getattr(old, key), getattr(new, key))
    return found


def _differences(old: Any, new: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, BaseModel) and type(old) is type(new):
        for key, field in type(old).model_fields.items():
            if not is_operational(field):
                yield from _differences(getattr(old, key), getattr(new, key), f"{prefix}.{key}".lstrip("."))
    elif new not in (old, "auto"):
        yield prefix, (_plain(old), _plain(new))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _explain(errors: list[ErrorDetails], values: Mapping[str, Any]) -> str:
    """One line for the first mistake: the field's name, what it is, what it should be."""
    # A misspelt key is also a missing one: the spelling is what to say.
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    kind, path = first["type"], _keys(first["loc"])
    name = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"there is no field {name!r}: {_suggest(str(path[-1]), _known_keys(path[:-1], values))}"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in first["ctx"]["expected_tags"].split(",")]
        return f"there is no {name} named {first['ctx']['tag']!r}: {_suggest(first['ctx']['tag'], tags)}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{name}{'' if kind == 'missing' else '.name'} is missing"
    message = re.sub(r"^(Value error, |Input should be )", "", first["msg"])
    if kind == "value_error":
        return f"{name}: {message}" if path else message
    return f"{name or 'the recipe'} = {first['input']!r}: should be {message}"


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _keys(location: tuple[int | str, ...]) -> list[int | str]:
    """An error's location without the tags of unions, which are no keys of the recipe."""
    if location[:1] in (("optimizer",), ("schedule",)):
        return [*location[:1], *location[2:]]
    if location[:1] == ("augmentation",):
        return [*location[:2], *location[3:]]
    return [part for part in location if part not in ("bool", "int") and "[" not in str(part)]


def _known_keys(path: list[int | str], values: Mapping[str, Any]) -> list[str]:
    """The keys of the table at ``path``."""
    if not path:
        return list(Recipe.model_fields)
    field = str(path[0])
    if field in ("optimizer", "schedule", "augmentation"):
        table = values[field][path[1]] if field == "augmentation" else values[field]
        kind = _kinds(field).get(table.get("name"), CustomTransform)
        return list(kind.model_fields)
    kind = next(c for c in _members(Recipe.model_fields[field].annotation) if issubclass(c, BaseModel))
    return list(kind.model_fields)


def _kinds(field: str) -> dict[Any, type[BaseModel]]:
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


def describe(recipe: Recipe) -> str:
    """The complete recipe as TOML with every field's documentation above it."""
    return "\n".join(_describe(recipe, "")).strip() + "\n"


def _describe(part: BaseModel, table: str) -> Iterator[str]:
    later: list[tuple[str, Any]] = []
    plain = part.model_dump(mode="json")
    for key, field in sorted(type(part).model_fields.items(), key=lambda item: item[0] != "name"):
        value = getattr(part, key)
        if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and _is_tables(value)):
            later.append((key, value))
            continue
        kind = "operational" if is_operational(field) else "semantic"
        documentation = " ".join((field.description or "Which kind of this table it is.").split())
        yield from (f"# {line}" for line in textwrap.wrap(f"{documentation} [{kind}]", 100))
        yield f"# {key} =" if plain[key] is None else f"{key} = {_inline(plain[key])}"
    for key, value in later:
        name = f"{table}.{key}".lstrip(".")
        for item in value if isinstance(value, tuple) else [value]:
            header = f"[[{name}]]" if isinstance(value, tuple) else f"[{name}]"
            summary = inspect.cleandoc(type(item).__doc__ or "")
            yield from ("", f"{header}  # {summary.splitlines()[0]}", *_describe(item, name))


def _is_tables(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, BaseModel) for value in values)


def _inline(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_inline(item)}' for key, item in value.items())}}}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
