"""One search whose driver dies, whose user interrupts it and whose trial loses its process, session after session.

The crash points are injected: in this process an uncaught exception is what a kill is, and MLflow's thread
writes nothing more after it. Real kills of real processes, at many more moments: ``test_search_kills``.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.tracking.background import BackgroundTracker
from tests.commands import Called
from tests.tune.real_search import (
    EPOCHS,
    Records,
    called,
    check_grown,
    check_whole,
    mlflow_runs,
    records,
    tradeoff,
)
from tests.tune.travelling import MortalProcess
from tune import search_run
from tune.records.ledger import Ledger, TrialRecord
from tune.run import engine, scoring

pytestmark = pytest.mark.core

OPTIONS = ("--trials", "3", "--epochs", str(EPOCHS), "--batch-size", "256", "--concurrent", "1")
ENDS = (
    ("end of a trial", "before", "dies"),
    ("end of a trial", "after", "Ctrl-C"),
    ("test reading", "after", "dies"),
    ("picture of the map", "before", "dies"),
)
"""Where the first sessions end: before or after the first such thing is written. The last session ends by itself."""
CTRL_C, MAP = 1, 3
"""Numbers of sessions."""


class Died(BaseException):
    """What a killed process does next: nothing."""


class End:
    """The end of a session of the search, at its moment."""

    def __init__(self, patch: pytest.MonkeyPatch, what: str, when: str, how: str) -> None:
        self.what, self.when, self.how = what, when, how
        self.reached = False
        patch.setattr(Ledger, "put", self._around(Ledger.put, self._of_record))
        patch.setattr(search_run, "write_plot", self._around(search_run.write_plot, lambda *_: "picture of the map"))
        trying = BackgroundTracker._try
        patch.setattr(BackgroundTracker, "_try", lambda *arguments: not self.dead and trying(*arguments))

    @property
    def dead(self) -> bool:
        """Whether the process writes nothing more."""
        return self.reached and self.how == "dies"

    def _around(self, write: Callable[..., None], what: Callable[..., str | None]) -> Callable[..., None]:
        def writing(*arguments: Any) -> None:
            due = not self.reached and what(*arguments) == self.what
            if due and self.when == "before":
                self._end()
            write(*arguments)
            if due and self.when == "after":
                self._end()

        return writing

    @staticmethod
    def _of_record(ledger: Ledger, record: TrialRecord) -> str | None:
        """What is new in a record that is written."""
        before = ledger.records.get(record.id)
        if before is None:
            return None
        if record.test != before.test:
            return "test reading"
        if record.status != before.status:
            return "end of a trial"
        return "result" if record.epochs > before.epochs else None

    def _end(self) -> None:
        self.reached = True
        if self.how == "dies":
            raise Died
        os.kill(os.getpid(), signal.SIGINT)


class Session(NamedTuple):
    """What one session of the search did."""

    reached: bool
    """Its end."""
    done: Called | None
    """None where the driver died."""
    left: Records
    """The ledger after it."""
    asked: tuple[str, ...]
    """The models whose test split was to be read."""
    runs: list[Any]
    """MLflow's, after it."""


@pytest.fixture(scope="module")
def sessions(
    shared_ray: str, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Sequence[Session]]]:
    """The storage of the search, and its sessions: the same command each time."""
    storage = tmp_path_factory.mktemp("resumed")
    shutil.copyfile(empty_database, storage / "mlflow.db")
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", shared_ray)
        patch.setattr(engine, "TrialProcess", MortalProcess)
        for end in (*ENDS, None):
            done.append(session(storage, end))
    yield storage, done


def session(storage: Path, end: tuple[str, str, str] | None) -> Session:
    """One session, up to its end."""
    asked: list[str] = []
    read_tests = scoring.read_tests

    def reading(resources: Any, dataset: Any, ledger: Ledger, ids: Sequence[str], warn: Any) -> Iterator[TrialRecord]:
        asked.extend(ids)
        return read_tests(resources, dataset, ledger, ids, warn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "read_tests", reading)
        set_end = End(patch, *end) if end else None
        try:
            result = called(storage, *OPTIONS)
        except Died:
            result = None
    _, runs = mlflow_runs(storage)
    return Session(set_end is None or set_end.reached, result, records(storage), tuple(asked), runs)


def test_the_search_ends_whole_whatever_ended_its_sessions(sessions: tuple[Path, Sequence[Session]]) -> None:
    storage, done = sessions
    assert [each.reached for each in done] == [True] * len(done)
    assert [each.done is None for each in done] == [how == "dies" for _, _, how in ENDS] + [False]
    last = done[-1].done
    assert last is not None and last.status == 0, last
    check_whole(storage, {}, trials=3)
    for number, each in enumerate(done[:-1]):
        for later in done[number + 1 :]:
            check_grown(each.left, later.left)
    assert not (storage / "digits/.tune").exists()


def test_ctrl_c_is_one_line_and_leaves_no_run_running(sessions: tuple[Path, Sequence[Session]]) -> None:
    _, done = sessions
    interrupted = done[CTRL_C].done
    assert interrupted is not None and interrupted.status == 1
    assert "Interrupted. The same command goes on" in interrupted.out
    assert "Traceback" not in interrupted.err
    assert "RUNNING" not in {run.info.status for run in done[CTRL_C].runs}


def test_a_trial_goes_on_from_its_checkpoint_whatever_ended_it(sessions: tuple[Path, Sequence[Session]]) -> None:
    storage, done = sessions
    first, *others = records(storage).values()

    def attempts(record: dict[str, Any]) -> list[tuple[int, int, str]]:
        return [(each["first_epoch"], each["epochs"], each["ended"]) for each in record["attempts"]]

    # A checkpoint was written after the third epoch; the fourth was not in the ledger.
    assert attempts(first) == [(1, EPOCHS - 1, "lost"), (EPOCHS, 1, "done")]
    # The process of one trial ended by itself within the second epoch.
    (mortal,) = [record for record in others if any(each["ended"] == "lost" for each in record["attempts"])]
    assert attempts(mortal)[0] == (1, 1, "lost") and attempts(mortal)[1][0] == 2
    assert len(mortal["attempts"]) == 2
    assert {record["reason"] for record in (first, *others) if record["status"] == "complete"} == {""}
    accounts = tradeoff(storage)["accounting"]["by_trial"]
    for record in (first, *others):
        assert accounts[record["id"]]["epochs"] == sum(epochs for _, epochs, _ in attempts(record))


def test_the_test_split_is_read_once_for_each_model_of_a_front(sessions: tuple[Path, Sequence[Session]]) -> None:
    storage, done = sessions
    assert [bool(each.asked) for each in done] == [False] * (MAP - 1) + [True, True, False]
    readings, rest = done[MAP - 1], done[MAP]
    (read,) = [name for name, record in readings.left.items() if record["test"]]
    assert sorted(rest.asked) == sorted(set(readings.asked) - {read})
    on_fronts = {trial_id for ids in tradeoff(storage)["fronts"].values() for trial_id in ids}
    assert set(readings.asked) == on_fronts
    assert {name for name, record in done[-1].left.items() if record["test"]} == on_fronts
