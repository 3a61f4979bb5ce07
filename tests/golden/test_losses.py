"""The first losses of each kind of recipe, as they were: whatever changes them changes every user's results.

Processors differ in the last bits of a float32, hence the tolerance; a change of order, distortion,
initialisation or schedule is far beyond it. To accept one on purpose: FOVEAL_GOLDEN=write pytest tests/golden
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import foveal

GOLDEN = Path(__file__).with_name("losses.json")
COMMON = ["steps=12", "precision=float32", "threads=1", "logging.every=1 step", "evaluation.every=never"]
VARIANTS = {
    "digits": [],
    "digits, adamw, cosine": ["optimizer.name=adamw", "optimizer.learning_rate=0.01", "schedule.name=cosine"],
    "digits, rmsprop, micro-batches": [
        "optimizer={name='rmsprop', learning_rate=0.001, momentum=0.9}",
        "schedule={name='exponential', factor=0.5, every=4}",
        "micro_batch=16",
    ],
    "digits, every distortion": [
        "augmentation=[{name='translate', pixels=2}, {name='flip'}, {name='cutout', size=3}]",
        "data.batching=keep_last",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_losses_are_those_of_before(variant: str, tmp_path: Path) -> None:
    recipe = foveal.override_recipe(foveal.load_recipe("digits"), [*COMMON, *VARIANTS[variant]])
    foveal.train(recipe, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("FOVEAL_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden | {variant: losses}, indent=1) + "\n")
        return
    assert losses == pytest.approx(golden[variant], rel=2e-3)
