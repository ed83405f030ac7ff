"""Services whose processes are killed or whose database is damaged: they come back, and what is wrong is reported."""

from __future__ import annotations

import os
import signal

import pytest

from tests.services.head import Head, lives, until

pytestmark = pytest.mark.faults


@pytest.fixture
def head(migrated_head: Head) -> Head:
    """A head machine whose databases need no migrations."""
    return migrated_head


def test_what_is_killed_comes_back_and_after_supervisord_up_begins_afresh(head: Head) -> None:
    head.first_up("--programs", "mlflow", "scheduler")
    before = head.pids()
    (listener,) = head.children(before["mlflow"])

    # The process that listens outlives the one that is watched, and would hold the port.
    os.kill(before["mlflow"], signal.SIGKILL)
    until(lambda: not lives(listener), "the old listener is ended")
    until(lambda: f"ended process {listener}" in head.logs(), "its end is logged")
    until(lambda: head.pids()["mlflow"] not in (0, before["mlflow"]) and head.well(), "MLflow is back")
    assert head.request("/api/2.0/mlflow/experiments/get?experiment_id=0", head.admin)[0] == 200

    now = head.pids()["mlflow"]
    os.kill(*head.children(now), signal.SIGKILL)
    until(lambda: head.pids()["mlflow"] not in (0, now) and head.well(), "MLflow is back without its listener")

    os.kill(before["scheduler"], signal.SIGKILL)
    until(lambda: head.pids()["scheduler"] not in (0, before["scheduler"]) and head.well(), "the scheduler is back")
    assert head.pids()["supervisord"] == before["supervisord"]

    old = set(head.processes())
    os.kill(before["supervisord"], signal.SIGKILL)
    until(lambda: not lives(before["supervisord"]), "supervisord is dead")
    code, states = head.status()
    assert code == 1
    assert states["supervisord"] == ("down", 0)
    assert states["mlflow"] == ("down", 0)
    assert head.request("/health")[0] == 200  # it goes on, and nothing watches it

    assert "mlflow: started" in head.up()
    assert head.well()
    assert old.isdisjoint(head.processes())


def test_a_program_that_cannot_start_is_one_line_with_its_reason(head: Head) -> None:
    whole = (head.data / "mlflow.db").read_bytes()
    (head.data / "mlflow.db").write_bytes(b"no database at all, and longer than the hundred bytes of its header" * 9)
    result = head.run("up", "--port", str(head.port), "--programs", "mlflow")
    assert result.returncode == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("error: mlflow does not start: ")
    assert "not a database" in line
    # supervisord tries for ever: mended, it starts.
    (head.data / "mlflow.db").write_bytes(whole)
    until(head.well, "MLflow starts once its database is mended")
