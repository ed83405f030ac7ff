"""What a command prints goes to a terminal, a pipe or a file, and whatever becomes of that never ends the command."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console

_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def without_controls(text: str) -> str:
    """A text of one line: each control character as its escape, such as ``\\n`` and ``\\x1b``."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def make_console() -> Console:
    """A console on standard output. A terminal that can move no cursor gets the plain lines that a file gets."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return Console(force_terminal=False if dumb else None)


class _Tolerant(io.TextIOBase):
    """A stream that says nothing more once it cannot be written: the disk behind it is full, the reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    def write(self, text: str) -> int:
        if not self.broken:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: closed
                self.broken = True
        return len(text)

    def flush(self) -> None:
        if not self.broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self.broken = True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return not self.broken and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Within the block standard output and error take any character and any fault.

    What an encoding lacks becomes a question mark. After a fault the stream itself is given up, so that Python does
    not fail on it when it ends.
    """
    before = sys.stdout, sys.stderr
    wrapped = [stream if stream is None else _Tolerant(_taking_any_character(stream)) for stream in before]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for stream, tolerant in zip(before, wrapped, strict=True):
            if tolerant is not None:
                tolerant.flush()
                if tolerant.broken:
                    _give_up(stream)
        sys.stdout, sys.stderr = before


def _taking_any_character(stream: TextIO) -> TextIO:
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
    return stream


def _give_up(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
