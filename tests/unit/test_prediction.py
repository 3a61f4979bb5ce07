from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import foveal
from foveal import prediction
from foveal.data.decode import read_file

if TYPE_CHECKING:
    import pytest

SEVEN = Path(__file__).parents[2] / "examples" / "seven.png"


def test_trouble_with_reading_files_is_reported(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.EIO, "Input/output error")]

    def read(path: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read_file(path)

    monkeypatch.setattr(prediction, "read_file", read)
    lines: list[str] = []
    (found,) = foveal.predict(trained_run, [SEVEN], report=lines.append)
    assert found.top[0].label == "7"
    assert len(lines) == 1
    assert "trying again" in lines[0]
