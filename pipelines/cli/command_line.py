"""Command line of every command: options from a dataclass, ``--version``, exit statuses, and errors in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

import fvae
from fvae.config import ConfigError
from pipelines.cli.stop_signals import in_a_hurry, treat_as_ctrl_c
from pipelines.cli.terminal import tolerant_output, without_controls
from pipelines.storage import StorageError

Settings = TypeVar("Settings")

BAD_INPUT = 2
"""Exit status for bad input."""


def parse(settings: type[Settings]) -> Settings:
    """Read ``sys.argv`` into a dataclass with tyro. Raises ``ConfigError`` for options that do not fit.

    ``--help`` prints the options and raises ``SystemExit(0)``.
    """
    printed = io.StringIO()
    description = f"{(inspect.getdoc(settings) or '').strip()}\n\nThe option --version shows the version and exits."
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(settings, prog=_program(), description=description)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        message = _first_message(printed.getvalue())
        # The message of a setting's own check names the option.
        raise ConfigError(message.removeprefix(f"Error parsing {settings.__name__}: ")) from None


def _program() -> str:
    """The command without its options, for the usage line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"


def run(main: Callable[[Settings], int], settings: type[Settings]) -> None:
    """Parse, run ``main``, exit with its status; ``--version`` prints the version instead.

    Bad input exits with :data:`BAD_INPUT` and one line, a store that fails with 1 and one line.
    """
    if "--version" in sys.argv[1:]:
        print(f"fvae {fvae.__version__}")
        sys.exit(0)
    without_optimization()
    treat_as_ctrl_c()
    with tolerant_output():
        status = _status(main, settings)
    if in_a_hurry():  # the interpreter's own end takes a second, in which SIGKILL may come
        os._exit(status)
    sys.exit(status)


def without_optimization() -> None:
    """Start this command again without ``-O`` and ``-OO``, where it was started with one of them.

    They take away nothing that would cost time here, but docstrings, which are the options' help, and without which
    Ray cannot be imported.
    """
    if sys.flags.optimize:
        os.environ.pop("PYTHONOPTIMIZE", None)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *_unoptimized(sys.orig_argv[1:])])


def _unoptimized(arguments: list[str]) -> list[str]:
    """The interpreter's arguments without any ``O`` among its own options; the program's stay as they are."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if not re.fullmatch(r"-[bBdEhiIOPqsSuvVx?]+", argument):
            kept.append(argument)
            if argument in ("-W", "-X"):  # each with a value of its own
                kept.append(next(rest, ""))
                continue
            if argument.startswith(("-W", "-X", "--")) and argument != "--":
                continue
            break  # the script, or -m or -c
        if (without := argument.replace("O", "")) != "-":
            kept.append(without)
    return [*kept, *rest]


def _status(main: Callable[[Settings], int], settings: type[Settings]) -> int:
    try:
        return main(parse(settings))
    except ConfigError as error:
        return _fail(f"error: {without_controls(str(error))}", BAD_INPUT)
    except StorageError as error:
        return _fail(f"error: {error}", 1)
    except KeyboardInterrupt:
        return _fail("Interrupted.", 1)


def _fail(line: str, status: int) -> int:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    return status


def _first_message(box: str) -> str:
    """The first paragraph inside tyro's box, on one line: below the title, above the next rule."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        inside = line.strip("│ ")
        if not inside.strip("─-╰╯"):  # a rule; dashes where the terminal knows no boxes
            if words:
                break
            continue
        words.append(inside)
    return " ".join(words) or "the options do not fit; see --help"
