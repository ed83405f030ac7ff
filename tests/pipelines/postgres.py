"""A real PostgreSQL server of a test's own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PASSWORD = "of-this-test"


def _programs() -> Path:
    """Where initdb and pg_ctl are: in PATH, or where Debian keeps them."""
    found = shutil.which("initdb")
    return Path(found).parent if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Yields ``postgresql://USER@HOST:PORT/NAME``; the password is :data:`PASSWORD`, and not in it."""
    programs = _programs()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server refuses to run as root, and a user of its own must be able to reach the folder.
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        if user:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres", "postgres")

        def run(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **user)  # type: ignore[call-overload]
            assert done.returncode == 0, command

        secret = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        run(str(programs / "initdb"), "--pgdata", str(folder / "data"), "--username=team", "--no-sync", *secret)
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
        control = [str(programs / "pg_ctl"), "--pgdata", str(folder / "data"), "--wait"]
        run(*control, "--log", str(folder / "log"), "--options", options, "start")
        try:
            yield f"postgresql://team@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "--mode", "immediate", "stop")
