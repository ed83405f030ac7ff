"""Functions in processes of their own, forked from one that has imported the product: a start costs milliseconds.

    fork = Fork(folder / "log", function, argument)
    assert fork.end() == -signal.SIGKILL, fork.said()

The process has this one's current folder and environment. Its exit status is what the function passes to ``sys.exit``.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.waiting import DEADLINE

ROOT = Path(__file__).parents[2]

_CONTEXT = multiprocessing.get_context("forkserver")


class Fork:
    """A process that runs a function of a module that can be imported."""

    def __init__(self, log: Path, function: Callable[..., Any], *arguments: Any) -> None:
        """What it prints, on standard output and standard error, goes to ``log``."""
        self._log = log
        _CONTEXT.set_forkserver_preload(["tests.pipelines.forked_commands"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            forkserver.ensure_running()
        where = (str(log), str(Path.cwd()), dict(os.environ))
        self._process = _CONTEXT.Process(target=_run, args=(*where, function, arguments))
        self._process.start()

    def end(self) -> int:
        """Wait for its end; returns the exit status, that of a signal negative."""
        self._process.join(DEADLINE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"not ended within {DEADLINE:.0f} s: {self.said()}")
        return self._process.exitcode

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text() if self._log.exists() else ""


def _run(
    log: str, folder: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with Path(log).open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        function(*arguments)
