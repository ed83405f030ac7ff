"""Training time of a search over all its sessions: ``time.json`` in its run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pipelines.storage import Storage
from pipelines.storage.json_objects import read_json

TIME = "time.json"
KEEP_SECONDS = 30.0
"""Seconds between two writes: what a killed driver's session loses at most."""


class SearchClock:
    """Wall time from the start to the end of the training, summed over sessions; the time between them is not in it.

    Reading the test split and drawing the map are not counted. Raises ``OSError`` or ``ConfigError`` where the storage
    does.
    """

    def __init__(self, run: Storage, guard: Callable[[], None] = lambda: None) -> None:
        """``guard`` is called before each write; it raises where this process may no longer write there."""
        self.run, self.guard = run, guard
        try:
            kept = read_json(run, TIME)
        except FileNotFoundError:
            kept = {"seconds": 0.0, "sessions": 0}
        self.before: float = kept["seconds"]
        """Seconds of earlier sessions."""
        self.sessions: int = kept["sessions"]
        """Sessions that trained, this one too."""
        self.out_of_patience: list[int] | None = kept.get("out_of_patience")
        """``[patience, trials]``: with how many trials started the search ran out of which ``--patience``; kept, as
        trials that ended later may change what that was decided by."""
        self._started: float | None = None
        self._kept_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: Tune pickles its parts to restore them, which the ledger makes needless."""
        return {}

    @property
    def seconds(self) -> float:
        """Seconds of all sessions, until now."""
        return self.before + self.session_seconds

    @property
    def session_seconds(self) -> float:
        """Seconds of this session; 0 before it starts."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def start(self) -> None:
        """The session's training begins."""
        self._started = time.monotonic()
        self.sessions += 1
        self._keep()

    def tick(self) -> None:
        """Write the time now and then; to be called often."""
        if self._started is not None and time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep()

    def stop(self) -> None:
        """The session's training is over."""
        if self._started is not None:
            self.before, self._started = self.seconds, None  # from now on `seconds` is what is written
            self._keep()

    def run_out_of_patience(self, patience: int, trials: int) -> None:
        """Keep that the search ran out of ``patience`` when so many trials were started."""
        if self.out_of_patience != [patience, trials]:
            self.out_of_patience = [patience, trials]
            self._keep()

    def _keep(self) -> None:
        self.guard()
        kept: dict[str, Any] = {"seconds": self.seconds, "sessions": self.sessions}
        if self.out_of_patience:
            kept["out_of_patience"] = self.out_of_patience
        self.run.write(TIME, (json.dumps(kept) + "\n").encode())
        self._kept_at = time.monotonic()
