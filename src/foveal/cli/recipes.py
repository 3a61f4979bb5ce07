"""``foveal recipes``."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe; without it, all are listed.")] = None,
) -> None:
    """List the recipes, or print one completely, with what every field means.

    Example: foveal recipes digits > mine.toml && foveal train mine.toml
    """
    from foveal import recipes as collection
    from foveal.cli.output import print_table
    from foveal.recipe import describe

    if name is None:
        rows = [(each, collection.documentation(each).splitlines()[0]) for each in collection.names()]
        print_table(("recipe", "what it is"), rows, texts=2)
        return
    recipe = collection.load(name)
    for line in collection.documentation(name).splitlines():
        typer.echo(f"# {line}".rstrip())
    typer.echo(f"\n{describe(recipe)}", nl=False)
