from __future__ import annotations

import pytest

from foveal.checkpoints.retention import (
    Best,
    EveryHours,
    EverySteps,
    Newest,
    Policy,
    Saved,
    retained,
    retention_policies,
)
from foveal.recipe.schema import Checkpointing

HISTORY = [
    Saved(100, {"accuracy": 0.5, "loss": 1.0}, seconds=1000.0),
    Saved(200, {"accuracy": 0.9, "loss": 0.7}, seconds=3700.0),
    Saved(300, {}, seconds=5000.0),
    Saved(400, {"accuracy": 0.9, "loss": 0.5}, seconds=7200.0),
    Saved(500, {"accuracy": 0.7, "loss": 0.6}),
]


@pytest.mark.parametrize(
    ("policy", "kept", "reason"),
    [
        (Newest(1), {500}, "the last"),
        (Newest(3), {300, 400, 500}, "one of the last 3"),
        (Newest(9), {100, 200, 300, 400, 500}, "one of the last 9"),
        (EverySteps(100), {100, 200, 300, 400, 500}, "the first of 100 steps"),
        (EverySteps(150), {200, 300, 500}, "the first of 150 steps"),
        (EverySteps(600), set(), "the first of 600 steps"),
        (EveryHours(1), {200, 400}, "the first of 1 hour"),
        (EveryHours(0.5), {200, 400}, "the first of 0.5 hours"),
        (EveryHours(3), set(), "the first of 3 hours"),
        (Best("accuracy", 1, higher_is_better=True), {200}, "the best by accuracy"),
        (Best("accuracy", 3, higher_is_better=True), {200, 400, 500}, "one of the best 3 by accuracy"),
        (Best("loss", 2, higher_is_better=False), {400, 500}, "one of the best 2 by loss"),
        (Best("auroc", 2, higher_is_better=True), set(), "one of the best 2 by auroc"),
    ],
)
def test_policy_keeps_what_it_says(policy: Policy, kept: set[int], reason: str) -> None:
    assert policy.keeps(HISTORY) == kept
    assert policy.keeps(HISTORY[::-1]) == kept
    assert policy.reason == reason
    assert policy.keeps([]) == set()


def test_metric_that_is_not_a_number_is_never_the_best() -> None:
    saved = [Saved(1, {"loss": float("nan")}), Saved(2, {"loss": float("-inf")}), Saved(3, {"loss": 2.0})]
    assert Best("loss", 2, higher_is_better=False).keeps(saved) == {3}


def test_what_several_policies_keep_has_all_their_reasons() -> None:
    policies = [Newest(2), Best("accuracy", 1, higher_is_better=True), EveryHours(2)]
    assert retained(HISTORY, policies) == {
        200: ["the best by accuracy"],
        400: ["one of the last 2", "the first of 2 hours"],
        500: ["one of the last 2"],
    }


def lower_for_loss(name: str) -> bool:
    return name != "loss"


def test_recipe_asks_by_default_for_the_last_three_and_the_best() -> None:
    assert retention_policies(Checkpointing(), "loss", lower_for_loss) == [
        Newest(3),
        Best("loss", 1, higher_is_better=False),
    ]


def test_recipe_can_ask_for_every_policy() -> None:
    checkpointing = Checkpointing(
        keep_last=1, keep_best={"accuracy": 2, "loss": 1}, keep_steps=1000, keep_hours=0.5
    )
    assert retention_policies(checkpointing, "accuracy", lower_for_loss) == [
        Newest(1),
        Best("accuracy", 2, higher_is_better=True),
        Best("loss", 1, higher_is_better=False),
        EverySteps(1000),
        EveryHours(0.5),
    ]


def test_recipe_can_do_without_a_best() -> None:
    assert retention_policies(Checkpointing(keep_best=0), "accuracy", lower_for_loss) == [Newest(3)]
