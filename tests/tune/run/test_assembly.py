"""What the settings of a search make of its parts, by what the parts then do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from pipelines.data.datasets import load_dataset
from pipelines.storage import open_storage
from tests.tune.curves import REST, trial
from tests.tune.small_space import SOURCE, Allowed, finish, made_up_bpd
from tune.propose.candidates import Candidate
from tune.records.ledger import Ledger, TrialRecord
from tune.run.assembly import Parts, Strategy, assemble
from tune.run.resources import Resources
from tune.run.tune_scheduler import FrontScheduler, PlacingScheduler
from tune.settings import SearchSettings
from tune.stopping import StoppingRule

pytestmark = pytest.mark.core

IMAGES = load_dataset("digits")
EPOCHS, RUNG = 60, 15
NEWCOMER = trial(0, 1000, [3.0] * (RUNG - 1), "flow")
"""It is about to reach a rung, with a settled curve."""


def made(root: Path, *records: TrialRecord, strategy: Strategy | None = None, **options: Any) -> Parts:
    """The parts of a search that has these trials, as the command makes them."""
    settings = SearchSettings(storage=str(root), epochs=EPOCHS, **options)
    ledger = Ledger(open_storage(root / "run"))
    for record in records:
        ledger.put(record)
    return assemble(settings, IMAGES, ledger, Allowed(100), strategy=strategy)


def complete(params: int, bits: float, family: str) -> TrialRecord:
    return trial(1, params, [bits] * EPOCHS, family, "complete")


def stops(scheduler: FrontScheduler, bits: float = 3.0) -> bool:
    """Whether the newcomer is stopped when Tune reports its rung, as the ledger has it then."""
    result = {"epoch": RUNG, "val_bpd": bits, "images": 1, "seconds": 1.0, **REST}
    config = {"id": NEWCOMER.id}
    decision = scheduler.on_trial_result(None, SimpleNamespace(config=config), result)  # type: ignore[arg-type]
    stopped = scheduler.expected.ledger.records[NEWCOMER.id].status == "stopped"
    assert stopped == (decision == TrialScheduler.STOP)
    return stopped


def test_limits_bind_what_an_earlier_session_has_begun(tmp_path: Path) -> None:
    small, *_, large = sorted(SOURCE.draw("flow", 20, np.random.default_rng(0)), key=lambda each: each.params)
    begun = [
        TrialRecord(
            id=f"{number:04d}-flow",
            family="flow",
            config=each.model.to_dict(),
            train=each.train,
            params=each.params,
            flops_per_image=each.flops_per_image,
            suggestion=each.suggestion,
        )
        for number, each in enumerate((small, large))
    ]
    parts = made(tmp_path / "as before", *begun)
    assert [parts.searcher.suggest(str(number))["id"] for number in range(2)] == ["0000-flow", "0001-flow"]  # type: ignore[index]
    limited = made(tmp_path / "limited", *begun, max_params=large.params - 1)
    suggested = [limited.searcher.suggest(str(number)) for number in range(2)]
    assert [each["id"] for each in suggested] == ["0000-flow", "0002-fvae"]  # type: ignore[index]


# --- --goal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "rival", "stopped"),
    [
        ("front", complete(900, 2.0, "fvae"), True),
        ("map", complete(900, 2.0, "fvae"), False),
        ("front", complete(1100, 2.0, "fvae"), False),  # which is larger
        ("front", complete(900, 2.0, "flow"), True),
        ("map", complete(900, 2.0, "flow"), True),
    ],
)
def test_a_smaller_and_better_model_of_another_family_stops_a_trial_where_families_compete(
    tmp_path: Path, goal: str, rival: TrialRecord, stopped: bool
) -> None:
    parts = made(tmp_path, NEWCOMER, rival, goal=goal)
    resources = Resources(SearchSettings(goal=goal, epochs=EPOCHS), None, (), None)
    assert stops(PlacingScheduler(parts.expected, resources)) == stopped  # the scheduler of the search itself


@pytest.mark.parametrize(("goal", "shares"), [("front", {"vae": 6}), ("map", {"flow": 3, "vae": 3})])
def test_turns_go_to_the_family_that_is_worth_most_where_families_compete(
    tmp_path: Path, goal: str, shares: dict[str, int]
) -> None:
    """Every flow is worse than the smallest VAE, so another flow enlarges no front but its family's."""
    search = made(tmp_path, goal=goal, families=("vae", "flow"), trials=2).searcher
    for number in range(14):
        trial_id = search.suggest(str(number))["id"]
        record = search.ledger.records[trial_id]
        bits = made_up_bpd(Candidate.of(record)) if record.family == "vae" else 4.05
        finish(search, str(number), trial_id, val_bpd=min(bits, 4.0 if record.family == "vae" else bits))
    records = list(search.ledger.records.values())
    assert Counter(record.family for record in records[8:]) == shares


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized"])
def test_models_are_of_the_likelihoods_that_are_asked_for(tmp_path: Path, likelihood: str) -> None:
    parts = made(tmp_path, likelihoods=(likelihood,))
    drawn = parts.source.draw("fvae", 20, np.random.default_rng(0)) + parts.source.designs("vae", 6)
    assert {each.model.likelihood for each in drawn} == {likelihood}
    both = made(tmp_path).source.draw("fvae", 20, np.random.default_rng(0))
    assert {each.model.likelihood for each in both} == {"gaussian", "discretized"}


# --- what benchmarks replace ---------------------------------------------------------------------------------

LATE = trial(1, 900, [3.5] * RUNG + [2.0] * 15, "flow")
"""It was worse than the newcomer at the rung, and is better since."""
HOPELESS = [trial(number, 1100, [3.0] * RUNG, "flow", "stopped") for number in range(2, 20)]


@pytest.mark.parametrize(
    ("strategy", "rivals", "stopped"),
    [
        (Strategy(), [complete(900, 2.0, "flow")], True),
        (Strategy(rule=StoppingRule(rung_shares=())), [complete(900, 2.0, "flow")], False),
        (Strategy(), [complete(5000, 2.0, "flow")], False),
        (Strategy(by_size=False), [complete(5000, 2.0, "flow")], True),
        (Strategy(), [LATE], True),
        (Strategy(extrapolate=False), [LATE], False),
        (Strategy(), [complete(200, 2.0, "flow"), *HOPELESS], False),  # one in sixteen of its size goes on
        (Strategy(rule=StoppingRule(kept=None)), [complete(200, 2.0, "flow"), *HOPELESS], True),
    ],
)
def test_a_strategy_decides_who_is_stopped(
    tmp_path: Path, strategy: Strategy, rivals: list[TrialRecord], stopped: bool
) -> None:
    parts = made(tmp_path, NEWCOMER, *rivals, strategy=strategy)
    assert stops(FrontScheduler(parts.expected, strategy.rule)) == stopped


@pytest.mark.parametrize("designs", [0, 2])
def test_a_strategy_decides_how_many_sound_models_come_first(tmp_path: Path, designs: int) -> None:
    search = made(tmp_path, families=("flow",), strategy=Strategy(designs=designs)).searcher
    suggestions = []
    for number in range(3):
        search.suggest(str(number))
        suggestions.append(list(search.ledger.records.values())[-1].suggestion)
    sound = [design.suggestion for design in SOURCE.designs("flow", 2)]
    assert [each in sound for each in suggestions] == [True] * designs + [False] * (3 - designs)


def test_only_this_project_s_sampler_chooses_from_another_source(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(tmp_path))
    for options in ({"sampler": "tpe"}, {"warm_start": "earlier"}):
        with pytest.raises(ValueError, match="another source needs the sampler 'front'"):
            assemble(SearchSettings(**options), IMAGES, ledger, Allowed(1), source=SOURCE)  # type: ignore[arg-type]
