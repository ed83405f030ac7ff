"""What a search prints when it ends, and with which exit status: signals, and trials that all fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipelines.data.datasets import load_dataset
from tests.commands import call
from tests.tune.real_search import SMALL, check_whole, mlflow_runs, records, run_command
from tests.tune.synthetic import record
from tune import search
from tune.records.ledger import Ledger
from tune.records.search_folder import open_search
from tune.settings import SearchSettings

pytestmark = pytest.mark.core


def test_a_search_of_which_every_trial_has_failed_is_no_success(tmp_path: Path) -> None:
    settings = SearchSettings(trials=7, epochs=20, storage=str(tmp_path))
    run = settings.run_storage("digits")
    open_search(run, settings, load_dataset("digits"))
    ledger = Ledger(run)
    reasons = ["step 7: the loss is nan", *["needs 9 GiB"] * 3, "its process died", "a", "b"]
    for number, reason in enumerate(reasons):
        whole = record(number, "flow", 1000, 2.5)
        ledger.put(dataclasses.replace(whole, status="failed", reason=reason, val_bpd=None, history=(), test=None))
    options = ("--storage", str(tmp_path), "--epochs", "20", "--trials", "7", "--families", "flow")
    done = call(search.main, SearchSettings, *options)
    assert done.status == 1
    assert done.err == (
        "error: every trial has failed: needs 9 GiB (3 of 7); step 7: the loss is nan (1 of 7); "
        "its process died (1 of 7); and 2 for other reasons\n"
    )
    assert "Ended:" not in done.out
    ledger.put(dataclasses.replace(record(7, "flow", 1000, 2.5), status="stopped"))
    assert call(search.main, SearchSettings, *options[:5], "8", *options[6:]).status == 0


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGHUP"])
def test_a_search_that_is_told_to_end_is_interrupted_and_goes_on(sent: str, tmp_path: Path) -> None:
    script = ("tests/tune/interrupted_search.py", sent, "results:5")
    stopped = run_command(tmp_path, *SMALL, script=script)
    assert stopped.returncode == 1, stopped.stderr
    assert stopped.stdout.splitlines()[-1] == (
        "Interrupted. The same command goes on where it stopped; nothing finished is lost."
    )
    assert "Traceback" not in stopped.stderr
    kept = records(tmp_path)
    assert sum(len(each["history"]) for each in kept.values()) >= 4  # the last one may still be unwritten
    assert "RUNNING" not in {run.info.status for run in mlflow_runs(tmp_path)[1]}
    whole = run_command(tmp_path, *SMALL)
    assert whole.returncode == 0, whole.stderr
    check_whole(tmp_path, kept)
    time = json.loads((tmp_path / "digits/time.json").read_text())
    assert time["sessions"] == 2
