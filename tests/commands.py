"""Commands of the product, called in this process as their command line calls them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.cli import command_line


class Called(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


def call(main: Callable[[Any], int], settings: type[Any], *options: str) -> Called:
    """The command with ``options``, through :func:`pipelines.cli.command_line.run`, to its end."""
    out, err, arguments = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["command", *options]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.run(main, settings)
    except SystemExit as exit_:
        return Called(int(exit_.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = arguments
    raise AssertionError("the command did not exit")
