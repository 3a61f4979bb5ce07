from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from foveal import peak_memory
from foveal.peak_memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux begins anew")
def test_what_was_freed_before_does_not_count_and_what_was_freed_since_does():
    before = torch.ones(50_000_000)  # 200 MB
    high = PeakMemory(CPU).bytes()
    del before
    memory = PeakMemory(CPU)
    low = memory.bytes()
    assert low < high - 150_000_000
    torch.ones(25_000_000).sum()
    assert memory.bytes() > low + 70_000_000


def test_where_the_system_cannot_begin_anew_it_is_the_peak_of_the_process(monkeypatch):
    monkeypatch.setattr(peak_memory, "_RESET", Path("/nowhere/clear_refs"))
    assert PeakMemory(CPU).bytes() > 50_000_000


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch):
    monkeypatch.setattr(peak_memory, "_RESET", Path("/nowhere/clear_refs"))
    monkeypatch.setattr(sys, "platform", "win32")
    assert PeakMemory(CPU).bytes() is None
