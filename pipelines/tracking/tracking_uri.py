"""``MLFLOW_TRACKING_URI``: which MLflow keeps the runs. What can never work is refused before any work is done."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from fvae.config import ConfigError, require
from pipelines.cli.redaction import plain_url
from pipelines.storage import Storage
from pipelines.tracking.settings import default_tracking_uri

VARIABLE = "MLFLOW_TRACKING_URI"
_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg", "pg8000", "asyncpg"),
    "mysql": ("MySQLdb", "pymysql", "mysql.connector"),
    "mssql": ("pyodbc", "pymssql"),
}
"""The modules that reach each kind of database; the first is preferred where the URI names none."""
_NAMES = {"MySQLdb": "mysqldb", "mysql.connector": "mysqlconnector"}
"""SQLAlchemy's names of drivers whose modules have other names."""
USE = "use the URL of an MLflow server, a database such as sqlite:////folder/mlflow.db, or unset it"
_ENCODE = "in a user and a password, write / as %2F, @ as %40 and : as %3A"


def tracking_uri(storage: Storage) -> str:
    """Return ``MLFLOW_TRACKING_URI`` where set, with an installed database driver; else the database of ``storage``.

    Raises ``ConfigError`` for what can never work: MLflow's file store, a service that this software does not know,
    a database whose driver is missing.
    """
    uri = os.environ.get(VARIABLE)
    return _checked(uri) if uri else default_tracking_uri(storage)


def _checked(uri: str) -> str:
    shown = f"{VARIABLE}={plain_url(uri)}"
    scheme = urlsplit(uri).scheme
    kind, _, driver = scheme.partition("+")
    if scheme in {"", "file"} and "databricks" not in uri:
        raise ConfigError(f"{shown}: a folder, and MLflow no longer keeps runs in folders; {USE}")
    if scheme in {"http", "https"}:
        require(bool(urlsplit(uri).hostname), f"{shown}: names no host; use http://HOST:PORT")
        require(_has_port_or_none(uri), f"{shown}: has no number as its port; {_ENCODE}")
        return f"{scheme}{uri[len(scheme) :]}"
    if kind == "sqlite":
        right = uri.startswith("sqlite:///") and len(uri) > len("sqlite:///")
        require(right, f"{shown}: names no file; use sqlite:////folder/mlflow.db or sqlite:///relative/mlflow.db")
        return uri
    require(kind in {*_DRIVERS, "postgres"} and "://" in uri, f"{shown}: not a place that runs can be kept in; {USE}")
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
    """The host and the port, without the user and the password: drivers print them in their errors."""
    return re.sub(r"^[^:/@]*(?::[^@]*)?@", "", uri.split("://", 1)[1]).partition("/")[0]


def _choices(kind: str) -> str:
    packages = {"postgresql": "psycopg2-binary", "mysql": "pymysql", "mssql": "pyodbc"}
    return f"install one (pip install {packages[kind]})"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False
