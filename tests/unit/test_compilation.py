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


def test_where_torch_compile_fails_nothing_is_compiled(monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    assert not can_compile()
    with pytest.raises(UsageError, match="leave out --compile"):
        frozen(nn.Identity())
