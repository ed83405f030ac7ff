"""Addresses of artifacts in MLflow's SQLite database, corrected after its folder was copied, moved or synchronised.

MLflow stores absolute addresses. Those of a database that lies beside its runs are relative in truth: they lead to
``mlartifacts`` in the same folder or prefix. :func:`correct_artifact_locations` rewrites the addresses of another place
to this one, so that a copy never reads from or writes to what it was copied from, and a moved folder finds its
artifacts and models.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fvae.config import ConfigError
from pipelines.storage import Storage, open_storage
from pipelines.tracking.database import BUSY_SECONDS
from pipelines.tracking.settings import artifact_place, default_tracking_uri, sqlite_path

_FOLDER = "mlartifacts"
_EXPERIMENT = re.compile(rf"(?:file:|s3:|/).*/{_FOLDER}()")
_RUN_OR_MODEL = re.compile(rf"(?:file:|s3:|/).*/{_FOLDER}(/(?:models/m-)?[0-9a-f]{{32}}/.*)")
_COLUMNS = (
    ("experiments", "artifact_location", _EXPERIMENT),
    ("runs", "artifact_uri", _RUN_OR_MODEL),
    ("logged_models", "artifact_location", _RUN_OR_MODEL),
    ("model_versions", "source", _RUN_OR_MODEL),
    ("model_versions", "storage_location", _RUN_OR_MODEL),
)


def correct_artifact_locations(tracking_uri: str, storage: Storage) -> None:
    """Let every address in the database of ``tracking_uri`` lead to where its artifacts are now.

    In the database of ``storage`` itself that is beside it, without exception. Another SQLite database may serve
    several storages: there only what lies beside it now, and was written elsewhere, is rewritten. A tracking server,
    or a database that does not exist yet, stays as it is.

    Raises ``ConfigError`` where the addresses are of another place and the database cannot be written.
    """
    path = sqlite_path(tracking_uri)
    if path is None or not path.exists():
        return
    path = path.resolve()
    own = f"sqlite:///{path}" == default_tracking_uri(storage)
    place = artifact_place(storage) if own else artifact_place(open_storage(path.parent))
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            _rewrite(database, place, only_present=not own)
    except sqlite3.OperationalError as error:
        raise ConfigError(
            f"{path}: written in another place, whose artifacts it still names, and cannot be changed ({error}); "
            "copy the whole folder to where it can be written, and use the copy"
        ) from error
    except sqlite3.DatabaseError:
        return  # no database, or damaged: MLflow says so


def _rewrite(database: sqlite3.Connection, place: str, *, only_present: bool) -> None:
    """In one transaction, which is only begun where there is something to rewrite."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    changes = []
    for table, column, pattern in _COLUMNS:
        if table not in tables or (only_present and table == "experiments"):
            continue
        elsewhere = f"SELECT rowid, {column} FROM {table} WHERE {column} <> ? AND substr({column}, 1, ?) <> ?"
        for row, address in database.execute(elsewhere, (place, len(place) + 1, f"{place}/")).fetchall():
            found = pattern.fullmatch(address)
            if found and (not only_present or _present(place + found[1])):
                changes.append((f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (place + found[1], row)))
    if not changes:
        return
    database.execute("BEGIN IMMEDIATE")
    for statement, values in changes:
        database.execute(statement, values)
    database.execute("COMMIT")


def _present(address: str) -> bool:
    return Path(unquote(urlsplit(address).path)).exists()
