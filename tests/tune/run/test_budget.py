"""When no more trials start, and when those that run are paused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fvae import ConfigError
from pipelines.storage import StorageError, open_storage
from pipelines.tracking.tracker import default_tracking_uri
from tests.commands import call
from tests.tune.synthetic import record, stopped
from tune import search as search_command
from tune.records import training_time as clock_module
from tune.records.ledger import Ledger, TrialRecord
from tune.records.training_time import TIME, SearchClock
from tune.run.budget import LEAST_GROWTH, Budget, FrontProgress
from tune.run.callbacks import LedgerCallback
from tune.settings import TRIALS, SearchSettings
from tune.stats.pareto import hypervolume

pytestmark = pytest.mark.core

BINS = 17


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Time:
    hands = Time()
    monkeypatch.setattr(clock_module, "time", hands)
    return hands


def budget(root: Path, **options: Any) -> tuple[Budget, Ledger]:
    ledger = Ledger(open_storage(root))
    return Budget(SearchSettings(**options), SearchClock(ledger.root), BINS), ledger


def trial(number: int, seconds: float, status: str = "complete", **changes: Any) -> TrialRecord:
    """One that took so many seconds on a core, with a quarter of a GPU."""
    whole = record(number, "fvae", 1000, 2.5)
    attempt = dataclasses.replace(whole.attempts[0], seconds=seconds, gpus=0.25)
    return dataclasses.replace(whole, status=status, attempts=(attempt,), **changes)  # type: ignore[arg-type]


# --- settings --------------------------------------------------------------------------------------------


def test_a_search_without_a_budget_has_the_default_number_of_trials() -> None:
    assert SearchSettings().max_trials == TRIALS
    assert SearchSettings(trials=7, time_budget="1h").max_trials == 7
    for other in ({"time_budget": "1h"}, {"gpu_hours": 2.0}, {"patience": 5}):
        assert SearchSettings(**other).max_trials is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_budget": "2"}, "--time-budget='2': give a time such as 2h"),
        ({"gpu_hours": 0.0}, "--gpu-hours=0.0: must be a finite number above 0"),
        ({"gpu_hours": math.nan}, "--gpu-hours=nan: must be a finite number above 0"),
        ({"patience": 0}, "--patience=0: must be an integer of at least 1"),
        ({"max_params": 0}, "--max-params=0: must be an integer of at least 1"),
        ({"max_flops": -1.0}, "--max-flops=-1.0: must be a finite number above 0"),
        ({"max_memory": "2G"}, "--max-memory='2G': give a size such as 2GiB"),
        ({"seeds": 0}, "--seeds=0: must be an integer of at least 1"),
        ({"sampler": "grid"}, "--sampler='grid': must be one of front, tpe, nsga2, gp, random"),
        ({"warm_start": ""}, "--warm-start: empty"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSettings(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# --- trials ----------------------------------------------------------------------------------------------


def test_trials_are_counted_by_their_first_seeds(tmp_path: Path) -> None:
    mine, ledger = budget(tmp_path, trials=2)
    for number, replicate_of in enumerate((None, "0000-fvae", None)):
        assert mine.may_start(ledger) is None
        ledger.put(record(number, "fvae", 1000, 2.5, replicate_of=replicate_of))
    assert mine.may_start(ledger) == "--trials 2: all started"
    assert mine.may_start(ledger, replicate=True) is None and mine.over(ledger) is None
    assert mine.finished(ledger) == "--trials 2: all started"
    ledger.put(record(3, "fvae", 1000, 2.5, status="running"))
    assert mine.finished(ledger) is None  # it is to go on
    assert budget(tmp_path, trials=5)[0].may_start(ledger) is None


def test_a_search_is_not_finished_before_its_further_seeds(tmp_path: Path) -> None:
    mine, ledger = budget(tmp_path, trials=1)
    ledger.put(record(0, "fvae", 1000, 2.5))
    assert mine.finished(ledger, seeds=1) and mine.finished(ledger, seeds=2) is None
    assert budget(tmp_path, trials=1, gpu_hours=1e-9)[0].finished(ledger, seeds=2)


# --- time ------------------------------------------------------------------------------------------------


def test_time_is_that_of_all_sessions_and_not_between_them(tmp_path: Path, hands: Time) -> None:
    for session in range(3):
        mine, ledger = budget(tmp_path, time_budget="1m")
        assert mine.clock.seconds == 20 * session and mine.over(ledger) is None
        hands.now += 1e6  # what happens before the training is not counted, nor what comes after it
        mine.clock.start()
        hands.now += 20
        assert mine.over(ledger) == (None if session < 2 else "--time-budget 1m: used up")
        mine.clock.stop()
        hands.now += 1e6
    again, ledger = budget(tmp_path, time_budget="1m")
    assert again.finished(ledger) == "--time-budget 1m: used up"
    assert budget(tmp_path, time_budget="2m")[0].finished(ledger) is None


def test_a_killed_driver_loses_half_a_minute_at_most(tmp_path: Path, hands: Time) -> None:
    mine, ledger = budget(tmp_path, time_budget="1h")
    mine.clock.start()
    writes = 0
    for _ in range(1000):
        hands.now += 0.25
        before = ledger.root.read(TIME)
        mine.clock.tick()
        writes += ledger.root.read(TIME) != before
    assert writes == 250 // clock_module.KEEP_SECONDS
    killed = SearchClock(ledger.root)
    assert 250 - clock_module.KEEP_SECONDS <= killed.seconds <= 250 and killed.sessions == 1


def test_without_its_lock_the_clock_writes_nothing(tmp_path: Path) -> None:
    def lost() -> None:
        raise StorageError("the lock was lost")

    with pytest.raises(StorageError, match="the lock was lost"):
        SearchClock(open_storage(tmp_path), lost).start()
    assert not (tmp_path / TIME).exists()


def test_no_trial_starts_that_would_not_end_in_time(tmp_path: Path, hands: Time) -> None:
    mine, ledger = budget(tmp_path, time_budget="10m")
    mine.clock.start()
    hands.now += 500
    assert mine.may_start(ledger) is None  # nothing is known yet
    ledger.put(trial(0, 60))
    ledger.put(trial(1, 120, "stopped"))
    ledger.put(trial(2, 1e6, "running"))  # it is not known how long it takes
    assert mine.may_start(ledger) is None
    hands.now += 11
    assert mine.may_start(ledger) == "--time-budget 10m: 1m29s left, a trial takes 1m30s"
    assert mine.over(ledger) is None
    hands.now += 89
    assert mine.over(ledger) == mine.may_start(ledger) == mine.finished(ledger) == "--time-budget 10m: used up"


# --- devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpus", "devices"), [(0.0, 1.0), (0.25, 0.25)])
def test_hours_are_of_gpus_or_else_of_cores(tmp_path: Path, gpus: float, devices: float) -> None:
    mine, ledger = budget(tmp_path, gpu_hours=devices, gpus_per_trial=gpus)
    ledger.put(trial(0, 1000))
    ledger.put(trial(1, 1200, "stopped"))
    assert mine.may_start(ledger) is None
    ledger.put(trial(2, 500, "running"))  # it will probably take 1100
    assert mine.may_start(ledger) == f"--gpu-hours {devices:g}: {300 * devices / 3600:.2g} left, a trial takes " + (
        f"{1100 * devices / 3600:.2g}"
    )
    assert mine.over(ledger) is None
    ledger.put(trial(2, 1400, "running"))
    assert mine.over(ledger) == f"--gpu-hours {devices:g}: used up"


def test_no_more_trials_is_said_for_good(tmp_path: Path) -> None:
    """Tune asks no more, so the search must be over by the same word when the last trials have cost less."""
    mine, ledger = budget(tmp_path, gpu_hours=1.0)
    ledger.put(trial(0, 1500))
    ledger.put(trial(1, 100, "running"))
    message = mine.may_start(ledger)
    assert message == "--gpu-hours 1: 0.17 left, a trial takes 0.42"
    ledger.put(trial(1, 100, "stopped"))
    assert mine.may_start(ledger) == mine.finished(ledger) == message
    assert budget(tmp_path, gpu_hours=1.0)[0].finished(ledger) is None  # the same command uses what is left


def test_hours_hold_what_was_lost(tmp_path: Path) -> None:
    mine, ledger = budget(tmp_path, gpu_hours=1.0)
    whole = trial(0, 1800)
    lost = dataclasses.replace(whole.attempts[0], seconds=1000, rest_seconds=801, ended="lost")
    ledger.put(dataclasses.replace(whole, attempts=(lost, *whole.attempts)))
    assert mine.over(ledger) == "--gpu-hours 1: used up"


# --- patience --------------------------------------------------------------------------------------------


def test_patience_counts_trials_in_a_row_that_moved_no_front(tmp_path: Path) -> None:
    mine, ledger = budget(tmp_path, patience=3)
    moments = iter(range(1_000_000))

    def end(number: int, family: str, params: int, bpd: float, status: str = "complete") -> str | None:
        one = record(number, family, params, bpd, status=status)
        last = dataclasses.replace(one.history[-1], time_ms=next(moments))
        ledger.put(dataclasses.replace(one, history=(*one.history[:-1], last)))
        return mine.may_start(ledger)

    assert end(0, "flow", 1000, 3.0) is None
    assert end(1, "flow", 2000, 3.1) is None  # 1
    assert end(2, "flow", 2000, 2.0, "stopped") is None  # 2: part-trained figures move nothing
    assert end(3, "vae", 5000, 3.9) is None  # the first of its family
    assert end(4, "flow", 900, math.nan, "failed") is None  # 1
    assert end(5, "flow", 1000, 3.0) is None  # 2: the same point
    message = "--patience 3: the last 3 trials have moved no family's front"
    assert end(6, "flow", 999, 2.99999) == message  # 3: less than a thousandth
    assert mine.over(ledger) is None  # what runs ends by itself
    assert budget(tmp_path, patience=3)[0].may_start(ledger) == message  # a resumed search ends by the same
    assert budget(tmp_path, patience=4)[0].may_start(ledger) is None
    assert end(7, "flow", 50_000, 2.5) is None  # larger than all, and better


def test_a_search_that_ran_out_of_patience_stays_so(tmp_path: Path) -> None:
    """A trial that still ran when that was decided moves a front when it ends: the search is over all the same."""
    mine, ledger = budget(tmp_path, patience=2)
    ledger.put(record(0, "flow", 1000, 3.0))
    ledger.put(dataclasses.replace(record(9, "flow", 1000, 3.0), status="running"))
    for number in (2, 3):
        ledger.put(record(number, "flow", 2000, 3.5))
    message = "--patience 2: the last 2 trials have moved no family's front"
    assert mine.may_start(ledger) == message
    ledger.put(record(9, "flow", 1000, 1.0))
    assert mine.may_start(ledger) == mine.finished(ledger) == message
    assert budget(tmp_path, patience=2)[0].finished(ledger) == message  # the same command shows a finished search
    assert budget(tmp_path, patience=1)[0].finished(ledger) == message.replace("2", "1")
    assert budget(tmp_path, patience=3)[0].finished(ledger) is None  # more patience goes on
    ledger.put(record(10, "flow", 900, 0.9))
    assert mine.may_start(ledger) is None  # it has gone on, so what was decided then no longer holds


def test_patience_looks_at_the_one_front_where_families_compete(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    for number, (family, params, bpd) in enumerate([("flow", 1000, 2.5), ("vae", 1000, 3.0), ("vae", 2000, 2.6)]):
        ledger.put(record(number, family, params, bpd))
    for goal, message in (("map", None), ("front", "--patience 2: the last 2 trials have not moved the front")):
        mine = budget(tmp_path, patience=2, goal=goal)[0]
        assert mine.may_start(ledger) == message
    ledger.put(record(3, "vae", 2000, 2.4))
    assert mine.may_start(ledger) is None


def test_the_front_moves_by_the_hypervolume(tmp_path: Path) -> None:
    progress = FrontProgress(BINS, one_front=False)
    ceiling = math.log2(BINS)
    trials = [record(0, "flow", 1000, 3.0)]
    assert progress.idle(trials) == 0
    area = hypervolume([(3.0, 3.0)], (4.0, ceiling))
    gains = {0.5: 1, 2.0: 0}  # in shares of what counts
    for number, (share, idle) in enumerate(gains.items(), start=1):
        better = 3.0 - share * LEAST_GROWTH * area
        trials.append(record(number, "flow", 1000, better))
        assert progress.idle(trials) == idle


def test_a_stopped_trial_that_went_on_counts_again() -> None:
    progress = FrontProgress(BINS, one_front=False)
    first, whole = record(0, "flow", 1000, 3.0), record(1, "flow", 2000, 2.5)
    assert progress.idle([first]) == 0
    assert progress.idle([first, stopped(whole, 3)]) == 1
    assert progress.idle([first, whole]) == 0


# --- the real search -------------------------------------------------------------------------------------


def test_a_search_whose_time_is_up_pauses_trials_and_a_larger_budget_ends_them(
    tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Time()
    on_trial_result = LedgerCallback.on_trial_result

    def on_the_first_epoch(*arguments: Any, **info: Any) -> None:
        on_trial_result(*arguments, **info)
        hands.now = 3600.0  # an hour after the search began

    def search(*options: str) -> str:
        often = ["--storage", str(tmp_path), "--families", "flow", "--trials", "2", "--sampler", "random"]
        done = call(search_command.main, SearchSettings, *often, *options)
        assert done.status == 0, done.out + done.err
        return done.out

    def of_run() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        folder = tmp_path / "digits"
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/trial.json"))]
        return json.loads((folder / "tradeoff.json").read_text()), {each["id"]: each for each in records}

    def runs() -> list[Any]:
        client = MlflowClient(default_tracking_uri(open_storage(tmp_path)))
        experiment = client.get_experiment_by_name("fvae/digits")
        return list(client.search_runs([experiment.experiment_id]))

    hands.now = 0.0
    monkeypatch.setattr(clock_module, "time", hands)
    monkeypatch.setattr(LedgerCallback, "on_trial_result", on_the_first_epoch)
    output = search("--time-budget", "1h")
    assert "Ended: --time-budget 1h: used up." in output and "failed" not in output
    tradeoff, records = of_run()
    assert tradeoff["unfinished"] and set(tradeoff["unfinished"]) == {
        trial_id for trial_id, each in records.items() if each["status"] == "running"
    }
    ends = [attempt["ended"] for each in records.values() for attempt in each["attempts"]]
    assert "put aside" in ends and "" not in ends
    assert tradeoff["accounting"]["search_seconds"] == 3600
    states = {each.info.run_name: (each.info.status, each.data.tags.get("status")) for each in runs()}
    assert states.pop("digits")[0] == "FINISHED"
    assert set(states) == {trial_id for trial_id, each in records.items() if each["attempts"]}
    assert {states[name] for name in states if records[name]["status"] == "running"} == {("KILLED", "interrupted")}

    again = search("--time-budget", "1h")
    assert "Ended: --time-budget 1h: used up." in again and "epochs each" not in again
    assert of_run()[1] == records

    output = search("--time-budget", "2h")
    tradeoff, after = of_run()
    assert tradeoff["unfinished"] == [] and "Ended: --trials 2: all started." in output
    costs = tradeoff["accounting"]
    assert costs["total"]["epochs"] == sum(attempt["epochs"] for each in after.values() for attempt in each["attempts"])
    for trial_id, each in after.items():
        assert [epoch["epoch"] for epoch in each["history"]] == list(range(1, len(each["history"]) + 1))
        before = records.get(trial_id, {"history": []})["history"]
        assert each["history"][: len(before)] == before
    ended = {trial_id: "FINISHED" if each["status"] == "complete" else "KILLED" for trial_id, each in after.items()}
    assert {each.info.run_name: each.info.status for each in runs()} == {"digits": "FINISHED"} | ended
