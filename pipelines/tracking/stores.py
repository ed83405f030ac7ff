"""Which MLflow keeps the runs, and whether it can: what can never work is refused before any work is done.

uri = tracking_uri(storage)                  # MLFLOW_TRACKING_URI, or the database beside the runs
note = unreachable_for_now(uri)              # a line where it may answer later, such as a server that is down
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from fvae.config import ConfigError, one_line, require
from pipelines.cli.redaction import plain_url, without_secrets
from pipelines.storage import Storage
from pipelines.tracking.settings import default_tracking_uri, quiet_mlflow

VARIABLE = "MLFLOW_TRACKING_URI"
ANSWER_SECONDS = 5.0
"""How long a tracking server may take to answer before it counts as unreachable for now."""

_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg", "pg8000", "asyncpg"),
    "mysql": ("MySQLdb", "pymysql", "mysql.connector"),
    "mssql": ("pyodbc", "pymssql"),
}
"""Of each kind of database, the modules that reach it; the first is preferred where the URI names none."""
_NAMES = {"MySQLdb": "mysqldb", "mysql.connector": "mysqlconnector"}
"""What SQLAlchemy calls a driver whose module has another name."""
_USE = "use the URL of an MLflow server, a database such as sqlite:////folder/mlflow.db, or unset it"
_ENCODE = "in a user and a password, write / as %2F, @ as %40 and : as %3A"


def tracking_uri(storage: Storage) -> str:
    """``MLFLOW_TRACKING_URI`` where set, with a database driver that is installed; else the database of ``storage``.

    Raises ``ConfigError`` for what can never work: MLflow's file store, a service that this software does not know,
    a database whose driver is missing.
    """
    uri = os.environ.get(VARIABLE)
    return _checked(uri) if uri else default_tracking_uri(storage)


def unreachable_for_now(uri: str) -> str | None:
    """One line where the tracking server or database does not answer at the moment; None where it does.

    Raises ``ConfigError`` where it answers and cannot serve: a database of another version of MLflow.
    """
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        if not path.exists() or not path.stat().st_size:
            return None  # it is made
    return _database(uri)


def _checked(uri: str) -> str:
    shown = f"{VARIABLE}={plain_url(uri)}"
    scheme = urlsplit(uri).scheme
    kind, _, driver = scheme.partition("+")
    if scheme in {"", "file"} and "databricks" not in uri:
        raise ConfigError(f"{shown}: a folder, and MLflow no longer keeps runs in folders; {_USE}")
    if scheme in {"http", "https"}:
        require(bool(urlsplit(uri).hostname), f"{shown}: names no host; use http://HOST:PORT")
        require(_has_port_or_none(uri), f"{shown}: has no number as its port; {_ENCODE}")
        return f"{scheme}{uri[len(scheme) :]}"
    if kind == "sqlite":
        right = uri.startswith("sqlite:///") and len(uri) > len("sqlite:///")
        require(right, f"{shown}: names no file; use sqlite:////folder/mlflow.db or sqlite:///relative/mlflow.db")
        return uri
    require(kind in {*_DRIVERS, "postgres"} and "://" in uri, f"{shown}: not a place that runs can be kept in; {_USE}")
    require("@" not in _host(uri), f"{shown}: has more than one @ before its host; {_ENCODE}")
    kind = "postgresql" if kind == "postgres" else kind  # which SQLAlchemy no longer takes
    if driver:
        module = {name: module for module, name in _NAMES.items()}.get(driver, driver)
        require(_installed(module), f"{shown}: the driver {driver} is not installed; {_choices(kind)}")
        return uri
    found = next((module for module in _DRIVERS[kind] if _installed(module)), None)
    if found is None:
        raise ConfigError(f"{shown}: no driver for {kind} is installed; {_choices(kind)}")
    return f"{kind}+{_NAMES.get(found, found)}://{uri.split('://', 1)[1]}"


def _has_port_or_none(uri: str) -> bool:
    try:
        urlsplit(uri).port  # noqa: B018 - the property raises
    except ValueError:  # such as the first half of a password that contains "/"
        return False
    return True


def _host(uri: str) -> str:
    """What stands before the database, less the user and the password: drivers print it in their errors."""
    return re.sub(r"^[^:/@]*(?::[^@]*)?@", "", uri.split("://", 1)[1]).partition("/")[0]


def _choices(kind: str) -> str:
    packages = {"postgresql": "psycopg2-binary", "mysql": "pymysql", "mssql": "pyodbc"}
    return f"install one (pip install {packages[kind]})"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def _server(uri: str) -> str | None:
    """Any answer will do, a refusal too."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS, stream=True).close()
    except (requests.RequestException, ValueError) as error:
        cause = re.search(r"\[Errno [^\]]*\] [^'\")]*|timed out|[^:]*certificate[^'\")]*", str(error))
        return _not_now(uri, cause[0] if cause else type(error).__name__)
    return None


def _database(uri: str) -> str | None:
    quiet_mlflow()  # before the import, which reads some of it
    from mlflow import MlflowClient
    from sqlalchemy import NullPool, create_engine, text
    from sqlalchemy.exc import ArgumentError

    try:
        with create_engine(uri, poolclass=NullPool).connect() as connection:  # MLflow itself tries for minutes
            if uri.startswith("sqlite"):
                connection.execute(text("SELECT count(*) FROM sqlite_master"))  # which a lock refuses
        MlflowClient(uri).search_experiments(max_results=1)
    except (ArgumentError, ValueError) as error:
        line = without_secrets(one_line(error))
        raise ConfigError(f"{plain_url(uri)}: no URL of a database ({line[:200]}); {_USE}") from error
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
    """What the database says, on one line; MLflow wraps SQLAlchemy's errors, and SQLAlchemy the driver's."""
    from sqlalchemy.exc import DBAPIError

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) and below not in chain:
        chain.append(below)
    original = next((each.orig for each in chain if isinstance(each, DBAPIError) and each.orig), error)
    return without_secrets(one_line(original))


def _in_a_shell(uri: str) -> str:
    """``uri`` as a word of a shell command, which takes what must not be shown from the environment."""
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
