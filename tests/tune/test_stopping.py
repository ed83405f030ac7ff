"""A test per rule of tune/stopping.py."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from pipelines.storage import open_storage
from tests.tune.curves import REST, trial
from tune.propose.expected_front import ExpectedFronts
from tune.records.ledger import Ledger, TrialRecord
from tune.run.tune_scheduler import FrontScheduler
from tune.stats.forecasts import Forecasts
from tune.stopping import StoppingRule

pytestmark = pytest.mark.core

EPOCHS, RUNG, BINS = 60, 15, 17
RULE = StoppingRule(kept=None)


def flat(bits: float, epochs: int = RUNG) -> list[float]:
    """A curve that has settled."""
    return [bits] * epochs


def expected_fronts(tmp_path: Path, *records: TrialRecord, **how: Any) -> ExpectedFronts:
    ledger = Ledger(open_storage(tmp_path))
    for record in records:
        ledger.put(record)
    return ExpectedFronts(ledger, Forecasts(RULE.rungs(EPOCHS), EPOCHS, math.log2(BINS)), bins=BINS, **how)


def decide(
    tmp_path: Path, newcomer: TrialRecord, *rivals: TrialRecord, rule: StoppingRule = RULE, **how: Any
) -> str | None:
    return rule.reason_to_stop(expected_fronts(tmp_path, newcomer, *rivals, **how), newcomer)


def complete(number: int, params: int, bits: float, family: str = "flow") -> TrialRecord:
    return trial(number, params, flat(bits, EPOCHS), family, "complete")


def test_who_is_alone_goes_on(tmp_path: Path) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(4.0))) is None


def test_what_a_smaller_trial_has_reached_already_is_stopped(tmp_path: Path) -> None:
    reason = decide(tmp_path, trial(0, 1000, flat(3.0)), complete(1, 900, 2.0))
    assert reason is not None
    for message in ("epoch 15", "expected to reach 3.0", "0001-flow reached 2.000 with 900 parameters"):
        assert message in reason


def test_a_running_rival_counts_with_what_it_is_to_reach(tmp_path: Path) -> None:
    reason = decide(tmp_path, trial(0, 1000, flat(3.0)), trial(1, 900, flat(2.0, 30)))
    assert reason is not None
    assert "0001-flow is expected to reach 2.0" in reason


def test_a_trial_that_has_passed_its_front_goes_on(tmp_path: Path) -> None:
    """Whatever a running rival is expected to reach."""
    newcomer, running = trial(0, 1000, flat(3.0)), trial(1, 900, flat(2.0, 30))
    assert decide(tmp_path / "passed", newcomer, running, complete(2, 1000, 3.1)) is None
    assert decide(tmp_path / "behind", newcomer, running, complete(2, 1000, 2.9)) is not None


def test_a_rival_before_its_first_rung_does_not_count(tmp_path: Path) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), trial(1, 900, [2.0])) is None


def test_a_larger_trial_that_is_better_stops_nobody(tmp_path: Path) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), complete(1, 5000, 2.0)) is None


def test_another_family_stops_nobody(tmp_path: Path) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), complete(1, 900, 2.0, family="fvae")) is None


def test_unless_families_compete(tmp_path: Path) -> None:
    rival = complete(1, 900, 2.0, family="fvae")
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), rival, compete=True) is not None


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_stopped_and_failed_trials_stop_nobody(tmp_path: Path, status: Any) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), trial(1, 900, flat(2.0, 30), status=status)) is None


def test_another_seed_of_a_trial_stops_nobody(tmp_path: Path) -> None:
    seed = dataclasses.replace(complete(1, 900, 2.0), replicate_of="0007-flow")
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), seed) is None


def test_who_is_still_learning_fast_is_left_alone(tmp_path: Path) -> None:
    learning = [6.0, 5.0, 4.2, 3.6]
    assert decide(tmp_path, trial(0, 1000, learning), complete(1, 900, 2.8)) is None
    assert decide(tmp_path, trial(0, 1000, flat(3.6, 4)), complete(1, 900, 2.8)) is not None


def test_too_small_a_gain_is_not_worth_it(tmp_path: Path) -> None:
    rivals = (complete(1, 900, 2.5), complete(2, 10_000, 2.2))
    nearly = trial(0, 9_900, flat(2.5))  # what it will gain is 0.005 decades wide
    assert decide(tmp_path, nearly, *rivals) is not None
    assert decide(tmp_path, nearly, *rivals, rule=dataclasses.replace(RULE, least_gain=0.0)) is None


def test_without_sizes_bits_alone_count(tmp_path: Path) -> None:
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), complete(1, 5000, 2.0), by_size=False) is not None


def test_without_forecasts_trials_are_compared_after_equal_training(tmp_path: Path) -> None:
    rival = trial(1, 900, [*flat(3.5), *flat(2.0, 15)])  # 3.5 at the newcomer's rung
    assert decide(tmp_path, trial(0, 1000, flat(3.0)), rival, extrapolate=False) is None
    assert decide(tmp_path, trial(0, 1000, flat(3.6)), rival, extrapolate=False) is not None


def test_one_in_so_many_of_a_size_goes_on_whatever_the_rule_says(tmp_path: Path) -> None:
    rule = StoppingRule(kept=4)
    best = complete(1, 200, 2.0)
    stopped = [trial(number, 1100, flat(3.0), status="stopped") for number in range(2, 5)]
    assert decide(tmp_path / "3", trial(0, 1000, flat(3.0)), best, *stopped[:2], rule=rule) is not None
    assert decide(tmp_path / "4", trial(0, 1000, flat(3.0)), best, *stopped, rule=rule) is None
    gone_on = trial(5, 1200, flat(3.0, RUNG + 1))
    assert decide(tmp_path / "5", trial(0, 1000, flat(3.0)), best, *stopped, gone_on, rule=rule) is not None
    elsewhere = [dataclasses.replace(each, params=10_000) for each in stopped]
    assert decide(tmp_path / "6", trial(0, 1000, flat(3.0)), best, *elsewhere, rule=rule) is not None


def test_rungs() -> None:
    assert StoppingRule().rungs(60) == {4, 8, 15, 30}
    assert StoppingRule().rungs(1) == set()
    assert max(StoppingRule().rungs(4)) < 4


# --- the scheduler -------------------------------------------------------------------------------


def result(epoch: int, bits: float) -> dict[str, Any]:
    return {"epoch": epoch, "val_bpd": bits, "images": epoch, "seconds": float(epoch), **REST}


def arrive(scheduler: FrontScheduler, record: TrialRecord, epoch: int, bits: float) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"id": record.id}), result(epoch, bits))  # type: ignore[arg-type]


def test_the_epoch_and_the_decision_are_one_write(tmp_path: Path) -> None:
    newcomer = trial(0, 1000, flat(3.0, RUNG - 1))
    scheduler = FrontScheduler(expected_fronts(tmp_path, newcomer, complete(1, 900, 2.0)), RULE)
    assert arrive(scheduler, newcomer, RUNG, 3.0) == TrialScheduler.STOP
    record = Ledger(open_storage(tmp_path)).records[newcomer.id]
    assert (record.status, record.epochs) == ("stopped", RUNG)
    assert record.reason.startswith("epoch 15")


def test_between_rungs_nothing_is_stopped(tmp_path: Path) -> None:
    newcomer = trial(0, 1000, flat(3.0, RUNG))
    scheduler = FrontScheduler(expected_fronts(tmp_path, newcomer, complete(1, 900, 2.0)), RULE)
    assert arrive(scheduler, newcomer, RUNG + 1, 3.0) == TrialScheduler.CONTINUE


def test_an_epoch_that_a_crash_repeats_was_judged_the_first_time(tmp_path: Path) -> None:
    newcomer = trial(0, 1000, flat(3.0, RUNG + 2))
    scheduler = FrontScheduler(expected_fronts(tmp_path, newcomer, complete(1, 900, 2.0)), RULE)
    assert arrive(scheduler, newcomer, RUNG, 3.0) == TrialScheduler.CONTINUE


def test_another_seed_is_always_trained_to_the_end(tmp_path: Path) -> None:
    seed = dataclasses.replace(trial(0, 1000, flat(3.0, RUNG - 1)), replicate_of="0007-flow")
    scheduler = FrontScheduler(expected_fronts(tmp_path, seed, complete(1, 900, 2.0)), RULE)
    assert arrive(scheduler, seed, RUNG, 3.0) == TrialScheduler.CONTINUE
