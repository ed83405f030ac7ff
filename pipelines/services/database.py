"""MLflow's PostgreSQL database: its URI from the option or the environment, and whether it can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fvae.config import ConfigError, one_line, require

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_DRIVER = "postgresql+psycopg2"  # SQLAlchemy's default is another, which is not installed
_PATIENCE = 10
"""Seconds until the database must answer."""


def asked_database(option: str | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The database that ``--database`` or MLflow's own variable names: its URI without and with its password.

    ``None`` where neither does. Raises ``ConfigError`` for a URI that cannot be used.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    name = "--database" if option is not None else "MLFLOW_BACKEND_STORE_URI"
    text = option if option is not None else environment.get("MLFLOW_BACKEND_STORE_URI")
    if text is None:
        return None
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError(f"{name}: not a URI; use postgresql://USER@HOST/NAME") from None
    kind = url.drivername.partition("+")[0]
    require(
        kind in {"postgresql", "postgres"},
        f"{name}={_shown(url)}: must be postgresql://USER@HOST/NAME; leave it out for SQLite",
    )
    require(bool(url.database), f"{name}={_shown(url)}: names no database; use postgresql://USER@HOST/NAME")
    secrets = [key for key in url.query if "password" in key.lower()]
    require(not secrets, f"{name}: holds {', '.join(secrets)}; keep passwords in ~/.pgpass")
    require(
        option is None or url.password is None,
        f"--database={_shown(url)}: others can read a password on a command line; put it into ~/.pgpass, "
        "or the whole URI into MLFLOW_BACKEND_STORE_URI",
    )
    url = url.set(drivername=_DRIVER)
    return _shown(url), url.render_as_string(hide_password=False)


def _shown(url: URL) -> str:
    """``url`` with stars in place of its password."""
    return url.render_as_string(hide_password=True)


def require_reachable(uri: str) -> None:
    """Raise ``ConfigError`` unless this user can connect to the PostgreSQL database ``uri``."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(uri, connect_args={"connect_timeout": _PATIENCE})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        cause = one_line(getattr(error, "orig", None) or error)
        raise ConfigError(f"--database={_shown(make_url(uri))}: cannot be used ({cause})") from error
    finally:
        engine.dispose()
