"""supervisord: its configuration file, and how it is started, updated, queried and stopped."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Fault, ServerProxy

import pipelines
from fvae.config import one_line
from fvae.files import write_text
from pipelines.services.paths import Places
from pipelines.services.programs import digest
from pipelines.services.settings import Program, ServiceSettings
from pipelines.storage import StorageError
from pipelines.storage.lease_holder import process_start

SUPERVISOR = "supervisord"
"""The name of its own log."""

_TROUBLE = re.compile(r"\b\w*(Error|Exception)\b|\berror:", re.ASCII)

_STARTED_AFTER = {"mlflow": 10, "scheduler": 5}
"""Seconds after which a program that still runs counts as started."""


class Process(NamedTuple):
    """A supervised program."""

    state: str
    """supervisord's term: RUNNING, STARTING, BACKOFF, FATAL, STOPPED, …"""
    pid: int
    """0 where it does not run."""
    since: int
    """When it was last started, in seconds since 1970."""


def configuration(places: Places, settings: ServiceSettings) -> str:
    """supervisord's configuration file. No secret is in it."""
    size, copies = settings.log_bytes, settings.log_copies
    user = f"user={pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
    parts = [
        "; Written by `python -m pipelines.services up`, which writes it anew.\n"
        f"[unix_http_server]\nfile={places.socket}\nchmod=0700\n",
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n",
        f"[supervisorctl]\nserverurl=unix://{places.socket}\n",
        f"[supervisord]\nlogfile={places.log(SUPERVISOR)}\nlogfile_maxbytes={size}\nlogfile_backups={copies}\n"
        f"pidfile={places.pid}\nchildlogdir={places.logs}\ndirectory={places.data}\numask=077\n{user}",
    ]
    for program in settings.programs:
        words = [sys.executable, "-m", "pipelines.services.launch", program, str(places.data)]
        words.append(digest(program, places, settings))
        parts.append(
            f"[program:{program}]\ncommand={shlex.join(words)}\n"
            f"directory={Path(pipelines.__file__).parents[1]}\n"
            # It is retried for ever, each time a second later than before: a database may be away for a night.
            f"autorestart=true\nstartsecs={_STARTED_AFTER[program]}\nstartretries=1000000\n"
            "stopasgroup=true\nkillasgroup=true\nstopwaitsecs=20\n"
            f"redirect_stderr=true\nstdout_logfile={places.log(program)}\n"
            f"stdout_logfile_maxbytes={size}\nstdout_logfile_backups={copies}\n"
        )
    return "\n".join(parts)


def command(places: Places) -> list[str]:
    """The command that starts supervisord with all programs, from any folder and in any environment."""
    return [sys.executable, "-m", "supervisor.supervisord", "-c", str(places.supervisor)]


def write_configuration(places: Places, settings: ServiceSettings) -> None:
    """Write supervisord's configuration file."""
    write_text(places.supervisor, configuration(places, settings))


def supervisor_pid(places: Places) -> int | None:
    """supervisord's process id; ``None``: it does not run."""
    with contextlib.suppress(OSError, Fault):
        return int(_server(places).getPID())
    return None


def start(places: Places, patience: float) -> bool:
    """Start supervisord, which outlives this process; ``False`` where it does not answer in ``patience`` seconds."""
    subprocess.run(
        command(places),
        env={"PATH": os.defpath, "HOME": str(Path.home())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return poll(lambda: supervisor_pid(places) is not None, patience)


def update(places: Places) -> None:
    """Have supervisord read its configuration again and restart the programs that changed, no others.

    A program that was given up or stopped is started too. Raises ``StorageError`` where supervisord refuses.
    """
    control = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(places.supervisor)]
    done = subprocess.run([*control, "update"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(
            f"{places.supervisor}: supervisord cannot be updated ({one_line(done.stdout + done.stderr)})"
        )
    for name, process in processes(places).items():
        if process.state in {"STOPPED", "FATAL", "EXITED"}:
            _server(places).startProcess(name, False)  # `supervisorctl start` would wait until it counts as started


def processes(places: Places) -> dict[str, Process]:
    """The supervised programs by name; empty where supervisord does not run."""
    try:
        found: Any = _server(places).getAllProcessInfo()
    except (OSError, Fault):
        return {}
    return {info["name"]: Process(info["statename"], info["pid"], info["start"]) for info in found}


def stop(places: Places, patience: float) -> bool:
    """End the programs and supervisord; ``False`` where it still runs after ``patience`` seconds."""
    pid = supervisor_pid(places)
    if pid is None:
        return True
    with contextlib.suppress(OSError, Fault):  # it answers, or has gone first
        _server(places).shutdown()
    return poll(lambda: process_start(pid) is None, patience)


def poll(done: Callable[[], bool], patience: float) -> bool:
    """Wait until ``done``; ``False`` where it is not after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def last_trouble(places: Places, program: Program | str) -> str:
    """The last line at the end of a program's log that names an error, or else the last line."""
    try:
        text = places.log(program).read_text(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.split("\n")[-200:] if line.strip()]
    errors = [line for line in lines if _TROUBLE.search(line)]
    return [*(lines or ["it wrote nothing"]), *errors][-1][:300]


def _server(places: Places) -> Any:
    from supervisor.xmlrpc import SupervisorTransport

    return ServerProxy(
        "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{places.socket}")
    ).supervisor
