"""An MLflow database for every test that asks for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.mlflow_settings import quiet_mlflow


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations cost seconds."""
    quiet_mlflow()
    from pipelines.mlflow_connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "made" / "empty.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``machine("A")``: from now on the current folder is that of machine A, empty at first."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        return folder

    return go
