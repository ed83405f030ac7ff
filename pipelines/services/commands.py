"""What ``python -m pipelines.services`` does: start the services or bring them up to date, show them, stop them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator

from fvae.config import ConfigError, require
from fvae.files import read_json, write_text
from pipelines.services import boot, database, mlflow_server, processes, secret_files, supervision
from pipelines.services.paths import Places
from pipelines.services.programs import database_of, users_database_of
from pipelines.services.settings import PROGRAMS, Down, ServiceSettings, Status, Up
from pipelines.services.supervision import SUPERVISOR, Process
from pipelines.storage import is_remote, open_storage


def up(options: Up) -> int:
    """Start the services, or restart those that changed; returns 0, or 1 where one does not answer in time.

    Raises ``ConfigError`` for what cannot work, before anything that runs is touched; ``StorageError`` where S3 or
    MLflow does not answer.
    """
    os.umask(0o077)
    places = options.places()
    places.make()
    with _one_at_a_time(places):
        before = ServiceSettings.from_dict(read_json(places.settings)) if places.settings.exists() else None
        asked = database.asked_database(options.database, os.environ)
        settings = options.settings(before, asked and asked[0])
        was = supervision.processes(places)
        _check(places, settings, before, was, asked and asked[1])
        password = _write(places, settings, asked and asked[1], new_password=options.reset_password)
        if not _supervise(places, options.patience):
            print(f"error: supervisord does not start: {supervision.last_trouble(places, SUPERVISOR)}")
            return 1
        if settings.at_boot:
            print(f"at boot: started by {boot.install(places)}")
        if not _well(places, settings, was, options.patience):
            return 1
        if "mlflow" in settings.programs:
            require(
                mlflow_server.knows_admin(settings.url, password),
                f"the password in {places.secrets}/mlflow-admin-password is not that of MLflow's user "
                f"{secret_files.ADMIN}: put it there, or add --reset-password",
            )
    return 0


def status(options: Status) -> int:
    """Print a table of what runs, since when, and where its log is; returns 1 where something is down, else 0."""
    places = options.places()
    if not places.settings.exists():
        print(f"no services in {places.data}; start them with `python -m pipelines.services up --data {places.data}`")
        return 1
    settings = ServiceSettings.from_dict(read_json(places.settings))
    supervisor = supervision.supervisor_pid(places)
    known = supervision.processes(places)
    rows: list[tuple[str, ...]] = [("program", "state", "pid", "since", "log")]
    rows.append(
        _row(SUPERVISOR, "down" if supervisor is None else "running", supervisor or 0, 0, places.log(SUPERVISOR))
    )
    well = supervisor is not None
    for program in settings.programs:
        process = known.get(program, Process("DOWN", 0, 0))
        state = process.state.lower()
        if program == "mlflow" and process.state in {"RUNNING", "STARTING"}:
            state = "running" if mlflow_server.answers(settings.url) else "no answer"
        well = well and state == "running"
        rows.append(_row(program, state, process.pid, process.since if process.pid else 0, places.log(program)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if well else 1


def down(options: Down) -> int:
    """Stop the services and supervisord; returns 1 where supervisord does not end, else 0."""
    places = options.places()
    if not places.settings.exists():
        print(f"no services in {places.data}")
        return 0
    with _one_at_a_time(places):
        ran = supervision.supervisor_pid(places)
        if not supervision.stop(places, options.patience):
            print(f"error: supervisord (process {ran}) does not end; see {places.log(SUPERVISOR)}")
            return 1
        processes.end_leftovers(places, PROGRAMS)
        if ServiceSettings.from_dict(read_json(places.settings)).at_boot:
            boot.remove(places)
    print("services stopped" if ran else "services did not run")
    return 0


@contextlib.contextmanager
def _one_at_a_time(places: Places) -> Iterator[None]:
    """Wait until no other ``up`` or ``down`` of the data folder runs. The lock goes with the process."""
    with places.lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another `up` or `down` of {places.data}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check(
    places: Places,
    settings: ServiceSettings,
    before: ServiceSettings | None,
    was: dict[str, Process],
    database_uri: str | None,
) -> None:
    """Raise ``ConfigError`` for what the services could not start with."""
    if settings.database is not None:
        database.require_reachable(database_uri or database_of(places, settings))
    if before is None or before.artifacts != settings.artifacts:
        _require_artifacts(settings.artifacts)
    if supervision.supervisor_pid(places) is None:
        processes.end_leftovers(places, PROGRAMS)
    address = (settings.host, settings.port)
    if "mlflow" in settings.programs and not (
        before is not None and (before.host, before.port) == address and _listens(places, before, was)
    ):
        _require_free(*address)


def _listens(places: Places, before: ServiceSettings, was: dict[str, Process]) -> bool:
    """Whether it is this data folder's own MLflow that listens."""
    state = was["mlflow"].state if "mlflow" in was else "DOWN"
    if state != "STARTING":
        return state == "RUNNING"
    return processes.listens("mlflow", before.port, places)


def _require_artifacts(artifacts: str) -> None:
    storage = open_storage(artifacts)
    if is_remote(artifacts):
        next(iter(storage.list()), None)  # raises where there is no such bucket, or it cannot be read
        return
    try:
        assert storage.local_path is not None
        storage.local_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--artifacts={artifacts}: cannot be made ({error.strerror})") from error


def _require_free(host: str, port: int) -> None:
    """Raise ``ConfigError`` where another program listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"--port={port}: cannot listen on {host}:{port} ({error.strerror}); another program may be there: "
                "give another --port"
            ) from error


def _write(places: Places, settings: ServiceSettings, database_uri: str | None, *, new_password: bool) -> str:
    """Write all files; returns the password of MLflow's user admin."""
    secret_files.keep_environment(places, os.environ)
    if "AWS_SESSION_TOKEN" in os.environ:
        print("note: AWS_SESSION_TOKEN belongs to temporary credentials: run `up` again with new ones, or use a role")
    if database_uri is not None:
        secret_files.keep_database(places, database_uri)
    password = secret_files.admin_password(places, new=new_password)
    if "mlflow" in settings.programs:
        users = users_database_of(places, settings)
        secret_files.write_server_users_file(places, users, password)
        if new_password:
            mlflow_server.set_admin_password(places, users, password)
        if note := secret_files.write_client_files(places, settings.url, password):
            print(f"note: {note}")
    write_text(places.settings, json.dumps(settings.to_dict(), indent=1))
    supervision.write_configuration(places, settings)
    return password


def _supervise(places: Places, patience: float) -> bool:
    if supervision.supervisor_pid(places) is None:
        return supervision.start(places, patience)
    supervision.update(places)
    return True


def _well(places: Places, settings: ServiceSettings, was: dict[str, Process], patience: float) -> bool:
    """Wait for each program, and print a line for each."""
    deadline = time.monotonic() + patience
    for program in settings.programs:
        starts: set[int] = set()
        while not _runs(places, settings, program):
            process = supervision.processes(places).get(program)
            if process is not None:
                starts.add(process.since)
            # supervisord goes on trying; the command ends with the reason.
            if time.monotonic() > deadline or len(starts) > 3 or (process and process.state == "FATAL"):
                print(
                    f"error: {program} does not start: {supervision.last_trouble(places, program)} "
                    f"(log: {places.log(program)})"
                )
                return False
            time.sleep(0.2)
        now = supervision.processes(places)[program]
        what = "started" if program not in was else "unchanged" if was[program].pid == now.pid else "started again"
        where = f", {settings.url}, user {secret_files.ADMIN}" if program == "mlflow" else ""
        print(f"{program}: {what}, process {now.pid}{where}", flush=True)
    return True


def _runs(places: Places, settings: ServiceSettings, program: str) -> bool:
    process = supervision.processes(places).get(program)
    if process is None or process.state not in {"RUNNING", "STARTING"}:
        return False
    if program == "mlflow":
        return mlflow_server.answers(settings.url)
    return process.state == "RUNNING"


def _row(program: str, state: str, pid: int, since: int, log: object) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if since else "-"
    return program, state, str(pid or "-"), when, str(log)
