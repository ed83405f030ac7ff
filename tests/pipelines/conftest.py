"""An MLflow database for every test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.mlflow_settings import quiet_mlflow


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations cost seconds."""
    quiet_mlflow()
    from pipelines.mlflow_runs import connect

    path = tmp_path_factory.mktemp("mlflow") / "made" / "empty.db"
    connect(f"sqlite:///{path}")
    return path
