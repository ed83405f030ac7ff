"""The store of schedules, on SQLite and on a real PostgreSQL: what is noted once, by however many at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text, update

from fvae.config import ConfigError
from pipelines.scheduling import store as store_module
from pipelines.scheduling.database import Database, runs, schedules
from pipelines.scheduling.definition import Schedule, model_of
from pipelines.scheduling.runs import (
    ACTIVE,
    BACKING_OFF,
    CANCELLED,
    COALESCED,
    FAILED,
    RUNNING,
    SUBMITTING,
    SUCCEEDED,
    WAITING,
    Run,
)
from pipelines.scheduling.store import Store
from pipelines.storage import StorageError
from tests.services.head import PATIENCE
from tests.services.postgres import PASSWORD, postgres_server


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        yield server.uri


@pytest.fixture(
    params=[pytest.param("sqlite", marks=pytest.mark.core), pytest.param("postgresql", marks=pytest.mark.system)]
)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/schedules.db"
    uri: str = request.getfixturevalue("postgres")
    database = Database(uri, create=True)
    with database.transaction() as connection:
        connection.execute(text("TRUNCATE schedules, runs, events"))
    database.close()
    return uri


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    store = Store(uri, create=True)
    yield store
    store.close()


def schedule(name: str = "nightly", **changes: Any) -> Schedule:
    values = {"name": name, "cron": "* * * * *", "zone": "UTC", "arguments": ("--model", "m"), "directory": "/"}
    return Schedule(**(values | {"exclusive": name} | changes))


def since(store: Store, name: str, back: timedelta) -> datetime:
    """From so long ago the slots of a schedule count, as if it had been added then; returns the moment."""
    moment = datetime.now(UTC).replace(second=30, microsecond=0) - back
    with store._database.transaction() as connection:
        change = update(schedules).where(schedules.c.name == name)
        connection.execute(change.values(since=moment.timestamp()))
    return moment


def states(store: Store) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in store.history(None, 1000):
        found[run.state] = found.get(run.state, 0) + 1
    return found


def moved(store: Store, run: Run, *path: str) -> Run:
    for state in path:
        step = store.move(run, state, attempt=max(run.attempt, 1), submission_id=run.submission(1), started_at=1.0)
        assert step is not None
        run = step
    return run


def test_a_schedule_comes_back_as_it_was(store: Store) -> None:
    odd = schedule(arguments=("--dataset", "s3://b/a b'c\"$(d)"), limit=60.0, on_failure="true", cron="@daily")
    store.add(odd)
    (entry,) = store.entries()
    assert entry.schedule == odd
    assert not entry.paused


def test_one_name_one_schedule(store: Store) -> None:
    store.add(schedule())
    with pytest.raises(ConfigError, match="NAME='nightly': there is such a schedule already"):
        store.add(schedule())
    with pytest.raises(ConfigError, match="NAME='weekly': no such schedule; there is nightly"):
        store.entry("weekly")


def test_missed_slots_are_coalesced_into_the_last(store: Store) -> None:
    store.add(schedule())
    moment = since(store, "nightly", timedelta(minutes=5))
    now = moment + timedelta(minutes=5)
    run = store.claim("nightly", now)
    assert run is not None
    assert run.state == WAITING
    assert run.slot == now.strftime("%Y%m%dT%H%MZ")
    assert states(store) == {WAITING: 1, COALESCED: 4}
    assert store.claim("nightly", now) is None  # each slot once
    later = store.claim("nightly", now + timedelta(minutes=1))
    assert later is not None
    assert [run.slot for run in store.open_runs()] == [later.slot]  # and into the next, while it waits
    assert store.run(run.id).reason == f"into {later.slot}"
    assert states(store) == {WAITING: 1, COALESCED: 5}


def test_a_run_under_way_is_not_coalesced(store: Store) -> None:
    store.add(schedule())
    moment = since(store, "nightly", timedelta(minutes=5))
    first = store.claim("nightly", moment + timedelta(minutes=1))
    assert first is not None
    moved(store, first, SUBMITTING, RUNNING)
    store.claim("nightly", moment + timedelta(minutes=2))
    store.claim("nightly", moment + timedelta(minutes=4))
    assert states(store) == {RUNNING: 1, COALESCED: 2, WAITING: 1}


def test_one_run_of_a_model_at_a_time(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.add(schedule(name, exclusive="fvae-photos" if name < "c" else "fvae-digits"))
    first, second, other = (store.add_run(name) for name in ("a", "b", "c"))
    for state in ACTIVE:
        first = moved(store, first, state)
        assert store.move(second, SUBMITTING, attempt=1) is None
    moved(store, other, SUBMITTING)
    moved(store, first, SUCCEEDED)
    moved(store, second, SUBMITTING)


def test_a_step_is_made_once(store: Store) -> None:
    store.add(schedule())
    run = moved(store, store.add_run("nightly"), SUBMITTING, RUNNING)
    assert store.move(run, SUCCEEDED) is not None
    assert store.move(run, FAILED, reason="late news") is None  # another one saw something else
    assert store.run(run.id).state == SUCCEEDED
    assert [step.state for step in store.steps(run)] == [WAITING, SUBMITTING, RUNNING, SUCCEEDED]


def test_a_slot_has_one_row(store: Store) -> None:
    store.add(schedule())
    since(store, "nightly", timedelta(minutes=1))
    run = store.claim("nightly", datetime.now(UTC))
    assert run is not None
    with pytest.raises(Exception, match=r"(?i)unique"), store._database.transaction() as connection:
        row = {
            "schedule": "nightly",
            "slot": run.slot,
            "job": {},
            "exclusive": "x",
            "state": WAITING,
            "claimed_at": 0.0,
        }
        connection.execute(insert(runs).values(row))


ROUNDS = 20


def _claim(uri: str, barrier: Any, found: Any) -> None:
    store = Store(uri)
    for number in range(ROUNDS):
        barrier.wait(PATIENCE)
        claimed = store.claim(f"s{number}", datetime.now(UTC))
        begun = [run for run in store.open_runs() if run.state == WAITING and store.move(run, SUBMITTING, attempt=1)]
        found.put((claimed is not None, len(begun)))
    store.close()


def test_two_schedulers_never_have_one_slot_both(uri: str) -> None:
    store = Store(uri, create=True)
    for number in range(ROUNDS):
        store.add(schedule(f"s{number}"))
        since(store, f"s{number}", timedelta(minutes=2))
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_claim, args=(uri, barrier, found)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [found.get(timeout=PATIENCE) for _ in range(2 * ROUNDS)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert sum(claimed for claimed, _ in answers) == ROUNDS
    assert sum(begun for _, begun in answers) == ROUNDS
    assert {run.state for run in store.open_runs()} == {SUBMITTING}
    store.close()


def test_paused_resumed_removed(store: Store) -> None:
    store.add(schedule())
    store.add(schedule("other"))
    waits, backs_off, runs_on = store.add_run("nightly"), store.add_run("other"), None
    backs_off = moved(store, backs_off, SUBMITTING, RUNNING, BACKING_OFF)
    store.pause("nightly")
    store.pause("other")
    assert {store.run(run.id).state for run in (waits, backs_off)} == {CANCELLED}
    since(store, "nightly", timedelta(minutes=5))
    assert store.claim("nightly", datetime.now(UTC)) is None
    before = datetime.now(UTC)
    store.resume("nightly")
    slot = store.entry("nightly").next_slot()
    assert slot is not None
    assert slot > before  # what was missed is not made up
    since(store, "nightly", timedelta(minutes=1))
    runs_on = store.claim("nightly", datetime.now(UTC))
    assert runs_on is not None
    runs_on = moved(store, runs_on, SUBMITTING, RUNNING)
    store.remove("nightly")
    assert [entry.schedule.name for entry in store.entries()] == ["other"]
    assert moved(store, runs_on, SUCCEEDED).state == SUCCEEDED  # its end is noted all the same
    store.add(schedule())  # the same name again: the old one's slots stay what they are
    since(store, "nightly", timedelta(minutes=1))
    assert store.claim("nightly", datetime.fromtimestamp(store.run(runs_on.id).claimed_at, UTC)) is None


def test_a_hook_is_run_by_one_and_again_if_that_one_died(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(schedule(on_failure="true"))
    run = moved(store, store.add_run("nightly"), SUBMITTING, RUNNING)
    assert store.take_hook() is None
    failed = store.move(run, FAILED, reason="exit status 1")
    assert failed is not None
    taken = store.take_hook()
    assert taken is not None
    assert taken.id == run.id
    assert store.take_hook() is None  # another process runs it
    monkeypatch.setattr(store_module, "HOOK_SECONDS", -1.0)
    assert store.take_hook() is not None
    store.finish_hook(failed, "hook true: exit status 3")
    assert store.take_hook() is None
    assert store.run(run.id).reason == "exit status 1; hook true: exit status 3"


def test_a_clock_that_is_put_back_brings_no_slot_twice(store: Store) -> None:
    store.add(schedule())
    moment = since(store, "nightly", timedelta(minutes=90))
    assert store.claim("nightly", moment + timedelta(minutes=80)) is not None
    assert store.claim("nightly", moment + timedelta(minutes=20)) is None
    assert store.claim("nightly", moment + timedelta(minutes=80)) is None
    assert store.claim("nightly", moment + timedelta(minutes=81)) is not None


@pytest.mark.core
def test_the_file_is_its_owner_s_alone_and_holds_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schedules.db"
    with pytest.raises(ConfigError, match="no schedules there yet"):
        Store(f"sqlite:///{path}")
    assert not path.parent.exists()
    store = Store(f"sqlite:///{path}", create=True)
    store.add(schedule())
    store.add_run("nightly")
    store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        kinds = {
            type(value) for table in tables for row in connection.execute(f"SELECT * FROM {table}") for value in row
        }
    assert kinds <= {str, int, float, type(None)}


@pytest.mark.core
@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ("postgresql://team@127.0.0.1:1/x", StorageError, "cannot be used"),
        ("postgresql://team:secret@127.0.0.1/x", ConfigError, "pgpass"),
        ("postgresql://team@127.0.0.1/x?password=secret", ConfigError, "pgpass"),
        ("mysql://team@127.0.0.1/x", ConfigError, "must be sqlite"),
        ("sqlite://", ConfigError, "must name a file"),
        ("runs/schedules.db", ConfigError, "must be sqlite"),
        ("sqlite:///{folder}/notes", ConfigError, "no database of schedules"),
        ("sqlite:////proc/nothing/x.db", ConfigError, "cannot be made"),
    ],
)
def test_a_database_that_will_not_do_is_one_line(bad: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no database at all")
    with pytest.raises(error, match="--store") as raised:
        Store(bad.format(folder=tmp_path), create=True)
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.core
def test_the_model_is_that_of_the_retraining_s_options() -> None:
    assert model_of(("--dataset", "d", "--model", "fvae-a")) == "fvae-a"
    assert model_of(("--model=fvae-b",)) == "fvae-b"
    assert model_of(("--model",)) is None
    assert model_of(()) is None


@pytest.mark.core
def test_backoff_doubles_up_to_an_hour() -> None:
    waits = schedule(backoff=60.0)
    assert [waits.pause_after(attempt) for attempt in (1, 2, 3, 7, 1000)] == [60, 120, 240, 3600, 3600]
