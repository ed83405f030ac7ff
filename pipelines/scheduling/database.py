"""The database of schedules: SQLite or PostgreSQL, given by its URI.

APScheduler's own SQLAlchemy job store is not used: it pickles jobs, so that every user who can write to it could run
code here; it records no outcome of a slot; and two schedulers on one store both run every slot. So the tables here are
what lasts, and APScheduler computes when a slot is due (``cron.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError

from fvae.config import ConfigError, one_line, require
from pipelines.scheduling.runs import ACTIVE
from pipelines.storage import StorageError

ANSWER_SECONDS = 10
"""Time-out in seconds of a connection to a server, and of a SQLite file's lock."""

_tables = MetaData()

schedules = Table(
    "schedules",
    _tables,
    Column("name", String, primary_key=True),
    Column("job", JSON, nullable=False),  # Schedule.to_dict
    Column("paused", Boolean, nullable=False),
    Column("since", Float, nullable=False),  # slots up to this moment do not count: added, or resumed
)
runs = Table(
    "runs",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("schedule", String, nullable=False),
    Column("slot", String, nullable=False),
    Column("job", JSON, nullable=False),
    Column("exclusive", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("attempt", Integer, nullable=False, default=0),
    Column("submission_id", String, nullable=False, default=""),
    Column("reason", String, nullable=False, default=""),
    Column("claimed_at", Float, nullable=False),
    Column("started_at", Float),
    Column("next_at", Float),
    Column("ended_at", Float),
    Column("hook_due", Boolean, nullable=False, default=False),  # the failure hook is still to be run
    Column("hook_at", Float),  # when a process started to run it
    UniqueConstraint("schedule", "slot"),  # the process that records a slot first has it
)
Index(  # one run of a model at a time, by all processes
    "one_active_run",
    runs.c.exclusive,
    unique=True,
    sqlite_where=runs.c.state.in_(ACTIVE),
    postgresql_where=runs.c.state.in_(ACTIVE),
)
events = Table(  # every step of every run; rows are only ever added
    "events",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("run", ForeignKey("runs.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("state", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", String, nullable=False),
)


class Database:
    """An open database of schedules.

    Args:
        uri: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.
        create: whether a SQLite file may be missing, and is made then (readable by its owner alone: it may hold the
            address of a hook).

    Raises ``ConfigError`` for a URI that cannot be used, ``StorageError`` for a database that cannot be reached.
    """

    def __init__(self, uri: str, *, create: bool) -> None:
        url = _parse(uri)
        self.shown = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite":
            _prepare_file(self.shown, Path(str(url.database)), create)
        self._engine = _engine(url)
        with self.transaction() as connection:
            if url.get_backend_name() == "postgresql":  # two that begin at once would both make the tables
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('schedules'))"))
            _tables.create_all(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction around the block. Raises ``IntegrityError`` where another process has taken a unique place."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except (OperationalError, InterfaceError) as error:
            raise StorageError(f"--store={self.shown}: cannot be used ({one_line(error.orig, 300)})") from error
        except DBAPIError as error:
            raise ConfigError(
                f"--store={self.shown}: no database of schedules ({one_line(error.orig, 300)})"
            ) from error

    def close(self) -> None:
        """End its connections."""
        self._engine.dispose()


def _parse(uri: str) -> URL:
    try:
        url = make_url(uri)
    except ArgumentError:
        raise ConfigError(f"--store={uri}: must be sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    shown = url.render_as_string(hide_password=True)
    backend = url.get_backend_name()
    require(
        backend in ("sqlite", "postgresql"), f"--store={shown}: must be sqlite:///PATH or postgresql://USER@HOST/NAME"
    )
    require(
        backend != "sqlite" or url.database not in (None, "", ":memory:"),
        f"--store={shown}: must name a file, as in sqlite:///runs/schedules.db",
    )
    require(
        url.password is None and "password" not in url.query,
        "--store: every user of this machine can read a command line; put the password into ~/.pgpass, or PGPASSWORD",
    )
    return url


def _prepare_file(shown: str, path: Path, create: bool) -> None:
    require(
        create or path.exists(), f"--store={shown}: no schedules there yet; python -m pipelines.schedule add makes one"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"--store={shown}: cannot be made ({error.strerror})") from error


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg2")  # the installed driver
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": ANSWER_SECONDS})
    engine = create_engine(url, connect_args={"timeout": ANSWER_SECONDS})

    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # Python's driver would begin transactions too late, and not all of them
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # a transaction that reads and then writes must not be overtaken

    return engine
