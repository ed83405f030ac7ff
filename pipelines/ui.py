"""MLflow's pages over the runs of this folder: ``python -m pipelines.ui`` (= ``make ui``)."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from fvae.config import require
from pipelines import command_line
from pipelines.tracking import default_tracking_uri, quiet_mlflow


@dataclasses.dataclass(frozen=True, kw_only=True)
class UISettings:
    """Serve MLflow's pages, on this machine alone unless told otherwise."""

    runs: str = "runs"
    """Folder of all runs."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 5000
    """Port to listen on."""

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"--port={self.port}: must be from 1 to 65535")


def main(settings: UISettings) -> int:
    """Become MLflow's server; ends with Ctrl-C."""
    runs = Path(settings.runs).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(runs)
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///")
        require(Path(database).exists(), f"--runs={settings.runs}: no runs there yet ({database}); make search first")
    require(not uri.startswith("http"), f"MLFLOW_TRACKING_URI={uri}: already a server; open it there")
    require("://" in uri, f"MLFLOW_TRACKING_URI={uri}: not a database URI, such as sqlite:///runs/mlflow.db")
    quiet_mlflow()
    print(f"MLflow on http://{settings.host}:{settings.port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(runs / "mlartifacts"), "--workers", "1"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    command_line.run(main, UISettings)
