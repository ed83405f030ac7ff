"""The store of schedules and runs, shared by any number of processes.

Every step of a run is one transaction that succeeds only if the run is still in the state that this process read: of
two schedulers, one takes the step and the other is refused.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, not_, select, update
from sqlalchemy.exc import IntegrityError

from fvae.config import ConfigError, require
from pipelines.scheduling.cron import slot_name, slot_time
from pipelines.scheduling.database import Database, events, runs, schedules
from pipelines.scheduling.definition import Schedule
from pipelines.scheduling.runs import (
    BACKING_OFF,
    CANCELLED,
    COALESCED,
    MANUAL,
    OPEN,
    UNSUCCESSFUL,
    WAITING,
    Run,
)

HOOK_SECONDS = 180.0
"""After so many seconds without a result, the process that runs a hook counts as dead, and the hook is run again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A schedule in the store."""

    schedule: Schedule
    paused: bool
    since: float
    """Only slots after this moment count (seconds since 1970)."""
    last: str | None
    """Its latest recorded slot."""

    def next_slot(self) -> datetime | None:
        """The earliest slot that is not recorded yet; it may be past."""
        return self.schedule.times.next_slot(self.after())

    def after(self) -> datetime:
        """The moment after which slots are still to be recorded."""
        since = datetime.fromtimestamp(self.since, UTC)
        return since if self.last is None else max(since, slot_time(self.last))


class Store:
    """Schedules and runs in a :class:`~pipelines.scheduling.database.Database`. Its methods raise ``StorageError``."""

    def __init__(self, uri: str, *, create: bool = False) -> None:
        self._database = Database(uri, create=create)
        self.shown = self._database.shown

    def close(self) -> None:
        """End its connections."""
        self._database.close()

    # Schedules

    def add(self, schedule: Schedule, *, paused: bool = False) -> None:
        """Add a schedule. Raises ``ConfigError`` where there is one of that name."""
        values = {"name": schedule.name, "job": schedule.to_dict(), "paused": paused, "since": time.time()}
        try:
            with self._database.transaction() as connection:
                connection.execute(insert(schedules).values(values))
        except IntegrityError:
            raise ConfigError(
                f"NAME={schedule.name!r}: there is such a schedule already; choose another name, or remove it first"
            ) from None

    def entries(self) -> list[Entry]:
        """All schedules, by name."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(schedules).order_by(schedules.c.name)).all()
            last = _last_slots(connection)
        return [_entry(row, last) for row in rows]

    def entry(self, name: str) -> Entry:
        """A schedule by its name. Raises ``ConfigError`` for an unknown one, with the known names."""
        entries = {entry.schedule.name: entry for entry in self.entries()}
        require(name in entries, f"NAME={name!r}: no such schedule; there is {', '.join(entries) or 'none'}")
        return entries[name]

    def pause(self, name: str) -> None:
        """Pause a schedule: no slot counts from now on, waiting runs are cancelled, a running job continues."""
        self.entry(name)
        with self._database.transaction() as connection:
            connection.execute(update(schedules).where(schedules.c.name == name).values(paused=True))
            _cancel(connection, name, "the schedule was paused")

    def resume(self, name: str) -> None:
        """Resume a schedule: slots count from now on."""
        if self.entry(name).paused:
            with self._database.transaction() as connection:
                change = update(schedules).where(schedules.c.name == name)
                connection.execute(change.values(paused=False, since=time.time()))

    def remove(self, name: str) -> None:
        """Remove a schedule: waiting runs are cancelled, a running job goes on and is recorded, the history is kept."""
        self.entry(name)
        with self._database.transaction() as connection:
            connection.execute(delete(schedules).where(schedules.c.name == name))
            _cancel(connection, name, "the schedule was removed")

    # Runs

    def claim(self, name: str, now: datetime) -> Run | None:
        """Record the slots of a schedule that are due. One run waits then, for the last of them; returns it.

        Earlier ones, and one that still waits, are coalesced into it.
        """
        with self._database.transaction() as connection:
            row = connection.execute(select(schedules).where(schedules.c.name == name).with_for_update()).one_or_none()
            if row is None or row.paused:
                return None
            entry = _entry(row, _last_slots(connection, name))
            names = [slot_name(slot) for slot in entry.schedule.times.slots(entry.after(), now)]
            if not names:
                return None
            same = (runs.c.schedule == name, runs.c.state == WAITING, not_(runs.c.slot.startswith(MANUAL)))
            into = {"state": COALESCED, "reason": f"into {names[-1]}", "ended_at": now.timestamp()}
            for (earlier,) in connection.execute(select(runs.c.id).where(*same)).all():
                _change(connection, earlier, into)
            for slot in names[:-1]:
                _insert(connection, entry.schedule, slot, into)
            return _insert(connection, entry.schedule, names[-1], {"state": WAITING})

    def add_run(self, name: str) -> Run:
        """Add a run outside the slots. Raises ``ConfigError`` for an unknown schedule, and twice in a second."""
        schedule = self.entry(name).schedule
        slot = MANUAL + datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        try:
            with self._database.transaction() as connection:
                return _insert(connection, schedule, slot, {"state": WAITING})
        except IntegrityError:
            raise ConfigError(f"NAME={name!r}: a run was begun in this very second already") from None

    def move(self, run: Run, state: str, **changes: Any) -> Run | None:
        """Take a step of a run; None where its state has changed, or where another run of its key is active.

        ``changes`` are columns. A run that has failed is due for its hook from the same moment on.
        """
        due = state in UNSUCCESSFUL and run.job.on_failure is not None
        changes |= {"state": state, "hook_due": due} | ({} if state in OPEN else {"ended_at": time.time()})
        try:
            with self._database.transaction() as connection:
                as_known = (runs.c.state == run.state, runs.c.attempt == run.attempt)
                if not _change(connection, run.id, changes, *as_known):
                    return None
                return _run(connection.execute(select(runs).where(runs.c.id == run.id)).one())
        except IntegrityError:
            return None

    def open_runs(self) -> list[Run]:
        """The runs that have not ended, the oldest first."""
        with self._database.transaction() as connection:
            return [
                _run(row) for row in connection.execute(select(runs).where(runs.c.state.in_(OPEN)).order_by(runs.c.id))
            ]

    def run(self, number: int) -> Run:
        """A run by its id."""
        with self._database.transaction() as connection:
            return _run(connection.execute(select(runs).where(runs.c.id == number)).one())

    def history(self, name: str | None, last: int) -> list[Run]:
        """The last runs, of one schedule or of all, the oldest first."""
        query = select(runs).order_by(runs.c.id.desc()).limit(last)
        with self._database.transaction() as connection:
            rows = connection.execute(query if name is None else query.where(runs.c.schedule == name)).all()
        return [_run(row) for row in reversed(rows)]

    def steps(self, run: Run) -> Sequence[Row[Any]]:
        """Every step of a run, with ``at``, ``state``, ``attempt`` and ``reason``."""
        with self._database.transaction() as connection:
            return connection.execute(select(events).where(events.c.run == run.id).order_by(events.c.id)).all()

    # Failure hooks

    def take_hook(self) -> Run | None:
        """A run whose hook this process is to run; :meth:`finish_hook` records the result.

        A hook is run at least once: if this process dies meanwhile, it is run again.
        """
        now = time.time()
        free = (runs.c.hook_due, func.coalesce(runs.c.hook_at, 0.0) < now - HOOK_SECONDS)
        with self._database.transaction() as connection:
            query = select(runs).where(*free).order_by(runs.c.id).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            connection.execute(update(runs).where(runs.c.id == row.id).values(hook_at=now))
            return _run(row)

    def finish_hook(self, run: Run, problem: str | None) -> None:
        """Record that a run's hook was run; ``problem`` is appended to the run's reason."""
        reason = run.reason if problem is None else f"{run.reason}; {problem}"
        with self._database.transaction() as connection:
            connection.execute(update(runs).where(runs.c.id == run.id).values(hook_due=False, reason=reason))


def _entry(row: Row[Any], last: dict[str, str]) -> Entry:
    schedule = Schedule.from_dict(row.job)
    return Entry(schedule=schedule, paused=row.paused, since=row.since, last=last.get(row.name))


def _last_slots(connection: Connection, name: str | None = None) -> dict[str, str]:
    query = select(runs.c.schedule, func.max(runs.c.slot)).where(not_(runs.c.slot.startswith(MANUAL)))
    query = query if name is None else query.where(runs.c.schedule == name)
    return {row[0]: row[1] for row in connection.execute(query.group_by(runs.c.schedule))}


def _run(row: Row[Any]) -> Run:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(Run) if field.name != "job"}
    return Run(**values, job=Schedule.from_dict(row.job))


def _insert(connection: Connection, schedule: Schedule, slot: str, values: dict[str, Any]) -> Run:
    values = {
        "schedule": schedule.name,
        "slot": slot,
        "job": schedule.to_dict(),
        "exclusive": schedule.exclusive,
    } | values
    values["claimed_at"] = time.time()
    made = connection.execute(insert(runs).values(values)).inserted_primary_key
    assert made is not None
    row = connection.execute(select(runs).where(runs.c.id == made[0])).one()
    _note(connection, row)
    return _run(row)


def _change(connection: Connection, number: int, values: dict[str, Any], *as_known: Any) -> bool:
    changed = connection.execute(update(runs).where(runs.c.id == number, *as_known).values(values)).rowcount == 1
    if changed:
        _note(connection, connection.execute(select(runs).where(runs.c.id == number)).one())
    return changed


def _note(connection: Connection, row: Row[Any]) -> None:
    step = {"run": row.id, "at": time.time(), "state": row.state, "attempt": row.attempt, "reason": row.reason}
    connection.execute(insert(events).values(step))


def _cancel(connection: Connection, name: str, reason: str) -> None:
    ended = {"state": CANCELLED, "reason": reason, "ended_at": time.time()}
    waits = (runs.c.schedule == name, runs.c.state.in_((WAITING, BACKING_OFF)))
    for (number,) in connection.execute(select(runs.c.id).where(*waits)).all():
        _change(connection, number, ended)
