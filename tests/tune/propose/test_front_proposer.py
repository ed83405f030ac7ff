"""The default proposer, on the digits' space with made-up bits/dim."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvae.config import ConfigError
from fvae.epoch_metrics import EpochMetrics
from fvae.train_config import TrainConfig
from pipelines.storage import open_storage
from tests.tune.curves import REST
from tests.tune.small_space import DIGITS, NO_LIMITS, ONE_POINT, SOURCE, SPACE, trial
from tune.propose import limits
from tune.propose.candidates import Candidate, SpaceCandidates
from tune.propose.designs import first_models, spread_order
from tune.propose.expected_front import ExpectedFronts
from tune.propose.front_proposer import FrontProposer
from tune.propose.limits import Limits
from tune.propose.surrogate import Surrogate, UnitCube
from tune.records.ledger import Ledger, TrialRecord
from tune.space import suggest
from tune.stats.forecasts import Forecasts

pytestmark = pytest.mark.core

EPOCHS = 60


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for an untried model gives up after 300 draws instead of 10,000."""
    monkeypatch.setattr(limits, "MOST_DRAWN", 300)


def proposer(tmp_path: Path, records: list[TrialRecord] = (), **changes: Any) -> FrontProposer:  # type: ignore[assignment]
    ledger = Ledger(open_storage(tmp_path))
    for record in records:
        ledger.put(record)
    expected = ExpectedFronts(ledger, Forecasts((4, 15), EPOCHS, math.log2(DIGITS["bins"])), bins=DIGITS["bins"])
    options: dict[str, Any] = {"source": SOURCE, "limits": NO_LIMITS, "space": SPACE, "first": {}} | changes
    made = FrontProposer(expected, images=DIGITS, epochs=EPOCHS, seed=0, **options)
    for record in ledger.records.values():
        made.tell(record)
    return made


def searched(count: int, family: str = "flow", seed: int = 0) -> list[TrialRecord]:
    """Complete trials of random models."""
    drawn = SOURCE.draw(family, count, np.random.default_rng(seed))
    return [trial(number, each, val_bpd=smooth_bpd(each)) for number, each in enumerate(drawn)]


def smooth_bpd(candidate: Candidate) -> float:
    """Larger is better, and so is a smaller learning rate."""
    return 2 + 12 * candidate.params**-0.3 + 0.6 * rate_off(candidate)


def rate_off(candidate: Candidate | TrialRecord) -> float:
    """How far its learning rate is from the least of the space, on a log scale: up to 1.2."""
    return math.log(candidate.train["learning_rate"] / SPACE.learning_rate[0])


def stopped(number: int, candidate: Candidate, bits: float, epochs: int) -> TrialRecord:
    history = tuple(
        EpochMetrics(epoch=epoch, val_bpd=bits, images=epoch, seconds=1.0, **REST)  # type: ignore[arg-type]
        for epoch in range(1, epochs + 1)
    )
    return trial(number, candidate, "stopped", history=history, val_bpd=bits)


def test_the_first_models_come_first_and_cover_the_sizes_at_any_time(tmp_path: Path) -> None:
    first = first_models(SOURCE, NO_LIMITS, ["flow"], None)
    made = proposer(tmp_path, first=first)
    proposed = [made.propose("flow") for _ in first["flow"]]
    assert [each.key for each in proposed] == [first["flow"][place].key for place in spread_order(len(proposed))]


def test_nothing_is_proposed_twice(tmp_path: Path) -> None:
    records = searched(20)
    made = proposer(tmp_path, records)
    proposed = [made.propose("flow") for _ in range(30)]
    keys = [each.key for each in (*proposed, *map(Candidate.of, records)) if isinstance(each, Candidate)]
    assert len(set(keys)) == len(keys) == 50


def test_it_learns_what_is_good(tmp_path: Path) -> None:
    made = proposer(tmp_path, searched(40))
    at_random = [rate_off(each) for each in SOURCE.draw("flow", 200, np.random.default_rng(1))]
    assert np.mean([rate_off(made.propose("flow")) for _ in range(12)]) < 0.6 * np.mean(at_random)


def test_a_killed_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    records = searched(15)
    whole = proposer(tmp_path / "whole", records)
    proposals = [whole.propose("flow")]
    whole.expected.ledger.put(trial(15, proposals[0]))  # type: ignore[arg-type]
    proposals.append(whole.propose("flow"))
    resumed = proposer(tmp_path / "resumed", [*records, trial(15, proposals[0])])  # type: ignore[arg-type]
    assert resumed.propose("flow").key == proposals[1].key  # type: ignore[union-attr]


def test_a_stopped_trial_goes_on_when_that_is_the_best_use_of_epochs(tmp_path: Path) -> None:
    records = searched(20)
    small = min(SOURCE.draw("flow", 50, np.random.default_rng(5)), key=lambda each: each.params)
    best = min(record.val_bpd for record in records if record.val_bpd)
    promising = stopped(20, small, best - 0.3, 15)  # better than everything, and tiny
    assert proposer(tmp_path / "good", [*records, promising]).propose("flow") == promising
    hopeless = stopped(20, small, 4.0, 15)
    assert isinstance(proposer(tmp_path / "bad", [*records, hopeless]).propose("flow"), Candidate)


def test_a_stopped_trial_beyond_the_limits_of_today_does_not_go_on(tmp_path: Path) -> None:
    records = searched(20)
    best = min(record.val_bpd for record in records if record.val_bpd)
    small = sorted(SOURCE.draw("flow", 50, np.random.default_rng(5)), key=lambda each: each.params)[3]
    promising = stopped(20, small, best - 0.3, 15)
    assert proposer(tmp_path / "before", [*records, promising]).propose("flow") == promising
    limited = proposer(tmp_path / "now", [*records, promising], limits=Limits(max_params=small.params - 1))
    assert isinstance(limited.propose("flow"), Candidate)


def test_what_runs_already_is_not_sought_again(tmp_path: Path) -> None:
    """Eight workers ask at once: they get models of different sizes."""
    made = proposer(tmp_path, searched(20))
    sizes = []
    for number in range(20, 28):
        candidate = made.propose("flow")
        assert isinstance(candidate, Candidate)
        sizes.append(math.log10(candidate.params))
        made.expected.ledger.put(trial(number, candidate, "running", val_bpd=None))
    assert np.ptp(sizes) > 0.5


def test_limits_hold_and_memory_is_counted_for_the_chosen_one_alone(tmp_path: Path) -> None:
    counted = []
    limits = Limits(max_params=10_000, max_memory=10**9)
    allows = Limits.allows
    made = proposer(tmp_path, searched(10), limits=limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Limits, "allows", lambda self, each: counted.append(self.max_memory) or allows(self, each))
        proposed = made.propose("flow")
    assert isinstance(proposed, Candidate)
    assert proposed.params <= 10_000
    assert sum(memory is not None for memory in counted) == 1


@pytest.mark.usefixtures("soon_given_up")
def test_no_model_within_the_limits_is_one_clear_line(tmp_path: Path) -> None:
    made = proposer(tmp_path, limits=Limits(max_params=3))
    with pytest.raises(ConfigError, match="--max-params 3"):
        made.propose("flow")
    too_little = proposer(tmp_path / "memory", searched(5), limits=Limits(max_memory=1))
    with pytest.raises(ConfigError, match="--max-memory 1"):
        too_little.propose("flow")


@pytest.mark.usefixtures("soon_given_up")
def test_when_every_model_is_tried_stopped_ones_go_on(tmp_path: Path) -> None:
    source = SpaceCandidates(ONE_POINT, DIGITS, TrainConfig())
    only = source.draw("flow", 1, np.random.default_rng(0))[0]
    record = stopped(0, only, 3.0, 15)
    made = proposer(tmp_path, [record], source=source, space=ONE_POINT)
    assert made.propose("flow") == record
    made.expected.ledger.update(record.id, status="complete")
    with pytest.raises(ConfigError, match="no untried model"):
        made.propose("flow")


def test_the_family_that_gains_most_is_next_where_families_compete(tmp_path: Path) -> None:
    """The flows' front is far below all that VAEs reach: it is no use to train a VAE."""
    flows = [dataclasses.replace(record, val_bpd=(record.val_bpd or 0) - 1.0) for record in searched(20)]
    vaes = [
        dataclasses.replace(record, id=f"{20 + number:04d}-vae", val_bpd=4.0)
        for number, record in enumerate(searched(20, "vae"))
    ]
    made = proposer(tmp_path, [*flows, *vaes])
    made.expected.compete = True
    assert made.best_family(["vae", "flow"]) == "flow"


def test_earlier_trials_teach_and_are_not_repeated(tmp_path: Path) -> None:
    earlier = [dataclasses.replace(record, id=f"{record.id}@before") for record in searched(40)]
    made = proposer(tmp_path, earlier=earlier)
    assert np.mean([rate_off(made.propose("flow")) for _ in range(12)]) < 0.2
    assert all(Candidate.of(record) not in made.untried for record in earlier)


def cube(family: str) -> UnitCube:
    return UnitCube(lambda trial: suggest(trial, family, SPACE, DIGITS))


def test_a_trial_of_a_choice_that_is_gone_counts_on_the_front_alone(tmp_path: Path) -> None:
    """It is so when a search goes on with fewer --likelihoods."""
    records = searched(12, "fvae")
    left = records[0].suggestion["likelihood"]
    space = dataclasses.replace(SPACE, likelihood=(left,))
    source = SpaceCandidates(space, DIGITS, TrainConfig())
    assert any(each.suggestion["likelihood"] != left for each in records)
    proposed = proposer(tmp_path, records, space=space, source=source).propose("fvae")
    assert isinstance(proposed, Candidate)
    assert proposed.suggestion["likelihood"] == left


# --- the surrogate -------------------------------------------------------------------------------


def test_points_lie_in_the_unit_cube_and_have_the_same_coordinates() -> None:
    for family in ("vae", "flow", "fvae"):
        points = np.array(
            [cube(family).point(each.suggestion) for each in SOURCE.draw(family, 50, np.random.default_rng(0))]
        )
        assert points.min() >= 0
        assert points.max() <= 1
        assert len(np.unique(points, axis=0)) == 50


def test_it_forecasts_better_than_size_alone() -> None:
    drawn = SOURCE.draw("flow", 120, np.random.default_rng(3))
    points = np.array([cube("flow").point(each.suggestion) for each in drawn])
    sizes = np.log10([each.params for each in drawn])
    bits = np.array([smooth_bpd(each) for each in drawn])
    surrogate = Surrogate(points[:40], sizes[:40], bits[:40], np.zeros(40))
    mean, spread = surrogate.predict(points[40:], sizes[40:])
    line = np.polyval(np.polyfit(sizes[:40], bits[:40], 1), sizes[40:])
    assert np.sqrt(np.mean((mean - bits[40:]) ** 2)) < 0.5 * np.sqrt(np.mean((line - bits[40:]) ** 2))
    assert np.mean(np.abs(mean - bits[40:]) < 2 * np.hypot(spread, 0.1)) > 0.9
