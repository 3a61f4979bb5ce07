"""Recipes as text: TOML in and out, overrides from a command line, documentation, and what differs."""

from __future__ import annotations

import inspect
import textwrap
import tomllib
from typing import TYPE_CHECKING, Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from foveal.errors import RecipeError
from foveal.recipe.fields import is_operational
from foveal.recipe.messages import explain, kinds
from foveal.recipe.schema import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

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


def from_dict(values: Mapping[str, Any], origin: str = "") -> Recipe:
    """Check plain values.

    Raises:
        RecipeError: the first mistake in them, in one line that begins with ``origin``, if that is given.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        mistake = explain(error.errors(include_url=False), values)
        raise RecipeError(f"{origin}: {mistake}" if origin else mistake) from None


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with ``KEY=VALUE`` settings applied, as ``--set`` gives them.

    ``KEY`` is dotted; ``VALUE`` is a TOML value, or else taken as a string. Another ``name`` of a table
    starts it afresh: an optimizer or schedule keeps the fields that both kinds have, a model or data set
    loses its options. ``steps`` and ``epochs`` replace each other.

    Raises:
        RecipeError: a setting is malformed, or the recipe that results is.
    """
    values = to_dict(recipe)
    changes = [_parse(setting) for setting in settings]
    changes.sort(key=lambda change: change[0][-1] != "name")  # a table's kind decides which keys it has
    keys = {path[0] for path, _ in changes if len(path) == 1}
    for key in _TOTAL - keys if _TOTAL & keys else ():
        values.pop(key, None)
    for path, value in changes:
        _assign(values, path, value)
    return from_dict(values)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` settings, as for :func:`override`, as a table of their own.

    Raises:
        RecipeError: a setting is malformed.
    """
    values: dict[str, Any] = {}
    for path, value in map(_parse, settings):
        _assign(values, path, value)
    return values


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
    if path[-1] == "name" and table.get("name") != value:
        _start_afresh(table, path[0], value)
    table[path[-1]] = value


def _start_afresh(table: dict[str, Any], field: str, name: Any) -> None:
    """Drop what another kind of table has no use for."""
    if field in ("optimizer", "schedule"):
        kind = kinds(field).get(name) if isinstance(name, str) else None
        for key in [key for key in table if kind is None or key not in kind.model_fields]:
            del table[key]
    elif field in ("model", "data"):
        table.pop("options", None)


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
    elif getattr(old, "name", None) != getattr(new, "name", None):  # another kind of optimizer or schedule
        yield f"{prefix}.name", (getattr(old, "name", None), getattr(new, "name", None))
    elif new not in (old, "auto"):
        yield prefix, (_plain(old), _plain(new))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


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
        if value == () and _takes_tables(field.annotation):
            yield f"# [[{f'{table}.{key}'.lstrip('.')}]]"  # 'key = []' would forbid to add tables below
        else:
            yield f"# {key} =" if plain[key] is None else f"{key} = {_inline(plain[key])}"
    for key, value in later:
        name = f"{table}.{key}".lstrip(".")
        for item in value if isinstance(value, tuple) else [value]:
            header = f"[[{name}]]" if isinstance(value, tuple) else f"[{name}]"
            summary = inspect.cleandoc(type(item).__doc__ or "")
            yield from ("", f"{header}  # {summary.splitlines()[0]}", *_describe(item, name))


def _takes_tables(annotation: Any) -> bool:
    """Whether a field of this type holds tables, in whatever they are wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_takes_tables, get_args(annotation)))


def _is_tables(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, BaseModel) for value in values)


def _inline(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_quoted(key)} = {_inline(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _quoted(key: str) -> str:
    """A key, in quotes if TOML asks for them."""
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]
