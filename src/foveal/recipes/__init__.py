"""The recipes that come with foveal, a file each; its docstring says what it gives and where it is from."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from foveal.recipe import Recipe

_FOR_FOLDERS = "efficientnet-lite0"


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
        return override(of_folder(Path(name)), changes)
    return override(load(name), changes)


def is_path(name: str) -> bool:
    """Whether this names data on the disk, and not a recipe: it has a separator, as ``./photos``."""
    return "/" in name or "\\" in name


def of_folder(path: Path) -> Recipe:
    """A recipe for a folder of photographs, or other labelled images: what knows ImageNet learns them.

    Raises:
        UsageError: there is no such folder.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such folder of images (a recipe's name has no separator)")
    path = path.resolve()
    recipe = load(_FOR_FOLDERS)
    name = re.sub(r"[^\w.-]+", "-", path.name).strip(".-") or recipe.name
    data = recipe.data.model_copy(update={"path": path})
    return recipe.model_copy(update={"name": name, "data": data})


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
