"""The runs' SQLite database where everything else is on S3: a working copy here, a snapshot of it there.

SQLite needs a local disk, so MLflow works on ``runs/s3/BUCKET/PREFIX/mlflow.db`` below the current folder:

    database = WorkingCopy(open_storage("s3://bucket/runs"))
    database.bring()      # the store's snapshot, where the working copy is missing or behind it
    ...                   # MLflow writes
    database.put()        # the whole of it as one object, unless another machine has put one there meanwhile
    database.close()

Beside the working copy lie ``mlflow.db.json``, which says what of it the store has, and ``mlflow.db.lock``, held by
all who use it. A kill between any two steps leaves a whole database, here and there, and no doubt about its origin.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from fvae.config import ConfigError, require
from fvae.files import read_json, write_bytes, write_text
from pipelines.storage import Storage

DATABASE = "mlflow.db"

BUSY_SECONDS = 20.0
"""Seconds that another process may keep the database locked; MLflow's transactions are short."""


class DatabaseConflict(Exception):
    """The store holds a database that is not an earlier state of this one. ``str(error)`` is one line."""


def database_path(storage: Storage) -> Path:
    """Where MLflow's SQLite database of these runs lies on this machine: beside them, or the working copy's place."""
    if storage.local_path is not None:
        return storage.local_path.resolve() / DATABASE
    # `=3F` and not `%3F`, because the path in a database's URI is unquoted.
    parts = [quote(part, safe=" +@,:").replace("%", "=") for part in storage.uri.removeprefix("s3://").split("/")]
    return Path("runs", "s3", *parts, DATABASE).resolve()


class WorkingCopy:
    """MLflow's database of a remote storage, as one process uses it. Not for several threads at once."""

    def __init__(self, storage: Storage) -> None:
        self.path = database_path(storage)
        self.notes: list[str] = []
        """How the working copy came about, where the user should know it: a line each."""
        self._storage = storage
        self._uri = f"{storage.uri}/{DATABASE}"
        self._record_path = self.path.with_name(f"{DATABASE}.json")
        self._lock: IO[bytes] | None = None

    @property
    def ready(self) -> bool:
        """Brought, and not closed since."""
        return self._lock is not None

    def bring(self) -> None:
        """Make the working copy what it should be; a second call does nothing.

        The store's snapshot replaces a working copy that is behind it. One with changes that the store never had is
        copied to a file of its own first, and :attr:`notes` says so. While another process uses the working copy, it
        stays as it is.

        Raises ``StorageError`` where the store does not answer, ``ConfigError`` for a damaged database, ``OSError``
        where the folder cannot be written. May be called again then.
        """
        if self._lock is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f"{DATABASE}.lock").open("ab")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process uses it: it stays
                pass
            else:
                self._replace_if_behind()
            fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    def put(self) -> None:
        """Put the database into the store, whole, if it has changed since that was last done.

        Raises ``DatabaseConflict`` where the store has that of another machine by now, which stays as it is; otherwise
        what :meth:`bring` raises.
        """
        if self._lock is None or not self.path.exists():
            return
        content = _snapshot(self.path, self._uri)
        digest = _digest(content)
        record = self._record()
        if digest == record.get("sha256"):
            return
        version = self._stored_version()
        if version is not None and version != record.get("version"):
            self._require_ours(record)
        # A kill after the write leaves a version that the record does not know: its content tells whose it is.
        self._write_record(record | {"sending": digest})
        if version is None:
            written = self._storage.create(DATABASE, content)
        else:
            written = self._storage.replace(DATABASE, content, version) is not None
        if not written:
            self._require_ours({"sending": digest})
        self._write_record({"version": self._stored_version(), "sha256": digest})

    def close(self) -> None:
        """Let other processes replace the working copy from now on."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing is not enough where a forked child has the file too
            self._lock.close()
            self._lock = None

    def _replace_if_behind(self) -> None:
        version = self._stored_version()
        record = self._record()
        here = self.path.exists()
        if version is None:
            self._write_record({})  # nothing of the working copy is there, or not any more
            return
        if here and version == record.get("version"):
            return
        content = self._storage.read(DATABASE)
        require(content.startswith(b"SQLite format 3\0"), f"{self._uri}: not a SQLite database; restore or remove it")
        digest = _digest(content)
        if here:
            mine = _snapshot(self.path, self._uri)
            if digest in {_digest(mine), record.get("sha256"), record.get("sending")}:  # the same, or an earlier state
                self._write_record({"version": version, "sha256": digest})
                return
            if _digest(mine) != record.get("sha256"):
                self._set_aside(mine)
            with _explained(self.path, self._uri):
                _overwrite(self.path, content)
        else:
            for suffix in ("-journal", "-wal", "-shm"):  # of one that was removed by hand: it would be applied to this
                self.path.with_name(DATABASE + suffix).unlink(missing_ok=True)
            write_bytes(self.path, content)
        self._write_record({"version": version, "sha256": digest})

    def _set_aside(self, content: bytes) -> None:
        aside = self.path.with_name(f"{DATABASE}.unsynced-{_digest(content)[:8]}")
        write_bytes(aside, content)
        self.notes.append(
            f"{self._uri} was changed from elsewhere and is used from now on; this folder's own state, which had "
            f"never reached it, is kept in {aside}. Each search's runs are completed when it is started again"
        )

    def _require_ours(self, record: dict[str, Any]) -> None:
        """A version that is not the recorded one may still be ours: put before a kill, or copied with its bucket."""
        if _digest(self._storage.read(DATABASE)) not in {record.get("sha256"), record.get("sending")}:
            raise DatabaseConflict(
                f"another machine has put its own there, which stays as it is; these runs are in {self.path} "
                "alone. For several machines at once, set MLFLOW_TRACKING_URI to an MLflow server"
            )

    def _stored_version(self) -> str | None:
        try:
            return self._storage.info(DATABASE).version
        except FileNotFoundError:
            return None

    def _record(self) -> dict[str, Any]:
        """``version`` and ``sha256`` of the store's object that the working copy comes from.

        ``sending`` is the content that was being put when the process died. Without a record every other content
        counts as another machine's.
        """
        try:
            return read_json(self._record_path)
        except (FileNotFoundError, ConfigError):
            return {}

    def _write_record(self, record: dict[str, Any]) -> None:
        write_text(self._record_path, json.dumps(record))


def _snapshot(path: Path, uri: str) -> bytes:
    """A consistent copy of a database, also while MLflow writes it; the same bytes as long as it is the same.

    Never by reading the file: closing it would drop the locks of this process's other connections to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / DATABASE
        with _explained(path, uri):
            _backup(path, copy)
        return copy.read_bytes()


def _overwrite(path: Path, content: bytes) -> None:
    """Make ``content`` the content of a database in one transaction; connections that are open see it."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / DATABASE
        wanted.write_bytes(content)
        _backup(wanted, path)


def _backup(source: Path, target: Path) -> None:
    # `rw`: a journal that a killed process left is rolled back first, but a missing file is not made.
    opened = sqlite3.connect(f"file:{quote(str(source))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
    with (
        contextlib.closing(opened) as connection,
        contextlib.closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as copy,
    ):
        connection.backup(copy)


@contextlib.contextmanager
def _explained(path: Path, uri: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path}: {error}; if it is damaged, remove it: {uri} is taken then") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
