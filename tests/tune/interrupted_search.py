"""``python tune/search.py``, ended by a signal at a set moment: run as a script by the tests of the search.

    interrupted_search.py SIGNAL MOMENT OPTIONS…      e.g. SIGKILL results:5 --trials 6

Moments: ``results:N`` (after the N-th epoch's record is written), ``trials:N`` (after the N-th trial
ended), ``tests:N`` (after the N-th model's test reading is written). ``worker:N`` sends the signal to
the trial process that sent the N-th result instead. ``never`` sends none.

``hasty,MOMENT``: besides, trials write a checkpoint before every epoch, and a store that does not answer
is given up after seconds instead of minutes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pipelines.ray_environment  # noqa: F401
from pipelines import command_line, s3_requests
from tune import engine, search, trial_files
from tune.callbacks import LedgerCallback
from tune.ledger import Ledger
from tune.settings import SearchSettings
from tune.trial import TrialProcess

signal_name, moment = sys.argv[1], sys.argv[2].removeprefix("hasty,")
kind, _, count = moment.partition(":")
left = int(count or 1)
update, on_trial_result = Ledger.update, LedgerCallback.on_trial_result


def end(process: int) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(process, getattr(signal, signal_name))


def counting_update(self: Ledger, trial_id: str, **changes: Any) -> Any:
    record = update(self, trial_id, **changes)
    happened = {
        "results": "history" in changes,
        "trials": changes.get("status") in ("complete", "stopped", "failed"),
        "tests": "test" in changes,
    }
    if happened.get(kind):
        end(os.getpid())
    return record


def counting_result(self: LedgerCallback, *arguments: Any, result: dict[str, Any], **info: Any) -> None:
    on_trial_result(self, *arguments, result=result, **info)
    if kind == "worker":
        end(result["pid"])


def haste() -> None:
    trial_files.CHECKPOINT_SECONDS, trial_files.CHECKPOINT_SHARE = 0.0, 1e9
    s3_requests.READ_TIMEOUT, s3_requests.FIRST_WAIT = 2.0, 0.05
    s3_requests.ATTEMPTS, s3_requests.PATIENCE, s3_requests.LONGEST_WAIT = 4, 3.0, 1.0


class HastyTrialProcess(TrialProcess):
    """Travels to Ray's processes whole, as everything of a script's own does, so it can change their modules too."""

    def setup(self, *arguments: Any, **options: Any) -> None:
        haste()
        super().setup(*arguments, **options)


if sys.argv[2] != moment:
    haste()
    engine.TrialProcess = HastyTrialProcess  # type: ignore[misc]
Ledger.update = counting_update  # type: ignore[method-assign]
LedgerCallback.on_trial_result = counting_result  # type: ignore[method-assign]
sys.argv = ["search.py", *sys.argv[3:]]
command_line.run(search.main, SearchSettings)
