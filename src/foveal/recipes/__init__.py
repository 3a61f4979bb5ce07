"""The recipes that come with foveal, a file each; its docstring says what it gives and where it is from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.errors import UnknownNameError

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
    """A recipe by name, from a file that ends in ``.toml``, or for a folder, with ``KEY=VALUE`` changes.

    Raises:
        UsageError: there is no such recipe, or it becomes impossible.
    """
    from foveal.recipe import from_toml, override

    if name.endswith(".toml"):
        return override(from_toml(Path(name)), changes)
    if is_path(name):
        from foveal.folder_recipe import folder_recipe

        return folder_recipe(name, changes)
    return override(load(name), changes)


def is_path(name: str) -> bool:
    """Whether this names data on the disk, and not a recipe: it has a separator, as ``./photos``."""
    return ("/" in name or "\\" in name) and not name.endswith(".toml")


def documentation(name: str) -> str:
    """What a recipe's file says of it.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return inspect.getdoc(_module(name)) or ""


def _module(name: str) -> ModuleType:
    if name not in names():
        hint = f"(the folder: ./{name})" if Path(name).is_dir() else "(a file: ./NAME.toml)"
        raise UnknownNameError("recipe", name, names(), hint)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
