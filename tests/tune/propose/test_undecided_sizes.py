"""Where the verdict is open, and that a search that is to decide it trains there."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvae.config import ConfigError
from pipelines.cli.quantities import duration
from tests.commands import call
from tests.tune.propose.test_front_proposer import proposer, searched
from tests.tune.small_space import SOURCE
from tests.tune.synthetic import SEARCH, record, true_bpd
from tune.map.tradeoff import build_tradeoff
from tune.propose.expected_improvement import Staircase
from tune.propose.undecided_sizes import UndecidedRanges, UndecidedSizes
from tune.records.ledger import TrialRecord
from tune.settings import SearchSettings
from tune.stats.forecasts import Forecasts

pytestmark = pytest.mark.core

UNTRAINED = Forecasts((), 1, 4.0)


def trials(gap: Callable[[float], float], count: int = 14, seed: int = 0) -> list[TrialRecord]:
    """Flows and f-VAEs of all sizes; ``gap(log10 N)`` is what the f-VAE has fewer."""
    rng = np.random.default_rng(seed)
    records = []
    for family in ("flow", "fvae"):
        for size in np.linspace(3.3, 5.0, count):
            bits = true_bpd(10**size) - (gap(size) if family == "fvae" else 0.0) + rng.exponential(0.02)
            records.append(record(len(records), family, round(10**size), float(bits)))
    return records


def test_a_clear_difference_leaves_nothing_open() -> None:
    assert UndecidedSizes(UNTRAINED, 0).of(trials(lambda size: 0.5)) is None


def test_families_that_cross_are_open_around_the_crossing() -> None:
    is_open = UndecidedSizes(UNTRAINED, 0).of(trials(lambda size: 0.6 * (size - 4.2)))
    assert is_open is not None
    assert any(low < 4.25 and high > 4.15 for low, high in is_open.ranges)
    assert sum(high - low for low, high in is_open.ranges) < 0.7
    assert is_open.family in ("fvae", "flow")


def test_the_family_with_fewer_trials_is_less_sure() -> None:
    both = trials(lambda size: 0.0, count=20)
    flows = [each for each in both if each.family == "flow"]
    fvaes = [each for each in both if each.family == "fvae"][::5]
    is_open = UndecidedSizes(UNTRAINED, 0).of([*flows, *fvaes])
    assert is_open is not None
    assert is_open.family == "fvae"


def test_too_few_trials_say_nothing() -> None:
    assert UndecidedSizes(UNTRAINED, 0).of(trials(lambda size: 0.0)[:15]) is None


def test_it_looks_again_only_when_a_trial_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    undecided = UndecidedSizes(UNTRAINED, 0)
    monkeypatch.setattr(undecided, "_find", lambda ended: looked.append(len(ended)))
    records = trials(lambda size: 0.0)
    begun = record(99, "flow", 1000, 3.0, status="running")
    for known in (records, [*records, begun], records[:-1]):
        undecided.of(known)
    assert looked == [28, 27]


def test_only_counted_sizes_are_worth_anything() -> None:
    """A front of one point at 10^3; a model of 10^2 that reaches the same, and one of 10^3 that reaches less."""
    sizes, mean, spread = np.array([2.0, 3.0]), np.array([2.0, 1.5]), np.array([1e-6, 1e-6])
    whole = Staircase([(3.0, 2.0)], (4.0, 3.0))
    assert whole.expected_improvement(sizes, mean, spread) == pytest.approx([1.0, 0.5])
    some = Staircase([(3.0, 2.0)], (4.0, 3.0), [(2.5, 3.25), (3.5, 3.75)])
    assert some.expected_improvement(sizes, mean, spread) == pytest.approx([0.5, 0.25])
    none = Staircase([(3.0, 2.0)], (4.0, 3.0), [(5.0, 6.0)])
    assert none.expected_improvement(sizes, mean, spread) == pytest.approx([0.0, 0.0])


class _Open(UndecidedSizes):
    """Sizes that are undecided in given ranges."""

    def __init__(self, ranges: tuple[tuple[float, float], ...]) -> None:
        super().__init__(UNTRAINED, 0)
        self.ranges = ranges

    def _find(self, ended: Any) -> Any:
        return UndecidedRanges(self.ranges, "fvae") if self.ranges else None


def test_the_search_trains_where_it_is_open(tmp_path: Path) -> None:
    fvaes = [
        TrialRecord(**(vars(each) | {"id": f"{20 + place:04d}-fvae"}))
        for place, each in enumerate(searched(12, "fvae"))
    ]
    records = [*searched(12, "flow"), *fvaes]
    inside = proposer(tmp_path / "open", records, undecided=_Open(((4.0, 4.3),)))
    anywhere = proposer(tmp_path / "map", records)
    assert inside.least_certain_family(["fvae", "flow", "vae"]) == "fvae"
    assert inside.least_certain_family(["flow", "vae"]) is None  # no f-VAE is left
    assert proposer(tmp_path / "decided", records, undecided=_Open(())).least_certain_family(["fvae", "flow"]) is None

    def largest(made: Any) -> float:
        return max(float(np.log10(made.propose("fvae").params)) for _ in range(8))

    assert largest(inside) < 4.3 < largest(anywhere)


def test_first_models_come_first(tmp_path: Path) -> None:
    first = {"vae": SOURCE.designs("vae", 2)}
    made = proposer(tmp_path, searched(12), first=first, undecided=_Open(((4.0, 4.3),)))
    assert made.least_certain_family(["fvae", "flow", "vae"]) is None


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"families": ("flow", "vae")}, "--families names flow, vae"),
        ({"sampler": "tpe"}, "--sampler tpe"),
    ],
)
def test_what_it_needs_is_said(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        SearchSettings(goal="decide", **options)


# --- the command that would settle it --------------------------------------------------------------------


def advice(records: list[TrialRecord], **search: Any) -> str:
    settings = SearchSettings(dataset="my images", max_params=200_000, gpus_per_trial="auto")
    budget = SEARCH["budget"] | {"ended": "--trials 28: all started"}
    search_json = SEARCH | {"options": settings.options_to_decide(), "seconds": 280.0, "budget": budget} | search
    return build_tradeoff(records, search_json)["claim"]["would_decide"]


def test_what_is_open_has_a_command_and_a_cost() -> None:
    """It is a line for a shell, and the search's own options but for its budget and its goal."""
    line = advice(trials(lambda size: 0.02, count=14))
    found = re.search(r"This extends the search to (\d+) trials, in about (.+?): make search ARGS=(.*)$", line)
    assert found, line
    assert int(found[1]) > 28
    assert found[2] == duration(280 * (int(found[1]) - 28) / 28)
    (options,) = shlex.split(found[3])
    assert call(lambda settings: print(settings) or 0, SearchSettings, *shlex.split(options)).out.strip() == str(
        SearchSettings(
            dataset="my images", max_params=200_000, gpus_per_trial="auto", goal="decide", trials=int(found[1])
        )
    )


def test_where_more_trials_would_not_help_there_is_none() -> None:
    assert "make search" not in advice(trials(lambda size: 0.5))  # decided
    ended = SEARCH["budget"] | {"ended": "--trials 28: all started"}
    for changes in ({"budget": ended | {"goal": "front"}}, {"budget": ended | {"ended": None}}, {"options": None}):
        assert "make search" not in advice(trials(lambda size: 0.02), **changes)


def test_too_few_trials_have_one_too() -> None:
    assert "make search ARGS=" in advice(trials(lambda size: 0.0)[12:16])


@pytest.mark.parametrize(
    "options",
    [{}, {"families": ("flow", "fvae")}, {"sampler": "tpe"}, {"families": ("vae",)}, {"trials": 9, "seeds": 3}],
)
def test_options_are_those_of_the_search(options: dict[str, Any]) -> None:
    settings = SearchSettings(**options)
    words = settings.options_to_decide()
    if options.get("families") == ("vae",):
        assert words is None
        return
    assert words is not None
    printed = call(lambda settings: print(settings) or 0, SearchSettings, *words).out.strip()
    wanted = dataclasses.replace(settings, trials=None, goal="map" if "sampler" in options else "decide")
    assert printed == str(wanted)
