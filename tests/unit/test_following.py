from __future__ import annotations

import errno
import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.events import read_events

from foveal import evaluate, follow, following
from foveal.checkpoints import holding as holding_module
from foveal.checkpoints.holding import Holding
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.errors import CheckpointError, DataError, RunError, UnknownNameError
from foveal.run_folder import RunFolder
from foveal.training.metrics import AppendedFile

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = [20, 30, 40]  # of the trained run, which ends at 40


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations-follow.jsonl").read_text().splitlines()]


def steps(run: Path) -> list[int]:
    return [record["step"] for record in logged(run)]


def checkpoints(run: Path) -> CheckpointManager:
    return CheckpointManager(run / "checkpoints")


def change_recipe(run: Path, old: str, new: str) -> None:
    text = (run / "recipe.toml").read_text()
    assert text.count(old) == 1
    (run / "recipe.toml").write_text(text.replace(old, new))


def unfinish(run: Path) -> None:
    change_recipe(run, "\nsteps = 40\n", "\nsteps = 80\n")


def save_again(run: Path, step: int, **state: object) -> None:
    """Save a checkpoint of ``step`` with the tensors of the last and another state."""
    stored = checkpoints(run).load(40)
    assert stored is not None
    checkpoints(run).save(step, stored.tensors, {**stored.state, "step": step, **state})


def damage(run: Path, step: int) -> None:
    path = checkpoints(run).path(step) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_of_a_finished_run_every_checkpoint_is_evaluated_once_as_evaluate_does(run: Path) -> None:
    lines: list[dict[str, Any]] = []
    result = follow(run, evaluated=lambda record: lines.append(dict(record)))
    assert result.finished
    assert (result.new, result.unusable, result.stopped) == (3, (), None)
    assert lines == logged(run) == list(result.evaluations)
    for line in lines:
        alone = evaluate(run, checkpoint=line["step"]).record()
        assert {name: line[name] for name in alone} == alone
    assert [event.step for event in read_events(run / "eval")] == steps(run) == STEPS
    assert sorted((run / "checkpoints").iterdir()) == [checkpoints(run).path(step) for step in STEPS]


def test_following_a_finished_run_again_evaluates_nothing_and_gives_the_same(run: Path) -> None:
    first = follow(run)
    before = (run / "evaluations-follow.jsonl").read_bytes()
    again = follow(run)
    assert (again.new, again.finished, again.evaluations) == (0, True, first.evaluations)
    assert (run / "evaluations-follow.jsonl").read_bytes() == before


def test_each_part_and_each_kind_of_weights_is_evaluated_by_itself(run: Path) -> None:
    follow(run)
    assert follow(run, split="validation", metrics=["f1_score"]).new == 3
    assert follow(run, weights="raw").new == 3
    assert follow(run, weights="ema").new == 0
    found = [(record["split"], record["weights"]) for record in logged(run)]
    assert found == [("test", "ema")] * 3 + [("validation", "ema")] * 3 + [("test", "raw")] * 3
    assert all("f1_score" in record for record in logged(run)[3:6])


def test_what_the_trainer_deletes_before_its_turn_is_evaluated(run: Path) -> None:
    result = follow(run, evaluated=lambda _record: checkpoints(run).prune([Newest(1)]))
    assert [record["step"] for record in result.evaluations] == STEPS
    assert checkpoints(run).steps() == [40]


def test_a_death_of_the_follower_loses_nothing_and_repeats_nothing(run: Path) -> None:
    class Death(BaseException):
        pass

    def die(_record: object) -> None:
        raise Death

    for _ in range(2):
        with pytest.raises(Death):
            follow(run, evaluated=die)
        checkpoints(run).prune([Newest(1)])
    assert follow(run).new == 1
    assert steps(run) == STEPS


def test_a_death_after_the_line_and_before_the_checkpoint_is_let_go_repeats_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_self: Holding, _name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Holding, "mark_read", die)
        with pytest.raises(KeyboardInterrupt):
            follow(run)
    assert steps(run) == [20]
    assert len(Holding(run / "checkpoints", "follower", print).names()) == 3
    assert follow(run).new == 2
    assert steps(run) == STEPS


def test_a_log_that_cannot_be_written_ends_it_and_the_same_call_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AppendedFile.append
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(self: AppendedFile, data: bytes) -> None:
        append(self, data[: len(data) // 2])
        raise full

    def fill(_record: object) -> None:
        monkeypatch.setattr(AppendedFile, "append", refuse)

    with pytest.raises(CheckpointError, match=r"evaluations-follow\.jsonl \(No space .* free some space"):
        follow(run, evaluated=fill)
    monkeypatch.undo()
    assert follow(run).new == 2
    assert [event.step for event in read_events(run / "eval")] == steps(run) == STEPS


def test_a_line_that_was_cut_off_is_written_again(run: Path) -> None:
    follow(run)
    path = run / "evaluations-follow.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert follow(run).new == 1
    assert steps(run) == STEPS
    assert [event.step for event in read_events(run / "eval")] == STEPS


def test_a_damaged_checkpoint_is_reported_once_and_passed_over(run: Path) -> None:
    damage(run, 30)
    said: list[str] = []
    result = follow(run, report=said.append)
    assert (result.unusable, result.finished, steps(run)) == ((30,), True, [20, 40])
    assert len([line for line in said if "damaged" in line and "passed over" in line]) == 1
    assert checkpoints(run).steps() == STEPS  # it is the trainer's


def test_a_damaged_checkpoint_that_is_saved_again_is_evaluated(run: Path) -> None:
    damage(run, 20)

    def repair(line: str) -> None:
        if "passed over" in line:
            save_again(run, 20)

    result = follow(run, report=repair)
    assert (result.unusable, sorted(steps(run))) == ((), STEPS)


def test_a_link_in_the_place_of_a_checkpoint_is_not_followed(run: Path, tmp_path: Path) -> None:
    checkpoints(run).path(30).rename(tmp_path / "elsewhere")
    checkpoints(run).path(30).symlink_to(tmp_path / "elsewhere")
    said: list[str] = []
    assert follow(run, report=said.append).unusable == (30,)
    assert len([line for line in said if "is a link" in line]) == 1


@pytest.mark.parametrize("part", ["manifest.json", "state.json", "ema.safetensors"])
def test_a_damaged_last_checkpoint_does_not_keep_the_follower_waiting(run: Path, part: str) -> None:
    (checkpoints(run).path(40) / part).write_bytes(b"")
    result = follow(run, timeout=60)
    assert (result.finished, result.unusable, steps(run)) == (True, (40,), [20, 30])


def test_a_run_that_is_not_finished_is_followed_until_patience_is_over(run: Path) -> None:
    unfinish(run)
    said: list[str] = []
    result = follow(run, timeout=0.1, report=said.append)
    assert (result.finished, result.stopped, result.new) == (False, None, 3)
    assert said[-1].startswith("nothing new for 0.1 seconds")
    assert not (run / "checkpoints" / ".follow").exists()


def test_a_run_that_was_extended_is_followed_on(run: Path) -> None:
    follow(run)
    unfinish(run)
    assert not follow(run, timeout=0.1).finished
    save_again(run, 80)
    result = follow(run)
    assert (result.finished, result.new, steps(run)) == (True, 1, [*STEPS, 80])


def test_a_run_that_patience_ended_has_ended(run: Path) -> None:
    unfinish(run)
    change_recipe(run, "\n[evaluation]\n", "\n[evaluation]\npatience = 2\n")
    save_again(run, 50, stale=1)
    assert not follow(run, timeout=0.1).finished
    save_again(run, 60, stale=2)
    assert follow(run, timeout=60).finished


def test_a_run_whose_last_step_is_yet_to_be_evaluated_has_not_ended(run: Path) -> None:
    save_again(run, 40, evaluation_pending=True)
    assert not follow(run, timeout=0.1).finished
    save_again(run, 40, evaluation_pending=False)
    result = follow(run, timeout=60)
    assert (result.finished, result.new, steps(run)) == (True, 0, STEPS)


def test_a_length_in_epochs_is_known_too(run: Path) -> None:
    change_recipe(run, "\nsteps = 40\n", "\nepochs = 3.25\n")  # 39 steps
    assert follow(run, timeout=60).finished
    change_recipe(run, "\nepochs = 3.25\n", "\nepochs = 3.5\n")
    assert not follow(run, timeout=0.1).finished


def meanwhile(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.3, act)
    thread.start()
    return thread


def test_a_run_that_does_not_exist_yet_is_waited_for(run: Path, tmp_path: Path) -> None:
    later = run.rename(tmp_path / "later")
    said: list[str] = []
    thread = meanwhile(lambda: later.rename(run))
    result = follow(run, report=said.append)
    thread.join()
    assert said[0] == f"waiting for a run in {run}"
    assert (result.finished, result.new) == (True, 3)


def test_checkpoints_that_come_while_it_waits_are_evaluated(run: Path) -> None:
    unfinish(run)

    def train() -> None:
        for step in range(41, 81):
            trainer.save(step, last.tensors, {**last.state, "step": step})
            trainer.prune([Newest(1)])

    def begin(record: Any) -> None:
        if record["step"] == 40:
            threads.append(meanwhile(train))

    threads: list[threading.Thread] = []
    trainer = checkpoints(run)
    last = trainer.load(40)
    assert last is not None
    result = follow(run, evaluated=begin)
    threads[0].join()
    assert result.finished
    assert steps(run) == [*STEPS, *range(41, 81)]
    assert checkpoints(run).steps() == [80]


def test_no_run_within_the_timeout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run appeared in 0\.1 seconds"):
        follow(tmp_path / "none", timeout=0.1)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        follow(tmp_path / "file")


def test_a_run_that_is_moved_away_meanwhile_is_an_error(run: Path, tmp_path: Path) -> None:
    unfinish(run)
    thread = meanwhile(lambda: run.rename(tmp_path / "aside"))
    with pytest.raises(RunError, match="moved away"):
        follow(run, evaluated=lambda _record: time.sleep(0.3))
    thread.join()


def test_a_run_that_is_moved_away_while_it_is_read_is_not_taken_for_damaged(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*_arguments: object) -> None:
        run.rename(tmp_path / "aside")
        raise CheckpointError("half of it is gone")

    monkeypatch.setattr(following, "load_run", moved)
    with pytest.raises(RunError, match="moved away"):
        follow(run)
    monkeypatch.undo()
    assert follow(tmp_path / "aside").new == 3


def test_a_second_follower_is_refused(run: Path) -> None:
    with RunFolder(run).following_lock(), pytest.raises(RunError, match="another process is following"):
        follow(run)
    assert follow(run).finished


def test_where_there_are_no_hard_links_checkpoints_are_copied(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: str, _target: Path) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(holding_module.os, "link", refuse)
    said: list[str] = []
    assert follow(run, report=said.append).new == 3
    assert len([line for line in said if "no hard links (not permitted): copying" in line]) == 1


def test_a_checkpoint_that_cannot_be_held_ends_it_with_what_to_do(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: str, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(holding_module.os, "link", refuse)
    with pytest.raises(CheckpointError, match=r"\.follow \(No space left on device\): free some space"):
        follow(run)


def test_what_cannot_be_measured_is_refused_and_nothing_is_lost(run: Path) -> None:
    with pytest.raises(UnknownNameError, match="f1_score"):
        follow(run, metrics=["f1_scor"])
    with pytest.raises(DataError, match="no such"):
        follow(run, split="such")  # type: ignore[arg-type]
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(re.sub(r"\[ema\]\n(.+\n)+", "", text))
    with pytest.raises(CheckpointError, match="--weights raw"):
        follow(run, weights="ema")
    assert follow(run).new == 3
