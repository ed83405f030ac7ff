"""What a process on another machine tells the driver of its storage: what was tried again, and what ends the command.

It has no terminal of its own, so both travel with a trial's results: ``warnings``, the lines that
:mod:`pipelines.storage` logged since the last one, and ``trouble``, the error that no trial can be blamed for (a store
that is down, a full disk, refused credentials). The workers of a job send their warnings as events, and their errors
end the job in :mod:`pipelines.training.train_controller`.
"""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console

from fvae.config import ConfigError
from pipelines.cli.progress import WarningLines
from pipelines.storage import StorageError

LOGGER = logging.getLogger("pipelines.storage")


class _Kept(logging.Handler):
    """Keeps warnings until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def take(self) -> list[str]:
        with self.lock:  # type: ignore[union-attr]  # another thread may be logging
            lines, self._lines = self._lines, []
        return lines


_kept = _Kept()


def keep_warnings() -> None:
    """From now on keep what the storage warns of in this process. Once is enough, twice does no harm."""
    LOGGER.addHandler(_kept)


def with_warnings(result: dict[str, Any]) -> dict[str, Any]:
    """``result`` and what was kept since the last one."""
    lines = _kept.take()
    return result | {"warnings": lines} if lines else result


def trouble(error: OSError | ConfigError) -> dict[str, Any]:
    """A result that ends the search and blames no trial: :func:`raise_trouble` raises its error in the driver."""
    if isinstance(error, OSError) and error.errno is not None:
        filename = None if error.filename is None else str(error.filename)
        return {"trouble": ("OSError", error.errno, error.strerror, filename)}
    return {"trouble": ("StorageError" if isinstance(error, OSError) else "ConfigError", str(error))}


def raise_trouble(result: dict[str, Any]) -> None:
    """Raise the error that :func:`trouble` put in a result; nothing where there is none."""
    if "trouble" in result:
        kind, *arguments = result["trouble"]
        raise {"StorageError": StorageError, "OSError": OSError, "ConfigError": ConfigError}[kind](*arguments)


def as_sent(error: OSError | ConfigError) -> OSError | ConfigError:
    """``error`` as :func:`raise_trouble` raises it: of a class and with arguments that every process can unpickle."""
    try:
        raise_trouble(trouble(error))
    except (OSError, ConfigError) as sent:
        return sent
    raise AssertionError("trouble() makes a result that raises")


class Notices(WarningLines):
    """Prints the storage's warnings of this process, within the block, and notices; nothing more once silenced."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._silent = False

    def say(self, line: str) -> None:
        """Print a line."""
        if not self._silent:
            super().say(line)

    def silence(self) -> None:
        """Print no more: the store is given up, and its error is enough."""
        self._silent = True
