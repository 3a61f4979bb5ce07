"""``foveal``: the commands, and how errors and signals become exit codes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from foveal.cli import (
    bench,
    checkpoints,
    data,
    evaluate,
    predict,
    recipes,
    replay,
    review,
    summary,
    tensorflow,
    train,
    verify_resume,
)
from foveal.errors import FovealError
from foveal.processors import shorten_busy_waiting

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 3
_TYPERS_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt before we see it

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Train image classifiers, evaluate them, and predict with them.",
    epilog="Start with: foveal train digits",
)
for command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    review.review,
    recipes.recipes,
    summary.summary,
    verify_resume.verify_resume,
    replay.replay,
    replay.bisect,
):
    app.command()(command)
for group in (data.data, checkpoints.checkpoints, tensorflow.tensorflow, bench.bench):
    app.add_typer(group)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,  # noqa: ARG001 - main looks for it
) -> None:
    """Options that stand before the command."""
    if version:
        sys.stdout.write(f"foveal {metadata.version('foveal')}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def main() -> NoReturn:
    """Run the command line; exits with 0 done, 1 failed, 2 wrong usage, 3 interrupted."""
    shorten_busy_waiting()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: Any = app(arguments, standalone_mode=False)
        if code == _TYPERS_INTERRUPTED:
            code = _interrupted()
        sys.stdout.flush()  # a full disk or a closed pipe shows here
    except FovealError as error:
        code = _fail(error, str(error), error.exit_code, debug=debug)
    except typer.TyperException as error:
        hint = "" if isinstance(error, typer.Exit) else "; see --help"
        code = _fail(error, " ".join(error.format_message().split()).rstrip(".") + hint, 2, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        code = _interrupted()
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone; there is nobody to tell
        code = 1
    except OSError as error:
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(error, f"{where}{error.strerror or error}", 1, debug=debug)
    except Exception as error:  # noqa: BLE001 - a mistake of ours: still one line, and where to look
        text = f"{type(error).__name__}: {error} (a mistake in foveal; --debug shows where)"
        code = _fail(error, text, 1, debug=debug)
    sys.exit(code or 0)


def _drop_output() -> None:
    """Send what is left of standard output nowhere: Python would try once more at its end, and fail."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _fail(error: Exception, text: str, code: int, *, debug: bool) -> int:
    if debug:
        raise error
    lines = f"error: {text}", *getattr(error, "__notes__", ())
    sys.stderr.writelines(f"{_one_line(line)}\n" for line in lines)
    return code


def _one_line(text: str) -> str:
    """The text, with what would end the line or could steer a terminal written as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _interrupted() -> int:
    sys.stderr.write("interrupted: run the same command to continue\n")
    return INTERRUPTED


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM outside the training loop, which has its own handler: end like Ctrl-C does."""
    raise KeyboardInterrupt
