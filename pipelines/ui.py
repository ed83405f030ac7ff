"""MLflow's pages over all runs of a folder or of a place on S3: ``python -m pipelines.ui`` (= ``make ui``).

python -m pipelines.ui --runs s3://bucket/prefix
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from fvae.config import require
from pipelines import command_line
from pipelines.mlflow_settings import artifact_place, default_tracking_uri, quiet_mlflow, server_environment
from pipelines.storage import Storage, open_storage
from pipelines.tracking_database import WorkingCopy


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
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default
    if uri == default and storage.local_path is None:
        _bring_database(storage)
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///")
        require(Path(database).exists(), f"--runs={settings.runs}: no runs there yet ({database}); make search first")
    require(not uri.startswith("http"), f"MLFLOW_TRACKING_URI={uri}: already a server; open it there")
    require("://" in uri, f"MLFLOW_TRACKING_URI={uri}: not a database URI, such as sqlite:///runs/mlflow.db")
    quiet_mlflow()
    print(f"MLflow on http://{settings.host}:{settings.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    # For experiments made in the pages themselves: those of a search name their place, which the server reads.
    command += ["--artifacts-destination", artifact_place(storage), "--workers", "1"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    os.execve(sys.executable, command, server_environment())


def _bring_database(storage: Storage) -> None:
    """The store's state of the runs as of now: it is shown, and what is changed in the pages stays on this machine."""
    database = WorkingCopy(storage)
    database.bring()
    for note in database.notes:
        print(note, flush=True)
    database.close()


if __name__ == "__main__":
    command_line.run(main, UISettings)
