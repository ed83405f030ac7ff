"""The supervised programs: their commands, their environments, and digests that change when they must restart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pipelines
from pipelines.services import secret_files
from pipelines.services.paths import Places
from pipelines.services.settings import Program, ServiceSettings
from pipelines.tracking.settings import server_environment

_LOCAL = ("localhost", "127.0.0.1")
_PACKAGES = Path(pipelines.__file__).parent


class Started(NamedTuple):
    """The command and environment that a program is started with."""

    command: list[str]
    """No part of it is secret: every user of the machine can read it."""
    environment: dict[str, str]
    """All of it; nothing is inherited."""


def started(program: Program, places: Places, settings: ServiceSettings) -> Started:
    """The command and environment of ``program``, from the settings and the kept secrets."""
    return _mlflow(places, settings) if program == "mlflow" else _scheduler(places, settings)


def digest(program: Program, places: Places, settings: ServiceSettings) -> str:
    """16 hex digits that change when ``program`` has to be restarted.

    That is when its command or environment changes, the file of its users, a library, or the code that it runs.
    """
    salt = secret_files.flask_key(places)  # the digest is public, and its parts could be guessed
    parts = [salt, *started(program, places, settings), _code(program, places)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def database_of(places: Places, settings: ServiceSettings) -> str:
    """URI of MLflow's runs and models, with its password."""
    if settings.database is None:
        return f"sqlite:///{places.database}"
    return secret_files.database_uri(places) or settings.database


def users_database_of(places: Places, settings: ServiceSettings) -> str:
    """URI of MLflow's users: in the same PostgreSQL database; with SQLite, in a file of their own."""
    return f"sqlite:///{places.users}" if settings.database is None else database_of(places, settings)


def _mlflow(places: Places, settings: ServiceSettings) -> Started:
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--artifacts-destination", settings.artifacts]
    # One process, which serves about 150 requests a second: several would each remember passwords for themselves.
    command += ["--workers", "1", "--host", settings.host, "--port", str(settings.port)]
    # Against DNS rebinding: requests by any other host name are refused. The port does not matter: an ssh tunnel
    # has one of its own.
    names = [*_LOCAL, *settings.public_names]
    command += ["--allowed-hosts", ",".join(entry for name in names for entry in (name, f"{name}:*"))]
    if settings.public_names:  # else their own pages could not write
        origins = [f"{scheme}://{name}" for name in settings.public_names for scheme in ("https", "http")]
        command += ["--cors-allowed-origins", ",".join(entry for one in origins for entry in (one, f"{one}:*"))]
    others = {name: text for name, text in _kept(places).items() if not name.startswith(("RAY_", "MLFLOW_TRACKING_"))}
    environment = server_environment(others) | {
        "MLFLOW_BACKEND_STORE_URI": database_of(places, settings),
        "MLFLOW_AUTH_CONFIG_PATH": str(secret_files.server_users_file(places)),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret_files.flask_key(places),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",  # it would send requests to any address that a user gives
    }
    return Started(command, environment)


def _scheduler(places: Places, settings: ServiceSettings) -> Started:
    command = [sys.executable, "-m", "pipelines.schedule", "serve", "--store", f"sqlite:///{places.schedules}"]
    environment = _kept(places) | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    if "mlflow" in settings.programs:
        environment["MLFLOW_TRACKING_URI"] = settings.url
    if (Path(environment["HOME"]) / ".ray" / "auth_token").exists():
        environment.setdefault("RAY_AUTH_MODE", "token")
    return Started(command, environment)


def _kept(places: Places) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "LANG": "C.UTF-8"} | secret_files.kept_environment(places)


def _code(program: Program, places: Places) -> list[str]:
    """The files and versions of libraries that a program depends on, beside its command and environment."""
    versions: tuple[str, ...]
    if program == "mlflow":
        versions = ("mlflow", "sqlalchemy", "uvicorn", "flask")
        own = (_PACKAGES / "services" / "mlflow_users.py").read_text()
        about = [secret_files.server_users_file(places).read_text(), own]
    else:
        versions = ("ray", "apscheduler", "sqlalchemy")
        sources = sorted(path for path in _PACKAGES.rglob("*.py") if "services" not in path.parts)
        about = [hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()]
    return [*about, *map(importlib.metadata.version, versions)]
