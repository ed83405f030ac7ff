"""A process that dies at a set moment: by SIGKILL, or in this process by an exception that nothing catches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Literal

import pytest


class Died(BaseException):
    """What a killed process does next: nothing."""


class Death:
    """The death of all in this process that works for one command, in place of the process's."""

    happened = False

    def __call__(self) -> None:
        self.happened = True
        raise Died

    def settle(self, tracker: Any) -> None:
        """Wait until a tracker has written all. Where its thread has died, so does the caller."""
        while not tracker.flush(timeout=0.2):
            assert not tracker.problems
            if self.happened:
                raise Died


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(
    patch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    when: Literal["before", "after"],
    die: Callable[[], None],
    *,
    call: int = 1,
    with_: str = "",
    without: str = "",
) -> None:
    """``die`` before or after the ``call``-th call of ``owner.name`` of those that have a keyword argument ``with_``.

    That call loses its keyword argument ``without``, as if the process had died half-way in it.
    """
    original, calls = getattr(owner, name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        counts = not with_ or bool(options.get(with_))
        calls += counts
        now = counts and calls == call
        if now and when == "before":
            die()
        if now:
            options.pop(without, None)
        result = original(*arguments, **options)
        if now:
            die()
        return result

    patch.setattr(owner, name, dying)
