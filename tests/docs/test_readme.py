"""Every command and program of the README is run, in its order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(console|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
NEVER = {"make test"}  # it is what runs this


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader is after cloning: the files the commands speak of, and foveal on the path."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(REPOSITORY / "examples", path / "examples")
    shutil.copy(REPOSITORY / "Makefile", path)
    draws = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            small = draws.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((160, 120)).save(path / "photos" / label / f"{number}.jpg")
    return path


def environment(shared_data: Path) -> dict[str, str]:
    here = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "FOVEAL_DATA": str(shared_data),  # instead of a download
    }


def commands(block: str) -> list[str]:
    """The lines after a dollar, each with its continuation lines."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.MULTILINE)
    return [re.sub(r"\s+#.*", "", command) for command in found]


def run(command: str, folder: Path, variables: dict[str, str]) -> str:
    if command == "make demo":  # with the environment that is there, instead of a new one
        command += f" VENV={sys.prefix} --old-file={sys.prefix}/installed"
    done = subprocess.run(
        command,
        shell=True,
        check=False,  # the assertion below shows what was printed
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_what_the_readme_shows_works(number: int, folder: Path, shared_data: Path) -> None:
    kind, block = BLOCKS[number]
    variables = environment(shared_data)
    if kind == "console":
        for command in commands(block):
            if command not in NEVER:
                run(command, folder, variables)
        return
    named = re.match(r"# (\w+\.py)\n", block)
    script = folder / (named[1] if named else f"block_{number}.py")
    script.write_text(block)
    if not named:
        run(f"python {script.name}", folder, variables)


def test_the_readme_shows_the_two_commands_and_a_session() -> None:
    shown = [command for kind, block in BLOCKS if kind == "console" for command in commands(block)]
    assert shown[:2] == ["make demo", "make test"]
    for verb in ("train", "evaluate", "predict"):
        assert any(command.startswith(f"foveal {verb}") for command in shown)


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
