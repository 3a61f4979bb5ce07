"""The recipes that come with foveal, a file each; its docstring says what it gives and where it is from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

from foveal.errors import UnknownNameError

if TYPE_CHECKING:
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
