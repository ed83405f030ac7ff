"""Services come back when the machine starts, with all that they were given: by cron, and by systemd."""

from __future__ import annotations

import configparser
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.services import boot
from pipelines.services.paths import Places
from tests.services.head import PATIENCE, Head, lives, until
from tests.services.machine import Machine

pytestmark = pytest.mark.system

UP = ("up", "--programs", "mlflow", "--at-boot")
OWN_LINE = "17 4 * * * /bin/true\n"
CRON_RUNS = ("sh", "-c", "grep -qx cron /proc/[0-9]*/comm")


@pytest.fixture
def head(migrated_head: Head) -> Head:
    """A head machine whose databases need no migrations."""
    return migrated_head


@pytest.fixture
def on_machine(head: Head) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``on_machine(machine, "up", …)``: the services' command of ``head`` on a machine."""

    def run(machine: Machine, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pipelines.services", command, "--data", str(head.data), *options]
        return machine.run(*words, env=head.environment, cwd=head.home)

    return run


def test_they_come_back_after_the_power_was_cut(head: Head, on_machine: Callable) -> None:
    head.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9/only-this-shell-knows"
    machine = Machine(head.home / "disk")
    with machine.on():
        assert machine.run("crontab", "-", input=OWN_LINE).returncode == 0
        for _ in range(2):
            result = on_machine(machine, *UP, "--port", str(head.port))
            assert result.returncode == 0, result.stdout + result.stderr
            assert "at boot: started by crontab" in result.stdout
        own, ours = machine.run("crontab", "-l").stdout.splitlines()
        assert own == OWN_LINE.strip()
        assert ours.startswith("@reboot ")
        password = head.password()
        assert head.well()
        last = set(head.processes())

    until(lambda: not any(map(lives, last)), "all processes are gone")
    assert head.request_fails()
    assert (head.data / "supervisor" / "supervisord.pid").exists()  # nobody has tidied up

    with machine.on("cron"):
        until(head.well, "the services are back")
        assert head.request("/api/2.0/mlflow/experiments/get?experiment_id=0", ("admin", password))[0] == 200
        environments = [Path(f"/proc/{pid}/environ").read_text() for pid in head.processes()]
        assert sum("AWS_ENDPOINT_URL=http://127.0.0.1:9/only-this-shell-knows" in text for text in environments) == 2
        result = on_machine(machine, "up")
        assert "mlflow: unchanged" in result.stdout
        assert on_machine(machine, "down").returncode == 0
        assert machine.run("crontab", "-l").stdout == OWN_LINE

    with machine.on("cron"):
        until(lambda: machine.run(*CRON_RUNS).returncode == 0, "cron runs")
        assert not (head.data / "supervisor" / "supervisor.sock").exists()


def test_where_there_is_systemd_it_is_a_unit_that_is_enabled(head: Head, on_machine: Callable) -> None:
    machine = Machine(head.home / "disk")
    with machine.on("mkdir -p /run/systemd/system"):
        result = on_machine(machine, *UP, "--port", str(head.port))
        assert result.returncode == 0, result.stdout + result.stderr
        (unit,) = (head.home / "disk" / "units").glob("*.service")
        assert f"at boot: started by systemd (/etc/systemd/system/{unit.name})" in result.stdout
        assert machine.run("crontab", "-l").returncode != 0  # none
        assert machine.run("systemctl", "--root=/", "is-enabled", unit.name).stdout.strip() == "enabled"
        assert on_machine(machine, "down").returncode == 0
        assert machine.run("systemctl", "--root=/", "is-enabled", unit.name).returncode != 0
        assert [path for path in (head.home / "disk" / "units").rglob("*") if path.is_file() or path.is_symlink()] == []


def test_the_unit_is_in_order_and_its_command_runs_in_an_empty_environment(head: Head) -> None:
    head.first_up()
    assert head.run("down").returncode == 0
    unit = head.home / "fvae.service"
    unit.write_text(boot.unit(Places.below(str(head.data))))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read(unit)
    command = shlex.split(parsed["Service"]["ExecStart"])
    process = subprocess.Popen(command, env={}, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(head.well, "the services run")
        assert head.pids()["supervisord"] == process.pid  # systemd watches this one
        assert "mlflow: unchanged" in head.up()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    assert head.processes() == []
