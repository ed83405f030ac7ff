"""Start Ray on the cluster's head, or restart what differs from the cluster file; running jobs are never ended.

    python -m pipelines.cluster.start_head --port=6379 --num-cpus=0 …       the options of `ray start --head`
    python -m pipelines.cluster.start_head again                            with the last options: after a reboot

``ray up`` runs its start commands each time, also when nothing has changed; ``ray stop; ray start`` there would end
every running job. This command compares first:

    nothing has changed                   nothing is done
    the machines or commands of workers   the autoscaler alone is restarted, and finds the workers that run
    Ray's options, or the lock file       Ray is restarted; while a job runs, a warning is printed and nothing is done

A line in the crontab starts Ray when the machine starts. Ray is not a program of the supervisord that keeps the
services: in the foreground, as supervisord needs it, `ray start --block` kills all of Ray, and so every job, as soon as
any one of its processes crashes, the dashboard too; and `supervisorctl update` would restart a changed Ray under its
running jobs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fvae.config import ConfigError, one_line
from fvae.files import write_bytes
from pipelines.cluster import crontab
from pipelines.cluster.linux_processes import RunningProcess, find_process, start_detached

RECORD = Path("~/.ray/head.json")
"""The file of what Ray was started with, and of its processes."""
AUTOSCALING = Path("~/ray_bootstrap_config.yaml")
"""The cluster file on the head, written by ``ray up``."""
CORE = {"gcs": "/gcs_server", "raylet": "/raylet/raylet"}
"""The processes without which Ray does not run, by the ends of their commands."""
MONITOR = "/autoscaler/v2/monitor.py"
JOB_SERVER = "http://127.0.0.1:8265"
ENDING_SECONDS = 10.0
KEPT = (
    "RAY_",
    "AUTOSCALER_",
    "DASHBOARD_",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "MLFLOW_TRACKING_URI",
)
"""Prefixes of the variables that Ray has at boot as it had at ``ray up``. Never credentials."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Ray as it was last started on this machine."""

    options: list[str]
    """The options of ``ray start --head``."""
    variables: dict[str, str]
    """The variables of its environment that :data:`KEPT` selects."""
    environment: str
    """The virtual environment: one for each lock file."""
    autoscaling: str
    """SHA-256 of the cluster file that the autoscaler has read."""
    core: dict[str, RunningProcess]
    monitor: RunningProcess | None
    monitor_command: list[str]

    @classmethod
    def read(cls) -> Head | None:
        """The record of the last start; None where there is none, or it cannot be read."""
        try:
            values: dict[str, Any] = json.loads(RECORD.expanduser().read_text())
            core = {name: RunningProcess.from_dict(each) for name, each in values.pop("core").items()}
            monitor = values.pop("monitor")
            return cls(core=core, monitor=monitor and RunningProcess.from_dict(monitor), **values)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        """Write the record."""
        write_bytes(RECORD.expanduser(), json.dumps(dataclasses.asdict(self), indent=1).encode())

    def lives(self) -> bool:
        """Whether Ray still runs."""
        return all(process.lives() for process in self.core.values())


def main(arguments: list[str]) -> int:
    """Start or restart what is needed. Returns the exit status."""
    head = Head.read()
    if arguments == ["again"]:
        if head is None:
            raise ConfigError(f"{RECORD}: Ray was never started here; `ray up` does")
        os.environ.update(head.variables)
        arguments = head.options
    return bring_up(arguments, head)


def bring_up(options: list[str], head: Head | None) -> int:
    """Start, restart or keep Ray, so that it has these options. Returns the exit status."""
    autoscaling = _digest(AUTOSCALING.expanduser())
    if head is None or not head.lives():
        return start(options, autoscaling)
    if (head.options, head.variables, head.environment) != (options, _kept(), _environment()):
        if jobs := running_jobs():
            print(
                f"warning: Ray is not restarted, because it runs {', '.join(jobs)}; `ray up` again when that has ended"
            )
            return 0
        print("What Ray is started with has changed: it is restarted.")
        return start(options, autoscaling)
    if head.autoscaling != autoscaling or not (head.monitor and head.monitor.lives()):
        restart_monitor(head, autoscaling)
        print("The autoscaler is restarted with the new cluster file. Ray runs on.")
        return 0
    print("Ray runs as it should: nothing to do.")
    return 0


def start(options: list[str], autoscaling: str) -> int:
    """Stop Ray where it runs, and start it. Returns the exit status."""
    binaries = f"{_environment()}/bin"  # jobs' `python` stays this environment's when .venv is replaced
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    subprocess.run([f"{binaries}/ray", "stop"], env=environment, check=False)
    started = subprocess.run([f"{binaries}/ray", "start", "--head", *options], env=environment, check=False)
    if started.returncode:
        return started.returncode
    found = {name: find_process(ending) for name, ending in CORE.items()}
    core = {name: process for name, process in found.items() if process}
    if len(core) < len(CORE):
        raise ConfigError(f"Ray has ended at once ({', '.join(CORE.keys() - core)}); see /tmp/ray/session_latest/logs")
    monitor = find_process(MONITOR)
    Head(
        options=options,
        variables=_kept(),
        environment=_environment(),
        autoscaling=autoscaling,
        core=core,
        monitor=monitor,
        monitor_command=monitor.command() if monitor else [],
    ).write()
    start_at_boot()
    return 0


def start_at_boot() -> None:
    """Have Ray started at boot, by a line in this user's crontab. A warning where that is not possible."""
    module = "-m pipelines.cluster.start_head again"
    command = f"python {module}"
    environment = ". $HOME/fvae/pipelines/cluster/environment.sh"
    line = f"@reboot {environment}; cd $HOME/fvae && {command} >> $HOME/.ray/boot.log 2>&1"
    try:
        crontab.set_line(line, lambda each: re.search(rf"{re.escape(module)}(\s|$)", each) is not None)
    except ConfigError as error:
        print(f"warning: {error}; have `cd ~/fvae && .venv/bin/{command}` run at boot")


def restart_monitor(head: Head, autoscaling: str) -> None:
    """Restart the autoscaler; Ray's other processes and the workers are left alone."""
    environment = head.core["gcs"].environment()
    if head.monitor:
        head.monitor.end(ENDING_SECONDS)
    monitor = start_detached(head.monitor_command, environment)
    dataclasses.replace(head, autoscaling=autoscaling, monitor=monitor).write()


def running_jobs() -> list[str]:
    """The jobs that a restart of Ray would end. Raises ``ConfigError`` where Ray does not answer."""
    from ray.job_submission import JobSubmissionClient

    os.environ.pop("RAY_ADDRESS", None)  # it takes precedence over the address given here
    try:
        jobs = JobSubmissionClient(JOB_SERVER).list_jobs()
    except Exception as error:  # any error must not end jobs
        why = one_line(error, 200)
        raise ConfigError(
            f"{JOB_SERVER}: cannot list the running jobs ({why}), so Ray is kept; `ray stop` ends it with all its jobs"
        ) from error
    return [job.submission_id or f"driver {job.job_id}" for job in jobs if job.status in ("PENDING", "RUNNING")]


def _environment() -> str:
    return str(Path(sys.prefix).resolve())


def _kept() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(KEPT) and "TOKEN" not in name}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as error_:
        print(f"error: {error_}", file=sys.stderr)
        sys.exit(2)
