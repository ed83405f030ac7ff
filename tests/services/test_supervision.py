"""Services that stay up: what is killed comes back, and a second ``up`` restarts what changed and nothing else."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.services.head import Head, lives, until

pytestmark = pytest.mark.core

BOTH = ("--programs", "mlflow", "scheduler")


def test_a_second_up_restarts_nothing_and_a_change_only_what_it_is_of(head: Head) -> None:
    said = head.first_up(*BOTH)
    assert "mlflow: started" in said
    assert "scheduler: started" in said
    first = head.pids()
    assert set(first) == {"supervisord", "mlflow", "scheduler"}
    files = {path: path.read_bytes() for path in head.data.rglob("*") if path.suffix in {".conf", ".ini", ".env"}}
    assert len(files) == 3

    # At once again: MLflow counts as started only after ten seconds, but its port is its own.
    again = head.up()
    assert again.count("unchanged") == 2
    assert head.pids() == first
    assert {path: path.read_bytes() for path in files} == files

    changed = head.up("--public-names", "mlflow.example.org")
    assert "mlflow: started again" in changed
    assert "scheduler: unchanged" in changed
    second = head.pids()
    assert second["mlflow"] != first["mlflow"]
    assert {**second, "mlflow": 0} == {**first, "mlflow": 0}
    assert head.request("/", head.admin, Host="mlflow.example.org")[0] == 200

    head.environment["RAY_ADDRESS"] = "http://127.0.0.1:9"  # Ray's is the scheduler's affair alone
    changed = head.up()
    assert "mlflow: unchanged" in changed
    assert "scheduler: started again" in changed

    third = head.pids()
    assert "scheduler" not in head.up("--programs", "mlflow")
    assert head.pids() == {name: third[name] for name in ("supervisord", "mlflow")}
    assert not lives(third["scheduler"])


def test_what_is_killed_comes_back(head: Head) -> None:
    head.first_up(*BOTH)
    before = head.pids()
    (listener,) = head.children(before["mlflow"])

    # The process that listens outlives the one that is watched, and would hold the port.
    os.kill(before["mlflow"], signal.SIGKILL)
    until(lambda: not lives(listener), "the old listener is ended")
    until(lambda: f"ended process {listener}" in head.logs(), "its end is said")
    until(lambda: head.pids()["mlflow"] not in (0, before["mlflow"]) and head.well(), "MLflow is back")
    assert head.request("/api/2.0/mlflow/experiments/get?experiment_id=0", head.admin)[0] == 200

    now = head.pids()["mlflow"]
    os.kill(*head.children(now), signal.SIGKILL)
    until(lambda: head.pids()["mlflow"] not in (0, now) and head.well(), "MLflow is back without its listener")

    os.kill(before["scheduler"], signal.SIGKILL)
    until(lambda: head.pids()["scheduler"] not in (0, before["scheduler"]) and head.well(), "the scheduler is back")
    assert head.pids()["supervisord"] == before["supervisord"]


def test_after_supervisord_is_killed_up_begins_afresh(head: Head) -> None:
    head.first_up()
    before = head.pids()
    old = set(head.processes())
    os.kill(before["supervisord"], signal.SIGKILL)
    until(lambda: not lives(before["supervisord"]), "supervisord is dead")
    code, states = head.status()
    assert code == 1
    assert states["supervisord"] == ("down", 0)
    assert states["mlflow"] == ("down", 0)
    assert head.request("/health")[0] == 200  # it goes on, with nobody to watch it

    assert "mlflow: started" in head.up()
    assert head.well()
    assert old.isdisjoint(head.processes())


def test_two_at_once_take_turns(head: Head) -> None:
    said: list[str] = []
    both = [threading.Thread(target=lambda: said.append(head.first_up())) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted("unchanged" in text for text in said) == [False, True], said
    # One supervisord, one MLflow and its listener.
    assert len(head.processes()) == 3


def test_down_ends_everything_and_up_goes_on_from_there(head: Head) -> None:
    assert head.run("status").returncode == 1
    assert head.run("down").returncode == 0
    head.first_up("--log-copies", "3")
    password = head.password()
    body = b'{"name": "kept"}'
    assert head.request("/api/2.0/mlflow/experiments/create", head.admin, body)[0] == 200

    lines = head.run("status").stdout.splitlines()
    assert lines[0].split() == ["program", "state", "pid", "since", "log"]
    for column in ("state", "pid", "since", "log"):
        start = lines[0].index(column)
        assert all(line[start - 1] == " " and line[start] != " " for line in lines), lines

    result = head.run("down")
    assert (result.returncode, result.stdout) == (0, "services stopped\n")
    assert head.processes() == []
    code, states = head.status()
    assert code == 1
    assert {state for state, _ in states.values()} == {"down"}
    assert head.run("down").stdout == "services did not run\n"

    assert "mlflow: started" in head.up()  # all settings as they were
    assert head.password() == password
    assert head.request("/api/2.0/mlflow/experiments/get-by-name?experiment_name=kept", head.admin)[0] == 200
    assert "stdout_logfile_backups=3" in (head.data / "supervisor" / "supervisord.conf").read_text()


def test_logs_are_rotated(head: Head) -> None:
    head.first_up("--log-size", "4KiB", "--log-copies", "2")
    log = head.data / "logs" / "mlflow.log"
    asked = 0
    while not log.with_name("mlflow.log.2").exists():
        assert head.request("/health")[0] == 200
        asked += 1
        assert asked < 2000
    for _ in range(200):
        head.request("/health")
    logs = sorted(path.name for path in log.parent.glob("mlflow.log*"))
    assert logs == ["mlflow.log", "mlflow.log.1", "mlflow.log.2"]
    assert sum(path.stat().st_size for path in log.parent.glob("mlflow.log*")) < 4 * 4096


def test_a_program_that_cannot_start_is_one_line_with_its_reason(head: Head) -> None:
    (head.data).mkdir()
    (head.data / "mlflow.db").write_bytes(b"no database at all, and longer than the hundred bytes of its header" * 9)
    result = head.run("up", "--port", str(head.port), "--programs", "mlflow")
    assert result.returncode == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("error: mlflow does not start: ")
    assert "not a database" in line
    # It is tried for ever: mended, it starts.
    (head.data / "mlflow.db").unlink()
    until(head.well, "MLflow starts once its database is mended")
