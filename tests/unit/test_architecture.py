"""Rules that the design sets for the whole package."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foveal

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "foveal"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FILES = [*SOURCES, *sorted((REPOSITORY / "tests").rglob("*.py"))]


def name(path):
    return str(path.relative_to(REPOSITORY))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """The full names of all that a file imports: at its top, inside functions, and for type checks."""
    package = ["foveal", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


class TestImporting:
    @pytest.mark.parametrize("module", ["foveal", "foveal.cli.app"])
    def test_loads_nothing_slow_and_starts_no_thread(self, module):
        program = (
            f"import sys, threading, {module}\n"
            "slow = {'torch', 'numba', 'numpy', 'PIL', 'torchmetrics', 'tensorboardX', 'tensorflow'}\n"
            "print(sorted(slow & set(sys.modules)), threading.active_count())"
        )
        result = python("-c", program)
        assert result.stderr == ""
        assert result.stdout == "[] 1\n"

    def test_changes_neither_signal_handlers_nor_the_working_of_warnings(self):
        program = (
            "import signal, warnings\n"
            "def state(): return [signal.getsignal(n) for n in (2, 15)], list(warnings.filters)\n"
            "before = state()\n"
            "import foveal, foveal.cli.app\n"
            "print(state() == before)"
        )
        assert python("-c", program).stdout == "True\n"

    @pytest.mark.parametrize(
        "module", [each.name for each in pkgutil.walk_packages(foveal.__path__, "foveal.")]
    )
    def test_of_every_module_works(self, module):
        assert importlib.import_module(module).__doc__

    def test_finds_every_file_of_the_package(self):
        modules = {each.name for each in pkgutil.walk_packages(foveal.__path__, "foveal.")}
        dotted = {".".join(["foveal", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in SOURCES}
        assert {each.removesuffix(".__init__") for each in dotted} == modules | {"foveal"}


class TestRooms:
    @pytest.mark.parametrize("room", ["data", "models", "checkpoints", "tensorflow"])
    def test_that_know_nothing_of_training_and_of_the_command_line(self, room):
        files = sorted((PACKAGE / room).rglob("*.py"))
        assert files
        for path in files:
            wrong = [each for each in imports(path) if re.match(r"foveal\.(training|cli)\b", each)]
            assert wrong == [], name(path)

    def test_of_tensorflow_files_need_neither_torch_nor_tensorflow(self):
        for path in (PACKAGE / "tensorflow").rglob("*.py"):
            wrong = [each for each in imports(path) if re.match(r"(torch|tensorflow)\b", each)]
            assert wrong == [], name(path)
        modules = [path.stem for path in (PACKAGE / "tensorflow").glob("*.py") if path.stem != "__init__"]
        loads = "".join(f"import foveal.tensorflow.{module}\n" for module in modules)
        result = python("-c", f"import sys\n{loads}print('torch' in sys.modules)")
        assert result.stdout == "False\n", result.stderr

    def test_see_local_and_relative_imports(self, tmp_path, monkeypatch):
        monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
        (tmp_path / "data").mkdir()
        path = tmp_path / "data" / "x.py"
        path.write_text(
            "def f():\n    from ..training import loop\n    from . import y\n    import foveal.cli\n"
        )
        assert list(imports(path)) == ["foveal.training.loop", "foveal.data.y", "foveal.cli"]


def is_writer(path):
    return path.is_relative_to(PACKAGE / "cli") or path == PACKAGE / "training" / "console.py"


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_writer(path)], ids=name)
def test_only_the_command_line_and_the_console_write_to_the_terminal(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"sys.stdout", "sys.stderr", "typer.echo", "click.echo"}
    assert not [each for each in imports(path) if re.match(r"(rich|typer|click)\b|sys\.std", each)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_is_longer_than_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_module_is_named_for_having_no_purpose(path):
    assert not {"util", "utils", "helper", "helpers", "misc", "common"} & {
        *path.relative_to(REPOSITORY).with_suffix("").parts,
        *path.stem.removeprefix("test_").split("_"),
    }


class TestPublicNames:
    def test_are_sorted_and_each_once(self):
        assert foveal.__all__ == sorted(set(foveal.__all__))

    @pytest.mark.parametrize("public", foveal.__all__)
    def test_resolve_to_what_their_origin_holds(self, public):
        module, attribute = foveal._ORIGINS[public].split(":")
        assert getattr(foveal, public) is getattr(importlib.import_module(module), attribute)
        assert getattr(foveal, public).__doc__

    def test_are_those_that_have_an_origin_and_those_type_checkers_see(self):
        block = next(node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
        assert ast.unparse(block.test) == "TYPE_CHECKING"
        seen = {
            alias.asname or alias.name: f"{node.module}:{alias.name}"
            for node in block.body
            for alias in node.names
        }
        assert seen == foveal._ORIGINS
        assert sorted(seen) == foveal.__all__ == dir(foveal)

    def test_are_all_there_for_a_star_import(self):
        scope = {}
        exec("from foveal import *", scope)
        assert set(foveal.__all__) <= set(scope)

    def test_and_no_others(self):
        with pytest.raises(AttributeError, match="module 'foveal' has no attribute 'trian'"):
            _ = foveal.trian


class TestCommand:
    @pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
    def test_shows_its_commands_and_exits_with_0(self, arguments):
        result = python("-c", "from foveal.cli.app import main; main()", *arguments)
        assert result.returncode == 0
        assert result.stderr == ""
        assert all(command in result.stdout for command in ("train", "evaluate", "predict", "recipes"))

    @pytest.mark.parametrize("command", ["train", "evaluate", "predict", "recipes"])
    def test_of_every_kind_has_help_with_an_example(self, command):
        result = python("-c", "from foveal.cli.app import main; main()", command, "--help")
        assert result.returncode == 0
        assert f"Example: foveal {command}" in " ".join(result.stdout.split())
