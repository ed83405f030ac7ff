"""MLflow's pages over all runs of a folder or of a place on S3: ``python -m pipelines.ui`` (= ``make ui``).

python -m pipelines.ui --runs s3://bucket/prefix
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import socket
import sys
from pathlib import Path

from fvae.config import ConfigError, require
from pipelines.cli import command_line
from pipelines.cli.redaction import plain_url
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.tracking.artifact_locations import correct_artifact_locations
from pipelines.tracking.connection import unreachable_for_now
from pipelines.tracking.database import WorkingCopy
from pipelines.tracking.settings import artifact_place, default_tracking_uri, quiet_mlflow, server_environment
from pipelines.tracking.tracking_uri import VARIABLE, tracking_uri

ROOT = Path(__file__).parents[1]
"""The folder with the Makefile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UISettings:
    """Serve MLflow's pages, on this machine alone unless told otherwise."""

    runs: str = "runs"
    """Where all runs are: a folder or s3://bucket/prefix."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 5000
    """Port to listen on."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"--port={self.port}: must be from 1 to 65535")


def main(settings: UISettings) -> int:
    """Become MLflow's server; ends with Ctrl-C."""
    storage = open_storage(settings.runs)
    default = default_tracking_uri(storage)
    uri = tracking_uri(storage)
    if uri == default and storage.local_path is None:
        _bring_database(storage)
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///").partition("?")[0]
        require(Path(database).exists(), f"--runs={settings.runs}: no runs there yet ({database}); make search first")
    if uri.startswith("http") and (note := unreachable_for_now(uri)):
        raise StorageError(f"{VARIABLE}: {note}")
    require(not uri.startswith("http"), f"{VARIABLE}={plain_url(uri)}: already a server; open it there")
    _require_free(settings)
    correct_artifact_locations(uri, storage)
    quiet_mlflow()
    if note := unreachable_for_now(uri):
        raise StorageError(note)
    print(f"MLflow on http://{settings.host}:{settings.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    # For experiments made in the pages themselves: those of a search name their place, which the server reads.
    command += ["--artifacts-destination", artifact_place(storage), "--workers", "1"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    os.execve(sys.executable, command, server_environment())


def how_to_open(storage: Storage) -> str:
    """What shows the runs of ``storage`` in a browser: a command that works where it is pasted into a shell, or the
    address of the MLflow server that keeps them."""
    uri = tracking_uri(storage)
    if uri.startswith("http"):
        return plain_url(uri)
    words = ["make"]
    if Path.cwd() != ROOT:
        words += ["-C", str(ROOT)]
    if storage.uri != str(ROOT / "runs"):
        # The shell reads it twice: as an argument of make, and in the command that make runs, where $ is make's.
        arguments = f"--runs {shlex.quote(storage.uri)}".replace("$", "$$")
        return f"{shlex.join([*words, 'ui'])} ARGS={shlex.quote(arguments)}"
    return shlex.join([*words, "ui"])


def _require_free(settings: UISettings) -> None:
    """Raise ``ConfigError`` where nothing can listen at the address: MLflow's server would end without a word."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host={settings.host}: no address of this machine ({error.strerror})") from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"--host={settings.host}: no address of this machine; use 127.0.0.1") from error
            raise ConfigError(
                f"--port={settings.port}: cannot listen on {where} ({error.strerror}); another program may be there: "
                "give another port (make ui PORT=5001)"
            ) from error


def _bring_database(storage: Storage) -> None:
    """The store's state of the runs as of now: it is shown, and what is changed in the pages stays on this machine."""
    database = WorkingCopy(storage)
    database.bring()
    for note in database.notes:
        print(note, flush=True)
    database.close()


if __name__ == "__main__":
    command_line.run(main, UISettings)
