"""Pruning gives the same whenever it is done: after every save or once, in any order, over any restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import (
    Best,
    EveryHours,
    EverySteps,
    Newest,
    Policy,
    Saved,
    retained,
)

# Few values, so that there are ties.
metrics = st.dictionaries(
    st.sampled_from(["accuracy", "loss"]),
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(allow_nan=True)),
)
histories = st.lists(
    st.builds(Saved, st.integers(0, 60), metrics, st.one_of(st.none(), st.floats(0, 40_000))),
    unique_by=lambda one: one.step,
    max_size=20,
)
policies = st.one_of(
    st.builds(Newest, st.integers(1, 6)),
    st.builds(EverySteps, st.integers(1, 25)),
    st.builds(EveryHours, st.floats(0.01, 6)),
    st.builds(Best, st.sampled_from(["accuracy", "loss"]), st.integers(1, 4), st.booleans()),
)
several = st.lists(policies, max_size=4)


def pruned(saved: list[Saved], chosen: list[Policy]) -> list[Saved]:
    kept = retained(saved, chosen)
    return [one for one in saved if one.step in kept]


@given(histories, several)
def test_pruning_again_changes_nothing(history: list[Saved], chosen: list[Policy]) -> None:
    once = pruned(history, chosen)
    assert pruned(once, chosen) == once
    assert retained(once, chosen) == retained(history, chosen)


@given(histories, several, st.data())
def test_pruning_while_saving_in_any_order_ends_with_what_pruning_once_at_the_end_does(
    history: list[Saved], chosen: list[Policy], data: st.DataObject
) -> None:
    present: list[Saved] = []
    for one in data.draw(st.permutations(history)):
        present.append(one)
        if data.draw(st.booleans()):
            present = pruned(present, chosen)
    assert {one.step for one in pruned(present, chosen)} == retained(history, chosen).keys()


@given(histories, several)
def test_a_policy_more_never_keeps_less(history: list[Saved], chosen: list[Policy]) -> None:
    steps = {one.step for one in history}
    for number in range(len(chosen)):
        assert retained(history, chosen[:number]).keys() <= retained(history, chosen).keys() <= steps


@given(histories, st.integers(1, 6), several)
def test_the_newest_is_always_kept(history: list[Saved], count: int, chosen: list[Policy]) -> None:
    kept = retained(history, [*chosen, Newest(count)])
    assert not history or max(one.step for one in history) in kept


@given(histories, policies)
def test_order_of_the_list_does_not_matter(history: list[Saved], policy: Policy) -> None:
    assert policy.keeps(history) == policy.keeps(history[::-1])


@given(histories, st.integers(1, 4), st.sampled_from([True, False]))
def test_none_that_was_deleted_is_better_than_one_that_was_kept(
    history: list[Saved], count: int, higher: bool
) -> None:
    kept = Best("loss", count, higher).keeps(history)
    finite = {one.step: one.metrics["loss"] for one in history if "loss" in one.metrics}
    finite = {step: value for step, value in finite.items() if abs(value) < float("inf")}
    assert kept <= finite.keys()
    assert len(kept) == min(count, len(finite))
    values = sorted(finite.values(), reverse=higher)
    assert sorted((finite[step] for step in kept), reverse=higher) == values[:count]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    several,
)
def test_folder_pruned_by_processes_that_die_and_begin_anew_has_what_the_policies_keep_of_all(
    accuracies: list[float | None], restarts: list[bool], chosen: list[Policy]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(Path(folder))
        history = []
        for number, accuracy in enumerate(accuracies):
            step = 10 * (number + 1)
            validation = None if accuracy is None else {"accuracy": accuracy, "loss": 1 - accuracy}
            history.append(Saved(step, validation or {}, 4000.0 * number))
            state = {"step": step, "validation": validation, "train_seconds": 4000.0 * number}
            manager.save(step, {}, state)
            if restarts[number]:  # before it could prune
                manager = CheckpointManager(Path(folder))
            else:
                manager.prune(chosen)
        manager.prune(chosen)
        kept = retained(history, chosen) if chosen else [one.step for one in history]  # no policy: no pruning
        assert manager.steps() == sorted(kept)
