from __future__ import annotations

import time

import pytest
import torch

from foveal import machine_rate
from foveal.machine_rate import best_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_something_is_the_fastest(dtype):
    best = best_rate(CPU, dtype, seconds=0.001)
    assert best.per_second > 1e8
    assert best.what.startswith(("matrix product", "convolution"))


def test_the_best_of_all_rates_counts_each_at_its_best(monkeypatch):
    pauses = {"slow": iter([0.0, 0.05, 0.05, 0.05]), "fast": iter([0.05, 0.05, 0.005, 0.05])}

    def work(*_):
        for name, operations in (("slow", 1000), ("fast", 1000)):
            yield name, operations, lambda name=name: time.sleep(next(pauses[name]))

    monkeypatch.setattr(machine_rate, "_work", work)
    best = best_rate(CPU, torch.float32, seconds=0.1)
    assert best.what == "fast"
    assert 30_000 < best.per_second < 200_000


def test_what_would_take_too_long_is_left_out(monkeypatch):
    called = []

    def work(*_):
        yield "small", 100, lambda: time.sleep(0.001)
        yield "large", 10**9, lambda: called.append("large")

    monkeypatch.setattr(machine_rate, "_work", work)
    assert best_rate(CPU, torch.float32, seconds=0.01).what == "small"
    assert called == []


def test_operations_of_products_and_convolutions_are_counted_right():
    from torch.utils.flop_counter import FlopCounterMode

    for what, operations, call in machine_rate._work(CPU, torch.float32):
        if operations < 3e8:
            with FlopCounterMode(display=False) as counter:
                call()
            assert counter.get_total_flops() == operations, what
