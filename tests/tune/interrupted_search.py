"""``python tune/search.py``, ended by a signal at a set moment: run as a script by the tests of the search.

    interrupted_search.py SIGNAL MOMENT OPTIONS…      e.g. SIGKILL results:5 --trials 6

Moments: ``results:N`` (once the N-th epoch is in the ledger) and ``tests:N`` (once the N-th model's test reading is).
SIGINT goes to the whole process group, as a terminal's Ctrl-C does. Trials write a checkpoint before every epoch.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pipelines.training.ray_environment  # noqa: F401
from pipelines.cli import command_line
from tests.tune.travelling import HastyProcess
from tune import search_run
from tune.records.ledger import Ledger
from tune.run import engine, mlflow_tracking
from tune.settings import SearchSettings

signal_name, moment = sys.argv[1:3]
kind, _, count = moment.partition(":")
left = int(count)
update = Ledger.update


def counting_update(self: Ledger, trial_id: str, **changes: Any) -> Any:
    """Write, count, and send the signal when it is time."""
    global left
    record = update(self, trial_id, **changes)
    left -= {"results": "history", "tests": "test"}[kind] in changes
    if left == 0:
        left = -1
        if signal_name == "SIGINT":
            os.killpg(os.getpgrp(), signal.SIGINT)
        else:
            os.kill(os.getpid(), getattr(signal, signal_name))
    return record


mlflow_tracking.CLOSING_SECONDS = 600.0  # on a busy machine MLflow gets the time that it needs
engine.TrialProcess = HastyProcess  # type: ignore[misc]
Ledger.update = counting_update  # type: ignore[method-assign]
sys.argv = ["search.py", *sys.argv[3:]]
command_line.run(search_run.main, SearchSettings)
