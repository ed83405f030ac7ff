"""MLflow's database on S3: the same for everybody, never overwritten, whole after a kill between any two steps.

Real SQLite files and a real S3 server; MLflow itself is in ``test_tracking_s3.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from pipelines import s3_requests
from pipelines.s3 import S3Storage
from pipelines.storage import open_storage
from pipelines.tracking_database import DatabaseConflict, WorkingCopy, database_path
from tests.s3 import FaultProxy

pytestmark = pytest.mark.core

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(bucket):
    return open_storage(f"{bucket}/team a/runs")


@contextlib.contextmanager
def brought(runs):
    copy = WorkingCopy(runs)
    copy.bring()
    yield copy
    copy.close()


def note(path: Path, *entries: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS entries (entry TEXT)")
        connection.executemany("INSERT INTO entries VALUES (?)", [(entry * 1000,) for entry in entries])


def entries(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return "".join(row[0][0] for row in connection.execute("SELECT entry FROM entries ORDER BY rowid"))


def in_store(runs, folder: Path) -> str:
    path = folder / "of the store.db"
    path.write_bytes(runs.read("mlflow.db"))
    return entries(path)


def test_what_one_machine_puts_another_brings(runs, machine):
    folder = machine("A")
    with brought(runs) as here:
        assert not here.path.exists()  # MLflow makes it
        assert here.path == folder / "runs" / "s3" / runs.bucket / "team a" / "runs" / "mlflow.db"
        note(here.path, "a", "b")
        here.put()
    machine("B")
    with brought(runs) as there:
        assert entries(there.path) == "ab"
        note(there.path, "c")
        there.put()
    machine("A")
    with brought(runs) as here:
        assert entries(here.path) == "abc"
        assert here.notes == []
    assert [found.key for found in runs.list()] == ["mlflow.db"]
    assert sorted(path.name for path in here.path.parent.iterdir()) == ["mlflow.db", "mlflow.db.json", "mlflow.db.lock"]


def test_an_unchanged_database_is_not_put_again(runs, machine, s3, monkeypatch):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
    with FaultProxy(s3, counted=lambda method, path: method == "PUT") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with brought(runs) as here:
            entries(here.path)
            here.put()
            assert proxy.requests == []
            note(here.path, "b")
            here.put()
            assert len(proxy.requests) == 1
    assert in_store(runs, here.path.parent) == "ab"


def test_somebody_elses_database_is_never_overwritten(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
        machine("B")
        with brought(runs) as there:
            note(there.path, "B")
            there.put()
        note(here.path, "A")
        for _ in range(2):
            with pytest.raises(DatabaseConflict, match="MLFLOW_TRACKING_URI"):
                here.put()
        assert in_store(runs, here.path.parent) == "aB"
    folder = machine("A")
    with brought(runs) as here:
        assert entries(here.path) == "aB"
        (aside,) = here.path.parent.glob("mlflow.db.unsynced-*")
        assert entries(aside) == "aA"
        assert len(here.notes) == 1 and str(aside) in here.notes[0] and folder.name == "A"
        note(here.path, "b")
        here.put()
    assert in_store(runs, here.path.parent) == "aBb"


def test_the_second_of_two_first_databases_is_a_conflict(runs, machine):
    machine("A")
    with brought(runs) as here:
        machine("B")
        with brought(runs) as there:
            note(there.path, "b")
            there.put()
        note(here.path, "a")
        with pytest.raises(DatabaseConflict):
            here.put()
    assert in_store(runs, here.path.parent) == "b"


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_change_between_looking_and_writing_is_a_conflict(runs, machine, monkeypatch, operation):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        if operation == "replace":
            here.put()
            note(here.path, "A")
        original = getattr(S3Storage, operation)

        def late(storage, key, *arguments):
            runs.write(key, b"another")
            return original(storage, key, *arguments)

        monkeypatch.setattr(S3Storage, operation, late)
        with pytest.raises(DatabaseConflict):
            here.put()
    assert runs.read("mlflow.db") == b"another"


def test_the_same_content_under_another_version_is_no_conflict(runs, machine):
    """A bucket that was copied: ETags of uploads in parts differ, for one."""
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
        record = here.path.with_name("mlflow.db.json")
        other = record.read_text().replace('"version": "', '"version": "not ')
        record.write_text(other)
        note(here.path, "b")
        here.put()
        assert in_store(runs, here.path.parent) == "ab"
        record.write_text(other)
    with brought(runs) as here:
        assert entries(here.path) == "ab"
        assert here.notes == []


def test_a_database_removed_from_the_store_is_put_there_again(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
    runs.delete("mlflow.db")
    with brought(runs) as here:
        here.put()
    assert in_store(runs, here.path.parent) == "a"


def test_a_working_copy_in_use_is_left_alone_and_later_brought(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
        machine("B")
        with brought(runs) as there:
            note(there.path, "b")
            there.put()
        machine("A")
        with brought(runs) as second:
            assert entries(second.path) == "a"
    with brought(runs) as here:
        assert entries(here.path) == "ab"


def test_a_child_that_lives_on_does_not_keep_the_working_copy_in_use(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        machine("B")
        with brought(runs) as there:
            note(there.path, "b")
            there.put()
        machine("A")
        with brought(runs) as here:
            assert entries(here.path) == "ab"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_open_connections_see_what_was_brought(runs, machine):
    """MLflow's pages, and engines that MLflow keeps open in this process."""
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
    with contextlib.closing(sqlite3.connect(here.path)) as reader:
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
        machine("B")
        with brought(runs) as there:
            note(there.path, "b", "c")
            there.put()
        machine("A")
        with brought(runs):
            assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (3,)


def test_what_is_put_is_consistent_while_somebody_writes(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        with contextlib.closing(sqlite3.connect(here.path)) as writer:
            writer.execute("PRAGMA cache_size = 1")  # half of the transaction is in the file already
            writer.execute("BEGIN")
            writer.executemany("INSERT INTO entries VALUES (?)", [("b" * 1000,)] * 2)
            here.put()
            writer.rollback()
    assert in_store(runs, here.path.parent) == "a"


def test_a_journal_without_its_database_does_not_spoil_the_one_that_is_brought(runs, machine):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a", "b")
        here.put()
    dying = f"""
import os, signal, sqlite3
connection = sqlite3.connect({str(here.path)!r}, isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
for _ in range(200):
    connection.execute("UPDATE entries SET entry = 'x' || entry")
    connection.execute("INSERT INTO entries VALUES (?)", ("y" * 5000,))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", dying], check=False)
    assert here.path.with_name("mlflow.db-journal").exists()
    here.path.unlink()
    machine("B")
    with brought(runs) as there:
        note(there.path, *"cdefgh")
        there.put()
    machine("A")
    with brought(runs) as here:
        assert entries(here.path) == "abcdefgh"


@pytest.mark.parametrize("place", ["store", "disk"])
def test_a_damaged_database_is_one_clear_line(runs, machine, place):
    machine("A")
    with brought(runs) as here:
        note(here.path, "a")
        here.put()
    if place == "store":
        runs.write("mlflow.db", b"not SQLite")
    else:
        here.path.write_bytes(b"not SQLite" * 1000)
        machine("B")
        with brought(runs) as there:
            note(there.path, "b")
            there.put()
        machine("A")
    named = f"{runs.uri}/mlflow.db: not a SQLite" if place == "store" else str(here.path)
    for _ in range(2):
        with pytest.raises(ConfigError) as failure:
            WorkingCopy(runs).bring()
        assert str(failure.value).startswith(named) and "\n" not in str(failure.value)
    if place == "disk":
        here.path.unlink()
        with brought(runs) as here:
            assert entries(here.path) == "ab"


def test_faults_cost_retries_and_nothing_else(runs, machine, s3, monkeypatch, caplog):
    monkeypatch.setattr(s3_requests, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(s3_requests, "READ_TIMEOUT", 0.5)
    plan = {2: "503", 4: "reset", 6: "stall", 8: "truncate", 9: "corrupt", 10: "500", 13: "reset-upload"}
    with FaultProxy(s3, plan, strict=True) as proxy, caplog.at_level(logging.WARNING, "pipelines.storage"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        machine("A")
        with brought(runs) as here:
            for entry in "abc":
                note(here.path, entry)
                here.put()
        machine("B")
        with brought(runs) as there:
            assert entries(there.path) == "abc"
            note(there.path, "d")
            there.put()
    assert len(proxy.faults) >= 5
    assert len(caplog.messages) >= 5 and all("again in" in message for message in caplog.messages)
    assert in_store(runs, here.path.parent) == "abcd"


DYING = """
import os, pathlib, signal, sqlite3, sys
sys.path.insert(0, {project!r})
from pipelines import tracking_database
from pipelines.s3 import S3Storage
from pipelines.storage import open_storage

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(owner, name, call, when):
    original, calls = getattr(owner, name), []
    def dying(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and when == "before":
            die()
        result = original(*args, **kwargs)
        if len(calls) == call:
            die()
        return result
    setattr(owner, name, dying)

class HalfBackup(sqlite3.Connection):
    def backup(self, target):
        name = target.execute("PRAGMA database_list").fetchone()[2]
        if name.endswith("runs/mlflow.db"):
            target.execute("PRAGMA cache_size = 1")
            super().backup(target, pages=3, progress=die)
        super().backup(target)

def half_backup():
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=HalfBackup, **kwargs)

copy = tracking_database.WorkingCopy(open_storage({uri!r}))
{kill}
copy.bring()
connection = sqlite3.connect(copy.path)
with connection:
    connection.execute("CREATE TABLE IF NOT EXISTS entries (entry TEXT)")
    connection.execute("INSERT INTO entries VALUES (?)", ("z" * 1000,))
connection.close()
copy.put()
"""
DYING_PUT = {
    "before it is sent": 'die_at(S3Storage, "replace", 1, "before")',
    "sent but not recorded": 'die_at(S3Storage, "replace", 1, "after")',
    "before the sending is recorded": 'die_at(tracking_database, "write_text", 1, "before")',
}
DYING_BRING = {
    "before it is read": 'die_at(S3Storage, "read", 1, "before")',
    "own state aside": 'die_at(tracking_database, "write_bytes", 1, "after")',
    "half written": "half_backup()",
    "written but not recorded": 'die_at(tracking_database, "_overwrite", 1, "after")',
}


def run_until_killed(runs, folder: Path, kill: str) -> None:
    script = DYING.format(project=str(PROJECT), uri=runs.uri, kill=kill)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL


def test_killed_at_any_point_of_putting(bucket, machine):
    def case(number: int, kill: str):
        runs = open_storage(f"{bucket}/{number}/runs")
        folder = folders[number]
        run_until_killed(runs, folder, kill)
        return runs, folder

    folders = []
    for number in range(len(DYING_PUT)):
        folders.append(machine(f"A{number}"))
        with brought(open_storage(f"{bucket}/{number}/runs")) as here:
            note(here.path, *"abcdefgh")
            here.put()
    with ThreadPoolExecutor(3) as pool:
        cases = list(pool.map(case, range(len(DYING_PUT)), DYING_PUT.values()))
    for runs, folder in cases:
        machine(folder.name)
        assert in_store(runs, folder) in {"abcdefgh", "abcdefghz"}
        note(database_path(runs), "w")  # by hand, or in MLflow's pages
        with brought(runs) as here:
            assert here.notes == []
            note(here.path, "i")
            here.put()
        assert in_store(runs, folder) == "abcdefghzwi"
        assert [found.key for found in runs.list()] == ["mlflow.db"]


def test_killed_at_any_point_of_bringing(bucket, machine):
    def case(number: int, kill: str):
        runs = open_storage(f"{bucket}/{number}/runs")
        run_until_killed(runs, folders[number], kill)
        return runs, folders[number]

    folders = []
    for number in range(len(DYING_BRING)):
        runs = open_storage(f"{bucket}/{number}/runs")
        folders.append(machine(f"A{number}"))
        with brought(runs) as here:
            note(here.path, *"abcdefgh")
            here.put()
            machine("B")
            with brought(runs) as there:
                note(there.path, *"BCDEFGHI")
                there.put()
            note(here.path, "x")  # and never put
    with ThreadPoolExecutor(3) as pool:
        cases = list(pool.map(case, range(len(DYING_BRING)), DYING_BRING.values()))
    for runs, folder in cases:
        machine(folder.name)
        with brought(runs) as here:
            assert entries(here.path) == "abcdefghBCDEFGHI"
            (aside,) = here.path.parent.glob("mlflow.db.unsynced-*")
            assert entries(aside) == "abcdefghx"
            note(here.path, "i")
            here.put()
        assert in_store(runs, folder) == "abcdefghBCDEFGHIi"


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda part: part not in {".", ".."}), max_size=3))
def test_every_place_has_a_folder_of_its_own_here(parts):
    prefix = "/".join(part.replace("/", "").replace("\0", "") or "x" for part in parts)
    try:
        prefix.encode()
        storage = open_storage(f"s3://bucket/{prefix}")
    except (UnicodeEncodeError, ConfigError):
        return
    path = database_path(storage)
    below = path.relative_to(Path("runs/s3/bucket").resolve())
    assert not set("?%#") & set(below.as_posix())
    assert unquote(below.parent.as_posix().replace("=", "%")) == (storage.prefix or ".")
