"""The files that real TensorFlow wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def fixtures():
    named = os.environ.get("FOVEAL_SHARED")
    shared = Path(named) if named else REPOSITORY.parent / "shared"
    folder = shared / "fixtures" / "tensorflow"
    if not folder.is_dir():
        pytest.skip(f"needs the files that TensorFlow wrote: there are none in {folder}")
    return folder
