"""MLflow's running server: whether it answers, and the password of its user admin."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import requests

from fvae.config import one_line
from pipelines.services.paths import Places
from pipelines.services.secret_files import ADMIN, server_users_file
from pipelines.storage import StorageError

_PATIENCE = 10.0
"""Seconds until it must answer."""


def answers(url: str) -> bool:
    """Whether the server at ``url`` reports that it is healthy."""
    with contextlib.suppress(requests.RequestException):
        return _get(f"{url}/health").ok
    return False


def knows_admin(url: str, password: str) -> bool:
    """Whether ``password`` is that of the server's user admin. Raises ``StorageError`` where it does not answer."""
    try:
        answer = _get(
            f"{url}/api/2.0/mlflow/experiments/search?max_results=1", auth=(ADMIN.encode(), password.encode())
        )
        if answer.status_code == requests.codes.unauthorized:
            return False
        answer.raise_for_status()
    except requests.RequestException as error:
        raise StorageError(f"{url}: MLflow does not answer as it should ({one_line(error)})") from error
    return True


def set_admin_password(places: Places, database: str, password: str) -> None:
    """Give the user admin another password, where MLflow has made this user already."""
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(server_users_file(places))  # the import reads it
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(database)
    if store.has_user(ADMIN):
        store.update_user(ADMIN, password=password)
    store.engine.dispose()


def _get(url: str, **options: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # the server is on this machine: no proxy, and no password from ~/.netrc
        return session.get(url, timeout=_PATIENCE, **options)
