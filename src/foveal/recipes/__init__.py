"""The recipes that come with foveal, a file each; its docstring says what it gives and where it is from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from foveal.recipe import Recipe


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return _module(name).recipe  # type: ignore[no-any-return]


def choose(name: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe by name, or from a file that ends in ``.toml``, with ``KEY=VALUE`` changes.

    Raises:
        UsageError: there is no such recipe, or it becomes impossible.
    """
    from foveal.recipe import from_toml, override

    if name.endswith(".toml"):
        return override(from_toml(Path(name)), changes)
    if "/" in name or "\\" in name:
        raise UsageError(f"{name}: name a recipe or a .toml file; a folder of data is given with --data")
    return override(load(name), changes)


def documentation(name: str) -> str:
    """What a recipe's file says of it.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return inspect.getdoc(_module(name)) or ""


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UnknownNameError("recipe", name, names(), "(a file: ./NAME.toml)")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
