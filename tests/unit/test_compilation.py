from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._inductor import config

from foveal.compilation import can_compile, frozen
from foveal.errors import UsageError


def test_a_frozen_network_gives_the_same_answers(monkeypatch):
    seen = []

    def backend(graph, _examples):
        seen.append(config.freezing)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), torch.randn(2, 3, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(frozen(model)(images), model(images))
    assert seen[-1]  # its weights may be laid out in advance
    assert not config.freezing


def test_a_smaller_batch_is_not_compiled_for_again(monkeypatch):
    compiled = []

    def backend(graph, _examples):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3)).eval()
    network, images = frozen(model), torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for count in (5, 2, 1, 5):
            torch.testing.assert_close(network(images[:count]), model(images[:count]))
    assert len(compiled) == 1 + 1  # the first is to see whether that works


def test_where_torch_compile_fails_nothing_is_compiled(monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    assert not can_compile()
    with pytest.raises(UsageError, match="leave out --compile"):
        frozen(nn.Identity())
