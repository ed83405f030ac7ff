"""Connections to MLflow: a tracking server, or a database that is made where it is missing; whether it answers.

note = unreachable_for_now(uri)     # a line where it may answer later, such as a server that is down
client = connect(uri)
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fvae.config import ConfigError, one_line, require
from pipelines.cli.redaction import plain_url, without_secrets
from pipelines.tracking.settings import quiet_mlflow, sqlite_path
from pipelines.tracking.tracking_uri import USE, VARIABLE

if TYPE_CHECKING:  # MLflow costs a second and 160 MiB to import
    from mlflow import MlflowClient
    from mlflow.entities import Run

ANSWER_SECONDS = 5.0
"""How long a tracking server may take to answer before it counts as unreachable for now."""


def connect(tracking_uri: str, *, create: bool = True) -> MlflowClient:
    """Return a client of the tracking server or database.

    A missing SQLite file is created, or without ``create`` refused by ``ConfigError``. Raises what MLflow raises.
    """
    path = sqlite_path(tracking_uri)
    if path is not None and not path.exists():
        require(create, f"no runs there: {path} does not exist")
        _create_database(path)
    return _client(tracking_uri)


def _client(tracking_uri: str) -> MlflowClient:
    quiet_mlflow()  # before the import, which reads some of it
    # Ray may have imported MLflow before its variables were set.
    level = logging.getLevelName(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("mlflow").setLevel(level if isinstance(level, int) else logging.CRITICAL)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _create_database(path: Path) -> None:
    """Create MLflow's tables at ``path``, whole or not at all.

    Its migrations recover neither from a kill half-way nor from a second process at the same work.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "mlflow.db"
        _client(f"sqlite:///{built}").search_experiments(max_results=1)
        _put_in_place(built, path)


def _put_in_place(built: Path, path: Path) -> None:
    """Copy ``built`` to ``path`` in one step, unless there is something by now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    beside = Path(name)
    try:
        shutil.copyfile(built, beside)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(beside)  # unlike a rename, it never replaces a database that has runs already
    finally:
        beside.unlink()


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Return the experiment's id; it is created, or restored from MLflow's trash, where needed.

    One that exists keeps its place for artifacts; without an ``artifact_location`` the server chooses it.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(name, artifact_location=artifact_location)
    if experiment.lifecycle_stage == "deleted":  # its name stays taken
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def search_runs(
    client: MlflowClient, experiment_id: str, filter_string: str, *, deleted: bool = False, order_by: str | None = None
) -> Iterator[Run]:
    """Every run of an experiment that passes MLflow's ``filter_string``, page by page; ``deleted``: its trash too."""
    from mlflow.entities import ViewType

    view, token = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, None
    while True:
        order = [order_by] if order_by else None
        page = client.search_runs([experiment_id], filter_string, view, order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def unreachable_for_now(uri: str) -> str | None:
    """Return one line where the tracking server or database does not answer at the moment; None where it does.

    Raises ``ConfigError`` where it answers and cannot serve: a database of another version of MLflow.
    """
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    path = sqlite_path(uri)
    if path is not None and not (path.exists() and path.stat().st_size):
        return None  # it is made
    return _database(uri)


def _server(uri: str) -> str | None:
    """Whether a server answers at all; a refusal is an answer too."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS, stream=True).close()
    except (requests.RequestException, ValueError) as error:
        cause = re.search(r"\[Errno [^\]]*\] [^'\")]*|timed out|[^:]*certificate[^'\")]*", str(error))
        return _not_now(uri, cause[0] if cause else type(error).__name__)
    return None


def _database(uri: str) -> str | None:
    from sqlalchemy import NullPool, create_engine, text
    from sqlalchemy.exc import ArgumentError

    try:
        with create_engine(uri, poolclass=NullPool).connect() as connection:  # MLflow itself tries for minutes
            if uri.startswith("sqlite"):
                connection.execute(text("SELECT count(*) FROM sqlite_master"))  # which a lock refuses
        _client(uri).search_experiments(max_results=1)
    except (ArgumentError, ValueError) as error:
        line = without_secrets(one_line(error))
        raise ConfigError(f"{plain_url(uri)}: no URL of a database ({line[:200]}); {USE}") from error
    except Exception as error:
        line = _cause(error)
        found = re.search(r"found version (\w+)", line)
        if not found and "file is not a database" not in line:
            return _not_now(uri, line)  # locked, out of connections, refused for the moment
        place = plain_url(uri)
        if found and _knows(found[1]):
            raise ConfigError(
                f"{place}: the database of an earlier MLflow; keep a copy of it, then bring it to the version that is "
                f"installed with: {shlex.join([sys.executable, '-m', 'mlflow', 'db', 'upgrade'])} {_in_a_shell(uri)}"
            ) from error
        why = f"schema {found[1]}" if found else line[:200]
        raise ConfigError(
            f"{place}: no database that MLflow {metadata.version('mlflow')}, which is installed, can use ({why}); "
            "install the MLflow that wrote it, or use another place"
        ) from error
    return None


def _cause(error: BaseException) -> str:
    """The database's error on one line; MLflow wraps SQLAlchemy's errors, and SQLAlchemy the driver's."""
    from sqlalchemy.exc import DBAPIError

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) and below not in chain:
        chain.append(below)
    original = next((each.orig for each in chain if isinstance(each, DBAPIError) and each.orig), error)
    return without_secrets(one_line(original))


def _in_a_shell(uri: str) -> str:
    """``uri`` as a word of a shell command, which takes a password from the environment and does not show it."""
    if plain_url(uri) == uri:
        return shlex.quote(uri)
    if os.environ.get(VARIABLE) == uri:
        return f'"${VARIABLE}"'
    return f'"{uri.split("://")[0]}://${{{VARIABLE}#*://}}"'  # the driver was added here


def _knows(schema: str) -> bool:
    """Whether the MLflow that is installed can upgrade from a database's schema."""
    from mlflow.store import db_migrations

    return any(next((Path(folder) / "versions").glob(f"{schema}_*.py"), None) for folder in db_migrations.__path__)


def _not_now(uri: str, why: object) -> str:
    line = without_secrets(one_line(why))[:200]
    return f"{plain_url(uri)} does not answer ({line}); the runs are logged there once it does"
