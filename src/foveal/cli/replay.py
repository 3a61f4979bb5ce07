"""``foveal replay`` and ``foveal bisect``: a step of a run done again, and where two runs part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.reproducibility.bisect import Bisection, Difference
    from foveal.reproducibility.replay import Replay

_Data = Annotated[Path | None, typer.Option(help="Folder of the data's files.")]
_LISTED = 3  # details of a difference that are shown

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def replay(
    run: Annotated[Path, typer.Argument(help="A run folder; nothing in it is changed.")],
    step: Annotated[int, typer.Option(min=1, help="Which step, as in metrics.jsonl: from 1.")],
    data: _Data = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps; on another than the run's, rounding differs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture to write (ends in .png); default: RUN-step-N.png, here.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images the picture has at most.")] = 100,
    json: _Json = False,
) -> None:
    """Do a step of a run again: show its examples as the network saw them, its loss and its gradients.

    Exit code 1 if the loss is not, to the last digit, the one the run logged.

    Example: foveal replay runs/digits --step 250
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.reproducibility.replay import replay as run_replay

    result = run_replay(
        run,
        step,
        data=data,
        device=device,
        picture=out or Path(f"{run.resolve().name}-step-{step}.png"),
        count=count,
        report=_say,
        progress=DownloadBar(),
    )
    if json:
        print_json(result.report())
    else:
        _print_replay(result)
    if result.equal is False and result.same_device:
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_replay(result: Replay) -> None:
    from foveal.cli.output import print_table

    rows = [(f"{each.index:,}", each.label, each.key) for each in result.examples]
    print_table(("example", "class", "where it comes from"), rows, texts=3)
    if result.equal is None:
        logged = "this step was not logged"
    elif result.equal:
        logged = "as logged, to the last digit"
    else:
        logged = f"logged: {result.logged_loss!r}; NOT EQUAL"
        logged += "" if result.same_device else ", as may be on another device"
    start = f"the checkpoint of step {result.start}" if result.start else "the first weights"
    typer.echo(
        f"\nstep {result.step} of {result.total_steps}, trained forward from {start}\n"
        f"loss           {result.loss!r} ({logged})\n"
        f"gradient norm  {result.gradient_norm:.6g}\n"
        f"picture        {result.picture or 'none: the examples are no images'}"
    )


def bisect(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder; nothing in it is changed.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another.")],
    data: _Data = None,
    json: _Json = False,
) -> None:
    """Find the first step at which two runs differ, and in what: recipe, data, batch, loss or weights.

    Exit code 1 if they differ.

    Example: foveal bisect runs/digits runs/other
    """
    from foveal.cli.output import print_json
    from foveal.cli.progress import DownloadBar
    from foveal.reproducibility.bisect import bisect as run_bisection

    result = run_bisection(run_a, run_b, data=data, report=_say, progress=DownloadBar())
    if json:
        print_json(result.report())
    else:
        _print_bisection(result)
    if not result.identical:
        raise typer.Exit(1)


def _print_bisection(result: Bisection) -> None:
    again = f"; {_steps(result.replayed[0], result.replayed[-1])} done again" if result.replayed else ""
    typer.echo(f"{result.steps} steps compared{again}")
    _print_lines("recipe", [f"{key}: {old!r} / {new!r}" for key, (old, new) in result.recipe.items()])
    _print_lines("machine", [f"{key}: {old!r} / {new!r}" for key, (old, new) in result.machine.items()])
    _print_lines("data", ["the training examples differ"] if result.data else [])
    for kind in ("batch", "loss", "weights"):
        found = result.found.get(kind)
        lines = [f"first difference {_place(found)}:", *_shortened(found.details)] if found else []
        _print_lines(kind, lines)
    for each in result.contradictions:
        record = f"the {each.kind} {'logged' if each.kind == 'loss' else 'saved'} at step {each.step}"
        typer.echo(f"\n{each.run} is not reproduced: its recipe and data do not give {record};")
        typer.echo(f"{_steps(each.since, each.step)} went otherwise:")
        _print_lines("", _shortened(each.details))
    if result.identical:
        verdict = "identical"
    elif result.first is None:
        verdict = "the same in batches, losses and weights"
    else:
        verdict = f"the runs part {_place(result.first)}, in the {result.first.kind}"
    typer.echo(f"\n{verdict}")


def _place(difference: Difference) -> str:
    if difference.kind == "weights":
        return f"after step {difference.step}" if difference.step else "before the first step"
    return f"at step {difference.step}"


def _print_lines(name: str, lines: list[str]) -> None:
    for number, line in enumerate(lines or ["no difference"]):
        typer.echo(f"{'' if number else name:8} {line}")


def _shortened(details: Sequence[str]) -> list[str]:
    more = len(details) - _LISTED
    return [*details[:_LISTED], *([f"... and {more} more"] if more > 0 else [])]


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"
