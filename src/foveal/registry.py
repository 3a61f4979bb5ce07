"""User code named as ``package.module:factory``, and calling a factory with the options of a recipe."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from foveal.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def load_factory(reference: str, field: str) -> Callable[..., Any]:
    """Import ``package.module:factory``; modules in the current folder are found too.

    Args:
        reference: the name.
        field: the recipe's field it stands in, for messages.

    Raises:
        RecipeError: there is no such module or no such function in it.
    """
    match = re.fullmatch(r"([\w.]*\w):(\w+)", reference)
    if match is None or reference.startswith("."):
        raise RecipeError(f"{field} = {reference!r}: write 'package.module:factory'")
    module_name, name = match.groups()
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise RecipeError(f"{field} = {reference!r}: cannot import {module_name}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UnknownNameError("function", name, functions, f"in {module_name} ({field})")
    return factory  # type: ignore[no-any-return]


def call_factory(
    factory: Callable[..., Any], name: str, field: str, options: Mapping[str, Any], *arguments: Any
) -> Any:
    """``factory(*arguments, **options)``, with an unknown or missing option reported as the recipe's mistake.

    Raises:
        UnknownNameError: the factory has no such option.
        RecipeError: it lacks one, or refuses a value with a ``TypeError``, ``ValueError`` or
            ``RuntimeError``.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some built-in ones do not say
        parameters = MappingProxyType({})
    takes_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = list(parameters)[len(arguments) :]
    for key in options:
        if key not in known and not takes_any:
            raise UnknownNameError(f"option of {name}", key, known, f"({field})")
    try:
        return factory(*arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{field}: {name} refuses {dict(options)}: {error}") from error
