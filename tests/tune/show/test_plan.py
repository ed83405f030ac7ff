"""What is printed before a search starts, and while it runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fvae import TrainConfig
from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from tests.tune.synthetic import record
from tune.propose.candidates import SpaceCandidates
from tune.records.ledger import Ledger, TrialRecord
from tune.records.training_time import SearchClock
from tune.run.assembly import limits_of
from tune.run.budget import Budget
from tune.run.end_forecast import EndForecast, Speed
from tune.settings import SearchSettings
from tune.show import plan
from tune.show.plan import CHANGE, Forecaster, expected_seconds, what_it_costs, what_runs
from tune.space import SearchSpace

pytestmark = pytest.mark.core

DIGITS = load_dataset("digits")
SOURCE = SpaceCandidates(
    SearchSpace.for_images((1, 8, 8), 17), {"channels": 1, "height": 8, "width": 8, "bins": 17}, TrainConfig()
)


def printed(root: Path, records: list[TrialRecord], at_once: int = 2, **options: Any) -> list[str]:
    settings = SearchSettings(**options)
    ledger = Ledger(open_storage(root))
    for each in records:
        ledger.put(each)
    budget = Budget(settings, SearchClock(ledger.root), DIGITS.bins)
    limits = limits_of(settings)
    before = what_runs(settings, DIGITS, ledger, budget)
    return [
        *before.splitlines(),
        *what_it_costs(settings, DIGITS, ledger, budget, SOURCE, limits, at_once).splitlines(),
    ]


def trained(number: int, flops: int, seconds: float, epochs: int = 20, of: int = 20) -> TrialRecord:
    """A trial on the digits that took so long."""
    whole = record(number, "fvae", 1000, 2.5, flops_per_image=flops, train={"epochs": of, "seed": 0})
    attempt = dataclasses.replace(whole.attempts[0], seconds=seconds, images=1257 * epochs)
    return dataclasses.replace(whole, attempts=(attempt,), history=whole.history[:epochs])


def test_a_new_search_says_what_runs_and_that_the_time_is_not_known(tmp_path: Path) -> None:
    lines = printed(tmp_path, [])
    assert lines[:3] == [
        "digits: 1,257 training, 180 validation and 360 test images of 8×8×1, 17 levels",
        "48 trials over fvae, flow, vae, 40 epochs each; sampler front",
        f"Results in {tmp_path}",
    ]
    assert lines[3].startswith("2 trials at a time, each with 1 core; a whole training takes about ")
    assert lines[4:] == ["How long it takes is printed when the first trials have ended"]


def test_every_budget_and_limit_is_named(tmp_path: Path) -> None:
    lines = printed(
        tmp_path, [], 1, time_budget="2h", gpu_hours=3.5, patience=9, seeds=3, max_params=50_000, max_memory="1GiB",
        sampler="tpe", families=("vae",), gpus_per_trial=0.5,
    )  # fmt: skip
    assert lines[1] == "Trials over vae, 40 epochs each; sampler tpe"
    assert lines[2] == (
        "Ends after 2h of training or after 3.5 hours of GPUs or after 9 trials in a row that move no family's front"
    )
    assert lines[3] == "No model of more than 50,000 parameters or 1GiB of memory in training"
    assert lines[4] == "The fronts' models are then trained with 3 seeds"
    assert lines[6].startswith("1 trial at a time, each with 1 core and 0.5 GPU; ")
    lines = printed(tmp_path, [], goal="front", trials=9, patience=3)
    assert lines[1] == "9 trials over fvae, flow, vae, 40 epochs each; sampler front, one front for all families"
    assert lines[2] == "Ends after 3 trials in a row that do not move the front"


def test_earlier_trials_say_what_the_rest_costs(tmp_path: Path) -> None:
    """On a machine where a FLOP takes its time and nothing else does."""
    images = 60 * 1257
    records = [trained(number, flops, 1e-9 * flops * 1257 * 20) for number, flops in enumerate((10**4, 10**5, 10**6))]
    lines = printed(tmp_path, records, trials=33)
    drawn = [each for family in ("fvae", "flow", "vae") for each in SOURCE.draw(family, 300, np.random.default_rng(7))]
    each = 1e-9 * float(np.mean([candidate.flops_per_image for candidate in drawn])) * images
    found = expected_seconds(drawn, records, images)
    assert found == pytest.approx(each, rel=0.02)
    assert "3 done before, 0 to resume" in lines[1]
    minutes = float(lines[-1].removeprefix("Roughly ").split("m")[0])
    assert minutes == pytest.approx(30 * each / 2 / 60, rel=0.35)  # of other models that are drawn
    assert "for 30 trials" in lines[-1]


def test_trials_that_were_stopped_make_the_others_cheaper(tmp_path: Path) -> None:
    drawn = SOURCE.draw("flow", 20, np.random.default_rng(0))
    whole = [trained(number, 1000 * (number + 1), 60.0) for number in range(4)]
    half = [trained(number, 1000 * (number + 1), 30.0, epochs=10) for number in range(4)]
    first, second = (expected_seconds(drawn, records, 1257 * 20) for records in (whole, half))
    assert first is not None and second == pytest.approx(first / 2)


def test_speed_is_overhead_for_small_models_and_flops_for_large_ones() -> None:
    truth = {flops: 1257 * 20 * (2e-5 + 1e-10 * flops) for flops in (10**3, 10**5, 10**6, 10**8)}
    speed = Speed(trained(number, flops, seconds) for number, (flops, seconds) in enumerate(truth.items()))
    for flops, seconds in truth.items():
        assert speed.seconds(flops, 1257 * 20) == pytest.approx(seconds, rel=1e-3)
    assert not Speed([trained(number, 1000, 5.0) for number in range(9)]).known  # all are of one size


def test_speed_is_right_on_average_on_a_machine_that_does_other_things_too() -> None:
    """Each trial takes between once and five times as long as it would alone."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(30):
        flops = (10 ** rng.uniform(3, 8, 8)).astype(int)
        alone = 1257 * 20 * (2e-5 + 1e-10 * flops)
        slower = np.exp(rng.uniform(0, np.log(5), 8))
        speed = Speed(trained(n, int(flops[n]), float(alone[n] * slower[n])) for n in range(8))
        expected = 4 / np.log(5) * 1257 * 20 * (2e-5 + 1e-10 * 10**6)
        ratios.append(speed.seconds(10**6, 1257 * 20) / expected)
    assert 0.8 < np.median(ratios) < 1.25
    assert np.mean([1 / 2.5 < ratio < 2.5 for ratio in ratios]) > 0.9


def test_a_forecast_is_said_first_and_then_only_when_it_changes_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchSettings()
    ledger = Ledger(open_storage(tmp_path))
    budget = Budget(settings, SearchClock(ledger.root), DIGITS.bins)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(plan.time, "monotonic", lambda: clock.now)
    made: list[EndForecast | None] = [None]
    monkeypatch.setattr(plan, "forecast_end", lambda *_, **__: made[0])

    def news(seconds: float | None, after: float) -> str | None:
        clock.now += after
        made[0] = None if seconds is None else EndForecast(
            seconds=seconds, low=0.8 * seconds, high=2 * seconds, complete=30, stopped=18, unfinished=0,
            held_seconds=7200.0,
        )  # fmt: skip
        return forecaster.news()

    forecaster = Forecaster(ledger, budget, 60, 2)
    assert news(None, 10) is None and forecaster.seconds_left is None
    first = news(3600, 10)
    assert first is not None and first.startswith("Forecast: trained in 1h00m (80%: 48m00s to 2h00m), at ")
    assert first.endswith("; 30 complete and 18 stopped trials, 2 core hours in all")
    assert news(3000, 600) is None  # as was printed
    assert news(3000 / CHANGE * 1.1, 0.1) is None  # not asked again within a second
    clock.now += 5
    assert forecaster.seconds_left is not None
    assert news(2400 / CHANGE * 0.9, 600) is not None
    assert news(10, 2) is None  # not worth a line
