"""Standard output and error, on a terminal, a pipe or a file: no failure of theirs ends the command."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
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
    """A stream that drops its output once it cannot be written: the disk is full, or the reader has gone.

    Writing to a non-blocking stream waits for a slow reader. ``TextIOWrapper`` loses what is not written at once, so
    the text is written to the binary stream below it, which returns how much it took.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = _taking_any_character(stream)
        self.broken = False
        self._encoder = _encoder(self.stream)
        self.flush()  # earlier output comes first

    def write(self, text: str) -> int:
        if not self.broken:
            try:
                self._write(text)
            except (OSError, ValueError):  # ValueError: closed
                self.broken = True
        return len(text)

    def _write(self, text: str) -> None:
        if not isinstance(self.stream, io.TextIOWrapper):
            self.stream.write(text)
            return
        rest = memoryview(self._encoder.encode(text))
        while rest:
            try:
                gone = self.stream.buffer.write(rest)
            except BlockingIOError as error:
                gone = error.characters_written
                self._wait()
            else:
                if gone is None:  # of an unbuffered one
                    self._wait()
            rest = rest[gone or 0 :]
        if self.stream.line_buffering and ("\n" in text or "\r" in text):
            self._flush()

    def flush(self) -> None:
        if not self.broken:
            try:
                self._flush()
            except (OSError, ValueError):
                self.broken = True

    def _flush(self) -> None:
        while True:
            try:
                return self.stream.flush()
            except BlockingIOError:
                self._wait()

    def _wait(self) -> None:
        """Wait until the stream takes more, or its reader has gone."""
        poll = select.poll()
        poll.register(self.stream.fileno(), select.POLLOUT)
        poll.poll()

    def reconfigure(self, **options: Any) -> None:
        """``TextIOWrapper.reconfigure``; characters that the encoding lacks are still replaced."""
        if isinstance(self.stream, io.TextIOWrapper):
            self.flush()
            self.stream.reconfigure(**options)
            _taking_any_character(self.stream)
            self._encoder = _encoder(self.stream)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return not self.broken and self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def buffer(self) -> Any:
        return self.stream.buffer


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Within the block standard output and error accept any character, and their failures are ignored.

    A character that the encoding lacks becomes a question mark. A stream that the shell has closed, which is None in
    Python, is replaced by the null device, and so is one that failed: Python would fail on it when it exits.
    """
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        wrapped = [_Tolerant(nowhere if stream is None else stream) for stream in before]
        sys.stdout, sys.stderr = wrapped
        try:
            yield
        finally:
            for tolerant in wrapped:
                tolerant.flush()
                if tolerant.broken:
                    _give_up(tolerant.stream)
            sys.stdout, sys.stderr = before


def _encoder(stream: TextIO) -> codecs.IncrementalEncoder:
    return codecs.getincrementalencoder(stream.encoding or "utf-8")(stream.errors or "replace")


def _taking_any_character(stream: TextIO) -> TextIO:
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
    return stream


def _give_up(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
