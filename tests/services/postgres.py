"""A real PostgreSQL server with passwords, which can be stopped and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2

from tests.services.head import PATIENCE, free_port

USER, PASSWORD, DATABASE = "fvae", "50% p@ss:w/rd", "runs"
"""A password with all that a URI, an .ini file and ~/.pgpass each read in their own way."""
AS_POSTGRES: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
"""For :func:`subprocess.run`."""


class Postgres:
    """One cluster of PostgreSQL in ``folder``; root runs it as the user postgres, because it refuses to run as root."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"
        self.pgpass = f"127.0.0.1:{self.port}:{DATABASE}:{USER}:{PASSWORD.replace(':', chr(92) + ':')}\n"
        self._folder = folder / "cluster"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret) if AS_POSTGRES else ():
            shutil.chown(path, "postgres", "postgres")
        self._do("initdb", "--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256", "--no-sync")
        self.start()
        with contextlib.closing(self.connect("postgres")) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {DATABASE}")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = str(self._folder.with_name("log"))
        self._do("pg_ctl", "--log", log, "--options", options, "--wait", "start")

    def stop(self) -> None:
        """Stop it, whoever is connected; nothing happens where it does not run."""
        if (self._folder / "postmaster.pid").exists():
            self._do("pg_ctl", "--mode", "immediate", "--wait", "stop")

    def connect(self, database: str = DATABASE) -> Any:
        """A connection."""
        return psycopg2.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database)

    def column(self, query: str) -> list[Any]:
        """The first column of what ``query`` finds."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return [row[0] for row in cursor.fetchall()]

    def _do(self, program: str, *options: str) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
        command = [str(found[-1]) if found else program, "--pgdata", str(self._folder), *options]
        with tempfile.TemporaryFile() as said:  # not a pipe: the server would hold it open
            done = subprocess.run(
                command,
                cwd="/",
                stdout=said,
                stderr=said,
                timeout=PATIENCE,
                check=False,
                **AS_POSTGRES,
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode()


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server with an empty database, for the block."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = Postgres(Path(folder))
        try:
            yield server
        finally:
            server.stop()
