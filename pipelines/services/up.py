"""``python -m pipelines.services up``: write what the services need, start what is not there, restart what changed."""

from __future__ import annotations

import json
import os
import socket
import time

from fvae.config import ConfigError, require
from fvae.files import read_json, write_text
from pipelines.services import boot, database, health, own_processes, secret_files, supervision
from pipelines.services.lock import one_at_a_time
from pipelines.services.orphans import end_leftovers
from pipelines.services.paths import Places
from pipelines.services.programs import database_of, users_database_of
from pipelines.services.settings import PROGRAMS, ServiceSettings, Up
from pipelines.services.supervision import SUPERVISOR, Process
from pipelines.storage import is_remote, open_storage


def run(options: Up) -> int:
    """Bring the services up; returns 0, or 1 where one does not answer in time.

    Raises ``ConfigError`` for what cannot work, before anything that runs is touched; ``StorageError`` where S3 does
    not answer.
    """
    os.umask(0o077)
    places = options.places()
    places.make()
    with one_at_a_time(places):
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
                health.knows_admin(settings.url, password),
                f"the password in {places.secrets}/mlflow-admin-password is not that of MLflow's user "
                f"{secret_files.ADMIN}: put it there, or add --reset-password",
            )
    return 0


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
        end_leftovers(places, PROGRAMS)
    address = (settings.host, settings.port)
    if "mlflow" in settings.programs and not (
        before is not None and (before.host, before.port) == address and _listens(places, before, was)
    ):
        _require_free(*address)


def _listens(places: Places, before: ServiceSettings, was: dict[str, Process]) -> bool:
    """Whether it is our own MLflow that listens."""
    state = was["mlflow"].state if "mlflow" in was else "DOWN"
    if state != "STARTING":
        return state == "RUNNING"
    return own_processes.listens("mlflow", before.port, places)


def _require_artifacts(artifacts: str) -> None:
    storage = open_storage(artifacts)
    if is_remote(artifacts):
        next(iter(storage.list()), None)  # says that there is no such bucket, or that it may not be read
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
    """All files; returns the password of MLflow's user admin."""
    secret_files.keep_environment(places, os.environ)
    if "AWS_SESSION_TOKEN" in os.environ:
        print("note: AWS_SESSION_TOKEN is of credentials that end: run `up` again with new ones, or use a role")
    if database_uri is not None:
        secret_files.keep_database(places, database_uri)
    password = secret_files.admin_password(places, new=new_password)
    if "mlflow" in settings.programs:
        users = users_database_of(places, settings)
        secret_files.write_server_users_file(places, users, password)
        if new_password:
            database.set_admin_password(places, users, password)
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
            # supervisord goes on trying; here it is said.
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
        return health.answers(settings.url)
    return process.state == "RUNNING"
