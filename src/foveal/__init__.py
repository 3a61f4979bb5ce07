"""foveal trains image classifiers: fast input, exact resume, checkpoints that cannot be half-written.

    >>> import foveal
    >>> result = foveal.train(foveal.load_recipe("digits"), run="runs/digits")
    >>> foveal.evaluate("runs/digits").accuracy

Importing this package imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.data.combine import balanced, concat, filtered, mix, relabel, skip, split, subset, take
    from foveal.data.expand import expand
    from foveal.data.source import ArraySource, Batch, DataSet, Encoded, Source
    from foveal.data.stream import StreamSource
    from foveal.errors import FovealError
    from foveal.evaluation import Evaluation, evaluate
    from foveal.following import Followed, follow
    from foveal.models.registry import end_points
    from foveal.prediction import Guess, Prediction, predict
    from foveal.recipe import Recipe
    from foveal.recipe import from_toml as read_recipe
    from foveal.recipe import override as override_recipe
    from foveal.recipes import load as load_recipe
    from foveal.reproducibility.bisect import bisect
    from foveal.reproducibility.replay import replay
    from foveal.reproducibility.verify_resume import verify_resume
    from foveal.reviewing import Review, review
    from foveal.seeding import Draws
    from foveal.summary import NetworkSummary, summarise
    from foveal.training.console import Console
    from foveal.training.loop import TrainResult, train

_ORIGINS = {
    "ArraySource": "foveal.data.source:ArraySource",
    "Batch": "foveal.data.source:Batch",
    "Console": "foveal.training.console:Console",
    "DataSet": "foveal.data.source:DataSet",
    "Draws": "foveal.seeding:Draws",
    "Encoded": "foveal.data.source:Encoded",
    "Evaluation": "foveal.evaluation:Evaluation",
    "Followed": "foveal.following:Followed",
    "FovealError": "foveal.errors:FovealError",
    "Guess": "foveal.prediction:Guess",
    "NetworkSummary": "foveal.summary:NetworkSummary",
    "Prediction": "foveal.prediction:Prediction",
    "Recipe": "foveal.recipe:Recipe",
    "Review": "foveal.reviewing:Review",
    "Source": "foveal.data.source:Source",
    "StreamSource": "foveal.data.stream:StreamSource",
    "TrainResult": "foveal.training.loop:TrainResult",
    "balanced": "foveal.data.combine:balanced",
    "bisect": "foveal.reproducibility.bisect:bisect",
    "concat": "foveal.data.combine:concat",
    "end_points": "foveal.models.registry:end_points",
    "evaluate": "foveal.evaluation:evaluate",
    "expand": "foveal.data.expand:expand",
    "filtered": "foveal.data.combine:filtered",
    "follow": "foveal.following:follow",
    "load_recipe": "foveal.recipes:load",
    "mix": "foveal.data.combine:mix",
    "override_recipe": "foveal.recipe:override",
    "predict": "foveal.prediction:predict",
    "read_recipe": "foveal.recipe:from_toml",
    "relabel": "foveal.data.combine:relabel",
    "replay": "foveal.reproducibility.replay:replay",
    "review": "foveal.reviewing:review",
    "skip": "foveal.data.combine:skip",
    "split": "foveal.data.combine:split",
    "subset": "foveal.data.combine:subset",
    "summarise": "foveal.summary:summarise",
    "take": "foveal.data.combine:take",
    "train": "foveal.training.loop:train",
    "verify_resume": "foveal.reproducibility.verify_resume:verify_resume",
}

__all__ = [
    "ArraySource",
    "Batch",
    "Console",
    "DataSet",
    "Draws",
    "Encoded",
    "Evaluation",
    "Followed",
    "FovealError",
    "Guess",
    "NetworkSummary",
    "Prediction",
    "Recipe",
    "Review",
    "Source",
    "StreamSource",
    "TrainResult",
    "balanced",
    "bisect",
    "concat",
    "end_points",
    "evaluate",
    "expand",
    "filtered",
    "follow",
    "load_recipe",
    "mix",
    "override_recipe",
    "predict",
    "read_recipe",
    "relabel",
    "replay",
    "review",
    "skip",
    "split",
    "subset",
    "summarise",
    "take",
    "train",
    "verify_resume",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _ORIGINS[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
