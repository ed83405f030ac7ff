"""The costs: every trial in one state, everything that it cost in one attempt, and the sums the same either way."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tune.records.ledger
from pipelines.storage import open_storage
from tests.tune.synthetic import SEARCH, record
from tune.map.tradeoff import build_tradeoff
from tune.records.accounting import SUMS, account, core_seconds, gpu_seconds, trial_account
from tune.records.ledger import WRITE_SECONDS, Ledger, TrialRecord
from tune.run import callbacks
from tune.run.callbacks import LedgerCallback

pytestmark = pytest.mark.core

EPOCHS, IMAGES, EPOCH_SECONDS = 20, 100, 0.4
EVENTS = ("epoch", "epoch", "epoch", "checkpoint", "process dies", "driver dies", "stopped", "nan", "put aside")
"""What may happen next to a trial."""


class Life:
    """A trial as its process, Tune and the scheduler treat it, in a world whose truth is known.

    The process trains from its last checkpoint, as :class:`tune.run.trial.TrialTraining` does; its death costs half a
    second more than its epochs.
    """

    def __init__(self, ledger: Ledger, trial_id: str, cpus: float, gpus: float) -> None:
        self.ledger, self.id = ledger, trial_id
        self.now = 0.0  # seconds, by its driver's clock
        self.tune_trial = SimpleNamespace(
            config={"id": trial_id},
            placement_group_factory=SimpleNamespace(required_resources={"CPU": cpus, "GPU": gpus}),
            get_error=lambda: "its process died",
        )
        self.checkpoint = 0
        self.trained: list[int] = []  # every epoch that any process finished
        self.starts = 0
        self.lost_seconds = 0.0
        self.unknown = 0
        self.forgotten = 0  # epochs that a driver took along
        self.new_driver()

    @property
    def record(self) -> TrialRecord:
        return self.ledger.records[self.id]

    def new_driver(self) -> None:
        self.ledger = Ledger(self.ledger.root)
        self.callback = LedgerCallback(self.ledger, (), lambda line: None)
        self.running = False

    def start(self) -> None:
        self.callback.on_trial_start(1, [], self.tune_trial)
        self.running, self.starts, self.epoch, self.first = True, self.starts + 1, self.checkpoint, self.checkpoint + 1

    def happen(self, event: str) -> None:
        if self.record.status != "running":
            return
        if not self.running:
            self.start()
        if event == "driver dies":
            self.unknown += 1
            reported = self.record
            self.new_driver()
            self.forgotten += (forgotten := reported.attempts[-1].epochs - self.record.attempts[-1].epochs)
            assert forgotten * EPOCH_SECONDS <= WRITE_SECONDS
            assert self.checkpoint <= self.record.epochs
        elif event == "put aside":
            self.now += 0.25
            self.lost_seconds += 0.25
            self.callback.pause_running()
            self.new_driver()
        elif event == "process dies":
            self.now += 0.5
            self.lost_seconds += 0.5
            self.callback.on_trial_recover(1, [], self.tune_trial)
            self.running = False
        elif event == "nan":
            self.now += 0.5
            self.lost_seconds += 0.5
            self.callback.on_trial_result(1, [], self.tune_trial, {"epoch": self.epoch, "failure": "a NaN"})
        else:
            self.finish_epoch(stop=event == "stopped", checkpoint=event == "checkpoint")

    def finish_epoch(self, stop: bool, checkpoint: bool) -> None:
        self.epoch += 1
        self.now += EPOCH_SECONDS
        self.trained.append(self.epoch)
        metrics = record(0, "fvae", 1000, 2.5).history[self.epoch - 1]
        result = dataclasses.asdict(metrics) | {
            "images": IMAGES * self.epoch,
            "attempt_first_epoch": self.first,
            "attempt_epochs": self.epoch - self.first + 1,
            "attempt_images": IMAGES * (self.epoch - self.first + 1),
            "attempt_seconds": EPOCH_SECONDS * (self.epoch - self.first + 1),
            "checkpoint_follows": checkpoint and self.epoch < EPOCHS,
        }
        if self.epoch == EPOCHS:
            result |= {"best_epoch": 1, "best_val_bpd": 2.0, "done": True}
        elif stop:  # as the scheduler does, before the callbacks get the result
            new = callbacks.changes(self.record, result) | {"status": "stopped", "reason": "others are better"}
            self.ledger.update(self.id, **new)
        self.callback.on_trial_result(1, [], self.tune_trial, result)
        if checkpoint:
            self.checkpoint = self.epoch


def new_trial(number: int) -> TrialRecord:
    return dataclasses.replace(
        record(number, "fvae", 1000, 2.5), status="running", history=(), best_epoch=None, val_bpd=None, attempts=()
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(EVENTS)), max_size=40))
def test_the_sums_hold_whatever_happens(events: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        ledgers = [Ledger(open_storage(f"{folder}/{number}")) for number in range(3)]  # a driver for each: all may die
        for number, ledger in enumerate(ledgers):
            ledger.put(new_trial(number))
        lives = [Life(ledger, f"{n:04d}-fvae", cpus=n + 1, gpus=n / 4) for n, ledger in enumerate(ledgers)]
        for which, event in events:
            patch.setattr(time, "monotonic", lambda life=lives[which]: life.now)
            lives[which].happen(event)
        for life in lives:
            life.ledger.flush()
        records = [Ledger(ledger.root).records[life.id] for ledger, life in zip(ledgers, lives, strict=True)]

        for life, each in zip(lives, records, strict=True):
            assert [epoch.epoch for epoch in each.history] == list(range(1, len(each.history) + 1))
            cost = trial_account(each)
            assert cost["attempts"] == life.starts == len(each.attempts)
            known = len(life.trained) - life.forgotten
            assert cost["epochs"] == known and cost["images"] == IMAGES * known
            again = known - len(each.history)
            assert (cost["epochs_again"], cost["images_again"]) == (again, IMAGES * again)
            assert cost["seconds"] == each.seconds == pytest.approx(EPOCH_SECONDS * known)
            assert cost["rest_seconds"] == pytest.approx(life.lost_seconds)
            assert cost["core_seconds"] == pytest.approx(each.attempts[0].cpus * (cost["seconds"] + life.lost_seconds)
                                                         if each.attempts else 0)  # fmt: skip
            assert sum(attempt.ended == "" for attempt in each.attempts) <= (each.status == "running")
            seconds = [epoch.seconds for epoch in each.history]
            assert seconds == sorted(seconds)
            lost_silently = sum(attempt.rest_seconds is None for attempt in each.attempts)
            open_now = sum(attempt.ended == "" for attempt in each.attempts)
            assert lost_silently <= life.unknown <= lost_silently + open_now

        costs = account(records)
        assert costs["trials"]["started"] == 3 == sum(costs["trials"].values()) - 3
        assert costs["attempts"]["started"] == sum(len(each.attempts) for each in records)
        assert sum(costs["attempts"].values()) == 2 * costs["attempts"]["started"]
        for name in SUMS:
            assert costs["total"][name] == pytest.approx(sum(each[name] for each in costs["by_trial"].values()))
        for each in costs["by_trial"].values():
            for name in ("epochs", "images", "seconds"):
                assert each[name] == pytest.approx(sum(attempt[name] for attempt in each["by_attempt"]))
        assert costs["total"]["gpu_seconds"] == pytest.approx(sum(gpu_seconds(each) for each in records))
        assert costs["total"]["core_seconds"] == pytest.approx(sum(core_seconds(each) for each in records))


@pytest.mark.parametrize("killed_after", range(1, 5))
def test_a_killed_driver_costs_what_is_trained_again(
    killed_after: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune.records.ledger, "WRITE_SECONDS", 0.0)
    ledger = Ledger(open_storage(tmp_path))
    ledger.put(new_trial(0))
    life = Life(ledger, "0000-fvae", cpus=1, gpus=0)
    for event in (*["epoch"] * killed_after, "driver dies", *["epoch"] * EPOCHS):
        life.happen(event)
    first, second = life.record.attempts
    assert (first.epochs, first.ended, first.rest_seconds) == (killed_after, "lost", None)
    assert (second.first_epoch, second.epochs, second.ended) == (1, EPOCHS, "done")
    assert trial_account(life.record)["epochs_again"] == killed_after
    assert life.record.seconds == pytest.approx(EPOCH_SECONDS * (killed_after + EPOCHS))
    assert life.record.history[-1].seconds == life.record.seconds


def test_the_map_holds_the_books_of_unfinished_trials_too() -> None:
    trials = [record(0, "fvae", 1000, 2.5), new_trial(1)]
    tradeoff = build_tradeoff(trials, SEARCH)
    assert tradeoff["unfinished"] == ["0001-fvae"]
    costs = tradeoff["accounting"]
    assert set(costs["by_trial"]) == {"0000-fvae", "0001-fvae"}
    assert costs["trials"] == {"started": 2, "running": 1, "complete": 1, "stopped": 0, "failed": 0}
    assert costs["total"]["images"] == trials[0].history[-1].images
    assert costs["search_seconds"] is None
    row = tradeoff["trials"][0]
    assert row["images_trained"] == costs["by_trial"]["0000-fvae"]["images"]
    assert row["core_seconds"] == pytest.approx(trials[0].seconds)


def test_states_are_one_each() -> None:
    for status, other in itertools.combinations(("running", "complete", "stopped", "failed"), 2):
        counts = account([dataclasses.replace(record(0, "fvae", 1, 2.0), status=status)])["trials"]
        assert counts[status] == counts["started"] == 1 and counts[other] == 0
