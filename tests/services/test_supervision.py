"""Services that are supervised: a second ``up`` restarts what has changed and nothing else, and ``down`` ends them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.services.head import Head, free_port, lives

pytestmark = [pytest.mark.core, pytest.mark.xdist_group("services")]

EXPERIMENTS = "/api/2.0/mlflow/experiments"


def test_a_second_up_restarts_nothing_and_writes_nothing_anew(shared_head: Head) -> None:
    first = shared_head.pids()
    assert set(first) == {"supervisord", "mlflow", "scheduler"}
    written = [path for path in shared_head.data.rglob("*") if path.suffix in {".conf", ".ini", ".env"}]
    files = {path: path.read_bytes() for path in written}
    assert len(files) == 3
    assert shared_head.up().count("unchanged") == 2
    assert shared_head.pids() == first
    assert {path: path.read_bytes() for path in files} == files


def test_settings_that_would_lose_the_runs_so_far_are_refused(shared_head: Head) -> None:
    before = shared_head.pids()
    elsewhere = str(shared_head.home / "elsewhere")
    for options, message in (
        (["--artifacts", elsewhere], f"--artifacts={elsewhere}: the runs so far are in {shared_head.data}/artifacts"),
        (["--port", str(free_port()), "--host", "0.0.0.0"], "--host=0.0.0.0"),
        (["--artifacts", "/dev/null/artifacts", "--moved"], "cannot be made"),
    ):
        result = shared_head.run("up", *options)
        assert result.returncode == 2
        assert message in result.stderr
        assert shared_head.pids() == before
    assert not Path(elsewhere).exists()


def test_a_change_restarts_the_program_that_it_concerns(shared_head: Head) -> None:
    """Of MLflow's changes all at once: each of them alone is in ``test_programs.py``."""
    first, old = shared_head.pids(), shared_head.password()
    change = {"username": "admin", "password": "changed in MLflow itself", "current_password": old}
    path, body = "/api/2.0/mlflow/users/update-password", json.dumps(change).encode()
    assert shared_head.request(path, shared_head.admin, body, "PATCH")[0] == 200
    result = shared_head.process("up")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "mlflow-admin-password is not that of MLflow's user admin" in line
    assert old not in line
    assert shared_head.pids() == first

    elsewhere = shared_head.home / "elsewhere"
    options = ("--reset-password", "--artifacts", str(elsewhere), "--moved", "--public-names", "mlflow.example.org")
    result = shared_head.process("up", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mlflow: started again" in result.stdout
    assert "scheduler: unchanged" in result.stdout
    second = shared_head.pids()
    assert second["mlflow"] != first["mlflow"]
    assert {**second, "mlflow": 0} == {**first, "mlflow": 0}
    assert shared_head.request("/", shared_head.admin, Host="mlflow.example.org")[0] == 200
    assert elsewhere.is_dir()
    assert shared_head.password() != old
    assert shared_head.request(f"{EXPERIMENTS}/search?max_results=5", shared_head.admin)[0] == 200
    assert shared_head.request(f"{EXPERIMENTS}/search?max_results=5", ("admin", change["password"]))[0] == 401
    assert shared_head.password() in (shared_head.home / ".mlflow" / "credentials").read_text()

    # At once again: MLflow counts as started only after ten seconds, but its port is its own.
    assert shared_head.up().count("unchanged") == 2
    assert shared_head.pids() == second

    shared_head.environment["RAY_ADDRESS"] = "http://127.0.0.1:9"  # Ray's is the scheduler's affair alone
    printed = shared_head.up()
    assert "mlflow: unchanged" in printed
    assert "scheduler: started again" in printed
    assert shared_head.pids()["mlflow"] == second["mlflow"]


def test_down_ends_everything_and_up_goes_on_from_there(shared_head: Head) -> None:
    password = shared_head.password()
    assert shared_head.request(f"{EXPERIMENTS}/create", shared_head.admin, b'{"name": "kept"}')[0] == 200
    lines = shared_head.run("status").stdout.splitlines()
    assert lines[0].split() == ["program", "state", "pid", "since", "log"]
    for column in ("state", "pid", "since", "log"):
        start = lines[0].index(column)
        assert all(line[start - 1] == " " and line[start] != " " for line in lines), lines

    result = shared_head.run("down")
    assert (result.returncode, result.stdout) == (0, "services stopped\n")
    assert shared_head.processes() == []
    code, states = shared_head.status()
    assert code == 1
    assert {state for state, _ in states.values()} == {"down"}
    assert shared_head.run("down").stdout == "services did not run\n"

    settings = json.loads((shared_head.data / "services.json").read_text())
    printed = shared_head.up("--log-size", "4KiB", "--log-copies", "2")  # all other settings are as they were
    assert "mlflow: started" in printed
    assert "scheduler: started" in printed
    assert json.loads((shared_head.data / "services.json").read_text()) == settings | {
        "log_size": "4KiB",
        "log_copies": 2,
    }
    assert shared_head.password() == password
    assert shared_head.request(f"{EXPERIMENTS}/get-by-name?experiment_name=kept", shared_head.admin)[0] == 200


def test_logs_are_rotated(shared_head: Head) -> None:
    shared_head.up("--log-size", "4KiB", "--log-copies", "2")
    log = shared_head.data / "logs" / "mlflow.log"
    asked = 0
    while not log.with_name("mlflow.log.2").exists():
        assert shared_head.request("/health")[0] == 200
        asked += 1
        assert asked < 2000
    for _ in range(200):
        shared_head.request("/health")
    logs = sorted(path.name for path in log.parent.glob("mlflow.log*"))
    assert logs == ["mlflow.log", "mlflow.log.1", "mlflow.log.2"]
    assert sum(path.stat().st_size for path in log.parent.glob("mlflow.log*")) < 4 * 4096


def test_a_program_that_is_not_named_any_more_ends_and_comes_back_when_it_is_named_again(shared_head: Head) -> None:
    before = shared_head.pids()
    assert "scheduler" not in shared_head.up("--programs", "mlflow")
    assert shared_head.pids() == {name: before[name] for name in ("supervisord", "mlflow")}
    assert not lives(before["scheduler"])
    assert "scheduler: started" in shared_head.up("--programs", "mlflow", "scheduler")


def test_two_at_once_take_turns(head: Head) -> None:
    assert head.run("status").returncode == 1
    assert head.run("down").returncode == 0
    printed: list[str] = []

    def up() -> None:
        result = head.process("up", "--programs", "scheduler")
        printed.append(result.stdout + result.stderr)

    both = [threading.Thread(target=up) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted("scheduler: unchanged" in text for text in printed) == [False, True], printed
    assert sorted("scheduler: started" in text for text in printed) == [False, True], printed
    assert len(head.processes()) == 2  # one supervisord, one scheduler
