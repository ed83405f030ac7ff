"""A test per rule of tune/scheduler.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from fvae.epoch_metrics import EpochMetrics
from pipelines.storage import open_storage
from tune.ledger import Ledger, TrialRecord
from tune.scheduler import LEAST_MARGIN, VOTES, FrontScheduler, margin, reason_to_stop, rungs

RUNG = 15


def record(number: int, params: int, curve: list[float], family: str = "flow") -> TrialRecord:
    """A trial whose validation bits/dim after each epoch is ``curve``."""
    rest = {"train_bpd": 1.0, "grad_norm": 1.0, "images_per_second": 1.0, "sigma1": 0.1, "sigma2": 0.1, "time_ms": 0}
    history = tuple(
        EpochMetrics(epoch=epoch, val_bpd=bits, images=epoch, seconds=float(epoch), **rest)  # type: ignore[arg-type]
        for epoch, bits in enumerate(curve, start=1)
    )
    return TrialRecord(
        id=f"{number:04d}-{family}",
        family=family,
        config={},
        train={},
        params=params,
        flops_per_image=1,
        suggestion={},
        history=history,
    )


def flat(bits: float, epochs: int = RUNG) -> list[float]:
    """A curve that has settled."""
    return [bits] * epochs


def decide(tmp_path: Path, trial: TrialRecord, rivals: list[TrialRecord]) -> str | None:
    ledger = Ledger(open_storage(tmp_path))
    for each in (trial, *rivals):
        ledger.put(each)
    return reason_to_stop(ledger, trial, RUNG, trial.history[RUNG - 1].val_bpd)


def test_clearly_worse_than_smaller_models_is_stopped(tmp_path: Path) -> None:
    rivals = [record(1, 900, flat(2.0)), record(2, 1000, flat(2.1))]
    reason = decide(tmp_path, record(0, 1000, flat(3.0)), rivals)
    assert reason is not None
    for said in ("epoch 15", "3.000", "2 flow models", "best 2.000 by 0001-flow", "900 parameters"):
        assert said in reason


def test_larger_models_stop_nobody(tmp_path: Path) -> None:
    rivals = [record(number, 1001, flat(1.0)) for number in range(1, 6)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_another_family_stops_nobody(tmp_path: Path) -> None:
    rivals = [record(number, 10, flat(1.0), family="fvae") for number in range(1, 6)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_fewer_than_votes_rivals_stop_nobody(tmp_path: Path) -> None:
    rivals = [record(number, 10, flat(1.0)) for number in range(1, VOTES)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_rivals_that_have_not_reached_the_rung_stop_nobody(tmp_path: Path) -> None:
    rivals = [record(number, 10, flat(1.0, RUNG - 1)) for number in range(1, 6)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_what_rivals_reached_after_the_rung_does_not_count(tmp_path: Path) -> None:
    rivals = [record(number, 10, [*flat(3.1), 1.0]) for number in range(1, 6)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_failed_rivals_stop_nobody(tmp_path: Path) -> None:
    rivals = [dataclasses.replace(record(number, 10, flat(1.0)), status="failed") for number in range(1, 6)]
    assert decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is None


def test_the_epoch_and_the_decision_are_one_write(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    trial = record(0, 1000, flat(3.0, RUNG - 1))
    for each in (trial, record(1, 10, flat(1.0)), record(2, 10, flat(1.0))):
        ledger.put(each)
    scheduler = FrontScheduler(ledger, epochs=60)
    last = dataclasses.asdict(record(9, 1, flat(3.0)).history[-1]) | {"images_per_second": 1.0}
    decision = scheduler.on_trial_result(None, SimpleNamespace(config={"id": trial.id}), last)  # type: ignore[arg-type]
    assert decision == TrialScheduler.STOP
    on_disk = Ledger(open_storage(tmp_path)).records[trial.id]
    assert (on_disk.status, on_disk.epochs) == ("stopped", RUNG)
    assert on_disk.reason.startswith("epoch 15")


@pytest.mark.parametrize(("gap", "stops"), [(LEAST_MARGIN - 0.001, False), (LEAST_MARGIN + 0.001, True)])
def test_the_least_margin_counts_for_a_settled_trial(tmp_path: Path, gap: float, stops: bool) -> None:
    rivals = [record(number, 10, flat(3.0 - gap)) for number in range(1, 4)]
    assert (decide(tmp_path, record(0, 1000, flat(3.0)), rivals) is not None) == stops


def test_a_trial_that_still_learns_fast_goes_on(tmp_path: Path) -> None:
    rivals = [record(number, 10, flat(2.5)) for number in range(1, 4)]
    falling = [10.0 - 0.5 * epoch for epoch in range(RUNG)]  # 3.0 at the rung, 7.0 at its half
    assert margin(record(0, 1000, falling), RUNG, 3.0) == pytest.approx(2.0)
    assert decide(tmp_path, record(0, 1000, falling), rivals) is None


@pytest.mark.parametrize("epochs", [1, 2, 3, 8, 60, 1000])
def test_no_rung_at_the_last_epoch_or_before_the_first(epochs: int) -> None:
    assert all(1 <= epoch < epochs for epoch in rungs(epochs))


def test_rungs_of_the_default_search() -> None:
    assert rungs(60) == {8, 15, 30}
