"""``python tune/search.py``, ended by a signal at a set moment: run as a script by test_search.py.

    interrupted_search.py SIGNAL MOMENT OPTIONS…      e.g. SIGKILL results:5 --trials 6

Moments: ``results:N`` (after the N-th epoch's record is written), ``trials:N`` (after the N-th trial
ended), ``tests:N`` (after the N-th model's test reading is written), ``drawing`` (before the map is).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import tune.environment  # noqa: F401
from pipelines import command_line
from tune import search
from tune.ledger import Ledger
from tune.settings import SearchSettings

signal_name, moment = sys.argv[1], sys.argv[2]
kind, _, count = moment.partition(":")
left = int(count or 1)
update, build_tradeoff = Ledger.update, search.build_tradeoff


def end() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), getattr(signal, signal_name))


def counting_update(self: Ledger, trial_id: str, **changes: Any) -> Any:
    record = update(self, trial_id, **changes)
    happened = {
        "results": "history" in changes,
        "trials": changes.get("status") in ("complete", "stopped", "failed"),
        "tests": "test" in changes,
    }
    if happened.get(kind):
        end()
    return record


def counting_build(*arguments: Any) -> Any:
    if kind == "drawing":
        end()
    return build_tradeoff(*arguments)


Ledger.update = counting_update  # type: ignore[method-assign]
search.build_tradeoff = counting_build
sys.argv = ["search.py", *sys.argv[3:]]
command_line.run(search.main, SearchSettings)
