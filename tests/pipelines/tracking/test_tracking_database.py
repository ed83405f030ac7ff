"""MLflow's database beside a bucket: the same for all machines, never overwritten, whole after a kill between steps.

Real SQLite files and a real S3 server; at the end with MLflow and a search on top.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ConfigError
from pipelines.storage import open_storage
from pipelines.storage.s3 import S3Storage
from pipelines.tracking import background as background_tracker
from pipelines.tracking import database as tracking_database
from pipelines.tracking.database import DatabaseConflict, WorkingCopy, database_path
from pipelines.tracking.tracker import default_tracking_uri
from tests.pipelines.dying import Died, die_at
from tests.pipelines.tracking.tracked import Runs, ended
from tests.s3 import FaultProxy, only, set_constants

pytestmark = pytest.mark.core


class Database:
    """A database beside a bucket, as machines use it. Its content is one letter a row."""

    def __init__(self, location: str, machine: Callable[[str], Path]) -> None:
        self.storage, self.machine = open_storage(location), machine

    def on(self, machine: str) -> WorkingCopy:
        """The working copy of a command on this machine, brought; to be closed."""
        self.machine(machine)
        copy = WorkingCopy(self.storage)
        copy.bring()
        return copy

    def put(self, machine: str, letters: str) -> WorkingCopy:
        """A whole command on this machine, which writes ``letters``."""
        with contextlib.closing(self.on(machine)) as copy:
            note(copy.path, letters)
            copy.put()
        return copy

    def read(self, machine: str) -> str:
        """What a command on this machine finds."""
        with contextlib.closing(self.on(machine)) as copy:
            return letters(copy.path)

    @property
    def stored(self) -> str:
        path = Path("of the store.db")
        path.write_bytes(self.storage.read("mlflow.db"))
        return letters(path)


def note(path: Path, letters: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS entries (entry TEXT)")
        connection.executemany("INSERT INTO entries VALUES (?)", [(letter * 1000,) for letter in letters])


def letters(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return "".join(row[0][0] for row in connection.execute("SELECT entry FROM entries ORDER BY rowid"))


@contextlib.contextmanager
def half_a_transaction(path: Path) -> Iterator[None]:
    """A part of it is in the file already, and its journal beside it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        for _ in range(200):
            writer.execute("UPDATE entries SET entry = 'x' || entry")
            writer.execute("INSERT INTO entries VALUES (?)", ("y" * 5000,))
        yield
        writer.execute("ROLLBACK")


@pytest.fixture
def database(bucket: str, machine: Callable[[str], Path]) -> Database:
    return Database(f"{bucket}/team a/runs", machine)


def test_what_one_machine_puts_another_brings(database: Database, tmp_path: Path) -> None:
    bucket = database.storage.uri.split("/")[2]
    with contextlib.closing(database.on("A")) as here:
        assert not here.path.exists()  # MLflow makes it
        assert here.path == tmp_path / "A/runs/s3" / bucket / "team a/runs/mlflow.db"
        note(here.path, "ab")
        here.put()
    assert database.read("B") == "ab"
    database.put("B", "c")
    assert database.read("A") == "abc"
    assert database.on("A").notes == []
    assert [found.key for found in database.storage.list()] == ["mlflow.db"]
    assert sorted(path.name for path in here.path.parent.iterdir()) == ["mlflow.db", "mlflow.db.json", "mlflow.db.lock"]


def test_an_unchanged_database_is_not_put_again(database: Database, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database.put("A", "a")
    with FaultProxy(s3, counted=only("PUT")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        database.put("A", "")
        assert proxy.requests == []
        database.put("A", "b")
        assert len(proxy.requests) == 1
    assert database.stored == "ab"


def test_another_machines_database_is_never_overwritten(database: Database) -> None:
    with contextlib.closing(database.on("A")) as here:
        note(here.path, "a")
        here.put()
        database.put("B", "B")
        note(here.path, "A")
        for _ in range(2):
            with pytest.raises(DatabaseConflict, match="MLFLOW_TRACKING_URI"):
                here.put()
        assert database.stored == "aB"
    with contextlib.closing(database.on("A")) as here:
        assert letters(here.path) == "aB"
        (aside,) = here.path.parent.glob("mlflow.db.unsynced-*")
        assert letters(aside) == "aA"
        assert len(here.notes) == 1 and str(aside) in here.notes[0]
        note(here.path, "b")
        here.put()
    assert database.stored == "aBb"


def test_the_second_of_two_first_databases_is_a_conflict(database: Database) -> None:
    with contextlib.closing(database.on("A")) as here:
        database.put("B", "b")
        note(here.path, "a")
        with pytest.raises(DatabaseConflict):
            here.put()
    assert database.stored == "b"


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_change_between_looking_and_writing_is_a_conflict(
    database: Database, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    if operation == "replace":
        database.put("A", "a")
    original = getattr(S3Storage, operation)

    def late(storage: S3Storage, key: str, *arguments: Any) -> Any:
        database.storage.write(key, b"another")
        return original(storage, key, *arguments)

    monkeypatch.setattr(S3Storage, operation, late)
    with pytest.raises(DatabaseConflict):
        database.put("A", "A")
    assert database.storage.read("mlflow.db") == b"another"


def test_the_same_content_under_another_version_is_no_conflict(database: Database) -> None:
    """A bucket that was copied: ETags of uploads in parts differ, for one."""
    with contextlib.closing(database.on("A")) as here:
        note(here.path, "a")
        here.put()
        record = here.path.with_name("mlflow.db.json")
        other = record.read_text().replace('"version": "', '"version": "not ')
        record.write_text(other)
        note(here.path, "b")
        here.put()
        assert database.stored == "ab"
        record.write_text(other)
    with contextlib.closing(database.on("A")) as here:
        assert (letters(here.path), here.notes) == ("ab", [])


def test_a_database_removed_from_the_store_is_put_there_again(database: Database) -> None:
    database.put("A", "a")
    database.storage.delete("mlflow.db")
    database.put("A", "")
    assert database.stored == "a"


def test_a_working_copy_in_use_is_left_alone_and_later_brought(database: Database) -> None:
    """A child that lives on, with all that was open in its parent, does not use it."""
    here = database.on("A")
    note(here.path, "a")
    here.put()
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        database.put("B", "b")
        assert database.read("A") == "a"
        here.close()
        assert database.read("A") == "ab"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_open_connections_see_what_was_brought(database: Database) -> None:
    """MLflow's pages, and engines that MLflow keeps open in this process."""
    here = database.put("A", "a")
    with contextlib.closing(sqlite3.connect(here.path)) as reader:
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
        database.put("B", "bc")
        database.on("A").close()
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (3,)


def test_what_is_put_is_consistent_while_mlflow_writes(database: Database) -> None:
    with contextlib.closing(database.on("A")) as here:
        note(here.path, "a")
        with contextlib.closing(sqlite3.connect(here.path)) as writer:
            writer.execute("BEGIN")
            writer.executemany("INSERT INTO entries VALUES (?)", [("b" * 1000,)] * 2)
            here.put()
            writer.rollback()
    assert database.stored == "a"


def test_a_journal_without_its_database_does_not_damage_the_one_that_is_brought(database: Database) -> None:
    here = database.put("A", "ab")
    journal = here.path.with_name("mlflow.db-journal")
    with half_a_transaction(here.path):
        left = journal.read_bytes()  # by a process that is killed now
    assert left.startswith(bytes.fromhex("d9d505f920a163d7"))  # SQLite would apply it
    journal.write_bytes(left)
    here.path.unlink()
    database.put("B", "cdefgh")
    assert database.read("A") == "abcdefgh"


@pytest.mark.parametrize("place", ["store", "disk"])
def test_a_damaged_database_is_one_clear_line(database: Database, place: str) -> None:
    here = database.put("A", "a")
    if place == "store":
        database.storage.write("mlflow.db", b"not SQLite")
    else:
        here.path.write_bytes(b"not SQLite" * 1000)
        database.put("B", "b")
    named = f"{database.storage.uri}/mlflow.db: not a SQLite" if place == "store" else str(here.path)
    for _ in range(2):
        with pytest.raises(ConfigError) as failure:
            database.on("A")
        assert str(failure.value).startswith(named) and "\n" not in str(failure.value)
    if place == "disk":
        here.path.unlink()
        assert database.read("A") == "ab"


# --- deaths ------------------------------------------------------------------------------------------------


class Killed:
    """The death of a process: what it has on disk at that moment is there afterwards, whatever is cleaned up."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._aside = folder, folder.with_name("aside")

    def __call__(self, *_: object) -> None:
        shutil.copytree(self._folder, self._aside)
        raise Died

    def take_effect(self) -> None:
        shutil.rmtree(self._folder)
        self._aside.rename(self._folder)


def put_until_death(database: Database, point: tuple[Any, str, Any] | None) -> None:
    """``point``: of what, which function, and whether before or after it. ``None``: half-way in the working copy."""
    killed, connect = Killed(database.machine("A")), sqlite3.connect

    class HalfBackup(sqlite3.Connection):
        def backup(self, target: sqlite3.Connection, **options: Any) -> None:
            if target.execute("PRAGMA database_list").fetchone()[2].endswith("runs/mlflow.db"):
                target.execute("PRAGMA cache_size = 1")
                options |= {"pages": 3, "progress": killed}
            super().backup(target, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        if point:
            die_at(patch, *point, killed)
        else:
            patch.setattr(sqlite3, "connect", lambda *to, **options: connect(*to, factory=HalfBackup, **options))
        database.put("A", "z")
    killed.take_effect()
    database.machine("A")


PUTTING = {
    "before it is sent": (S3Storage, "replace", "before"),
    "sent but not recorded": (S3Storage, "replace", "after"),
    "before the sending is recorded": (tracking_database, "write_text", "before"),
}
BRINGING = {
    "before it is read": (S3Storage, "read", "before"),
    "own state kept": (tracking_database, "write_bytes", "after"),
    "half written": None,
    "written but not recorded": (tracking_database, "_overwrite", "after"),
}


@pytest.mark.parametrize("point", PUTTING)
def test_a_death_at_any_point_of_putting(database: Database, point: str) -> None:
    database.put("A", "abcdefgh")
    put_until_death(database, PUTTING[point])
    assert database.stored == ("abcdefghz" if point == "sent but not recorded" else "abcdefgh")
    note(database_path(database.storage), "w")  # by hand, or in MLflow's pages
    assert database.put("A", "i").notes == []
    assert database.stored == "abcdefghzwi"
    assert [found.key for found in database.storage.list()] == ["mlflow.db"]


@pytest.mark.parametrize("point", BRINGING)
def test_a_death_at_any_point_of_bringing(database: Database, point: str) -> None:
    with contextlib.closing(database.on("A")) as here:
        note(here.path, "abcdefgh")
        here.put()
        database.put("B", "BCDEFGHI")
        note(here.path, "x")  # and never put
    put_until_death(database, BRINGING[point])
    assert here.path.with_name("mlflow.db-journal").exists() == (point == "half written")
    assert database.read("A") == "abcdefghBCDEFGHI"
    (aside,) = here.path.parent.glob("mlflow.db.unsynced-*")
    assert letters(aside) == "abcdefghx"
    database.put("A", "i")
    assert database.stored == "abcdefghBCDEFGHIi"


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda part: part not in {".", ".."}), max_size=3))
def test_every_place_has_a_folder_of_its_own_here(parts: list[str]) -> None:
    prefix = "/".join(part.replace("/", "").replace("\0", "") or "x" for part in parts)
    try:
        prefix.encode()
        storage = open_storage(f"s3://bucket/{prefix}")
    except (UnicodeEncodeError, ConfigError):
        return
    path = database_path(storage)
    below = path.relative_to(Path("runs/s3/bucket").resolve())
    assert not set("?%#") & set(below.as_posix())
    assert unquote(below.parent.as_posix().replace("=", "%")) == (
        storage.uri.removeprefix("s3://bucket").strip("/") or "."
    )


# --- with MLflow and a search on top -------------------------------------------------------------------------


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Runs:
    return Runs.of_kind("S3", request)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Runs:
    return Runs.of_kind("folder", request)


def artifacts(runs: Runs) -> list[str]:
    """What MLflow has in the bucket, without the ids of its runs."""
    return sorted(info.key.partition("/artifacts/")[2] for info in runs.storage.list("mlartifacts"))


def test_the_same_search_after_every_kind_of_fault(
    runs: Runs,
    folder: Runs,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Faults at fixed numbers among the requests for artifacts and the database; every retry is a log line."""
    set_constants({"FIRST_WAIT": 0.01, "READ_TIMEOUT": 0.5}, monkeypatch.setattr)
    plan = {1: "500", 3: "503", 6: "reset", 8: "truncate", 10: "stall", 12: "reset-upload", 15: "429", 17: "reset"}
    with (
        FaultProxy(s3, plan, counted=lambda _, path: "/ml" in path, strict=True) as proxy,
        caplog.at_level(logging.WARNING, "pipelines.storage"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        runs.whole_search()
        assert {fault.fault for fault in proxy.faults} == set(plan.values())
        proxy.reset({2: "truncate", 3: "corrupt"})  # of the database, which another machine brings
        runs.machine("B")
        runs.whole_search()
        assert len(proxy.faults) == 2
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    retries = [message for message in caplog.messages if "again in" in message]
    assert len(retries) >= len(plan) + 2
    assert all(runs.storage.uri in message for message in retries)
    folder.whole_search()
    assert runs.content() == folder.content()
    assert artifacts(runs) == artifacts(folder)


def test_two_machines_at_once_are_reported_and_overwrite_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", (0.01,))
    storage = runs.storage
    runs.whole_search()
    here = runs.search_tracker()
    assert here.flush()
    runs.machine("B")
    ended(runs.search_tracker(search_name="digits-1"))
    stored = storage.info("mlflow.db").version
    here.record_trial(runs.trial(3, "complete", 2))
    here.finish()
    here.close()
    (problem,) = here.problems
    assert problem.startswith(f"MLflow: mlflow.db not kept in {storage.uri}: another machine")
    assert "MLFLOW_TRACKING_URI" in problem
    assert storage.info("mlflow.db").version == stored

    runs.machine("A")
    again = runs.search_tracker()
    for snapshot in [*runs.trials(), runs.trial(3, "complete", 2)]:
        again.record_trial(snapshot)
    again.finish()
    again.close()
    (note,) = again.problems
    assert "kept in" in note and "unsynced" in note
    assert set(runs.held) == {"digits-0", "digits-1", "0000-fvae", "0001-flow", "0002-vae", "0003-fvae"}
    assert storage.info("mlflow.db").version != stored


def test_the_database_is_kept_while_the_search_runs(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is lost costs the last few minutes of curves, not the runs."""
    monkeypatch.setattr(background_tracker, "_CLOSING_RETRIES", ())
    tracker = runs.search_tracker()
    assert tracker.flush()
    first = runs.storage.info("mlflow.db").version
    tracker.record_trial(runs.trial(0, "running", 2))
    assert tracker.flush()
    assert runs.storage.info("mlflow.db").version == first  # not in every round
    monkeypatch.setattr(background_tracker, "_SNAPSHOT_SECONDS", 0.0)
    assert tracker.flush()
    assert runs.storage.info("mlflow.db").version != first
    ids = runs.ids
    runs.machine("B")
    other = runs.search_tracker()
    assert other.flush()
    assert runs.ids == ids
    other.close()
    runs.machine("A")
    tracker.close()


def test_artifacts_on_disk_go_to_s3_and_those_on_s3_to_disk(runs: Runs, folder: Runs, tmp_path: Path) -> None:
    tracker = runs.search_tracker()
    tracker.record_trial(folder.trial(0, "complete", 2))
    ended(tracker)
    assert runs.storage.read(f"mlartifacts/{runs.ids['0000-fvae']}/artifacts/model/config.json") == b"0000-fvae"

    # Another database, whose experiment has its place on disk and keeps it.
    place, before = tmp_path / "artifacts", artifacts(runs)
    folder.client.create_experiment(f"fvae/{folder.dataset}", artifact_location=place.as_uri())
    uri = default_tracking_uri(folder.storage)
    tracker = runs.search_tracker(tracking_uri=uri, dataset_name=folder.dataset)
    tracker.record_trial(runs.trial(1, "complete", 2))
    ended(tracker)
    assert (place / folder.ids["0001-fvae"] / "artifacts/model/config.json").read_text() == "0001-fvae"
    assert artifacts(runs) == before
