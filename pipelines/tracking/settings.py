"""MLflow's environment variables, default database and place of artifacts. MLflow is not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.storage import Storage
from pipelines.tracking.database import WorkingCopy, database_path

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # failures are reported once, by `problems`, not across the live table
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A failed write is repeated in a later round. MLflow's own 7 retries would hold one call for minutes, and could
    # create a run twice when only the answer was lost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",  # a PostgreSQL whose machine is gone would hold a connection for minutes
}

# A server reads artifacts with a boto3 client of its own, whose defaults are few retries and checksums that only
# AWS's store is sure to know. Its eight processes for jobs evaluate language models.
_SERVER_DEFAULTS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": "6",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def default_tracking_uri(storage: Storage) -> str:
    """The SQLite database that serves where ``MLFLOW_TRACKING_URI`` is not set: ``mlflow.db`` beside local runs.

    Where the runs are remote it is the working copy of this machine, ``runs/s3/BUCKET/PREFIX/mlflow.db`` below the
    current folder: see :class:`pipelines.tracking.database.WorkingCopy`.
    """
    return f"sqlite:///{database_path(storage)}"


def working_copy(tracking_uri: str, storage: Storage) -> WorkingCopy | None:
    """The database of ``tracking_uri`` where it is this machine's working copy of the one in a remote ``storage``."""
    is_copy = storage.local_path is None and tracking_uri == default_tracking_uri(storage)
    return WorkingCopy(storage) if is_copy else None


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of an SQLite database; ``None`` for another database or a server."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]) if tracking_uri.startswith(prefix) else None


def artifact_place(storage: Storage) -> str:
    """URI of the artifacts of the runs in ``storage``: beside them."""
    folder = storage.local_path
    return f"{storage.uri}/mlartifacts" if folder is None else (folder.resolve() / "mlartifacts").as_uri()


def artifact_location(tracking_uri: str, storage: Storage) -> str | None:
    """The place for artifacts of a new experiment; ``None``: its server decides.

    A database would otherwise take ``./mlruns`` of the process that uses it first.
    """
    return None if urlsplit(tracking_uri).scheme in {"http", "https"} else artifact_place(storage)


def quiet_mlflow() -> None:
    """Set this product's defaults for MLflow's environment variables; a user's own settings stay. No telemetry."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def server_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for an MLflow server: ``environment`` (this process's), and defaults where it says nothing."""
    return _SERVER_DEFAULTS | dict(os.environ if environment is None else environment)
