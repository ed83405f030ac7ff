"""What ``tradeoff.json`` and ``trials.csv`` promise."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optuna
import pytest

from pipelines.storage import open_storage
from tests.tune.synthetic import SEARCH, failed, read_test, record, stopped, world
from tune.map import scaling
from tune.map.figures import size_figure
from tune.map.importance import parameter_importance
from tune.map.page import write_page
from tune.map.plots import write_plot
from tune.map.scaling import saturation
from tune.map.tradeoff import build_tradeoff, write_tradeoff
from tune.map.training_compute import best_so_far, training_flops
from tune.records.ledger import TrialRecord

pytestmark = pytest.mark.core

EDGE_CASES: dict[str, list[TrialRecord]] = {
    "nothing": [],
    "none complete": [failed(0, "flow", 5000, "loss is nan"), stopped(record(1, "fvae", 9000, 2.5), 3)],
    "one trial": [record(0, "fvae", 5000, 2.5)],
    "one family": world(1, 7, families=("vae",)),
    "one of each": [record(0, "fvae", 5000, 2.5), record(1, "flow", 6000, 2.4), record(2, "vae", 7000, 2.6)],
    "all alike": [record(index, "flow", 5000, 2.5) for index in range(5)],
}


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """The fits get few resamples: ``test_scaling.py`` tests what they are for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "REPLICATES", 20)
        yield


@pytest.fixture(scope="module")
def records() -> list[TrialRecord]:
    complete = [read_test(trial) for trial in world(0.5, 8, families=("fvae", "flow", "vae"))]
    return [
        *complete,
        stopped(record(50, "flow", 500, 0.2), 3),
        failed(51, "vae", 600, "bits/dim is not finite"),
        record(52, "fvae", 700, 0.1, status="running", val_bpd=None, best_epoch=None),
    ]


@pytest.fixture(scope="module")
def tradeoff(records: list[TrialRecord]) -> dict[str, Any]:
    return build_tradeoff(records, SEARCH)


def test_structure(tradeoff: dict[str, Any]) -> None:
    assert {"dataset", "seed", "budget", "trials", "fronts", "hypervolume", "fits", "claim"} <= set(tradeoff)
    assert tradeoff["dataset"] == SEARCH["dataset"] and tradeoff["seed"] == 7
    for trial in tradeoff["trials"]:
        assert {
            "id", "family", "params", "flops_per_image", "status", "reason", "epochs", "seconds", "val_bpd", "test_bpd",
            "test_bpd_iwae64", "sigma1", "sigma2", "config",
        } <= set(trial)  # fmt: skip
        assert trial["status"] in ("complete", "stopped", "failed")
    assert set(tradeoff["fronts"]) == {"all", "fvae", "flow", "vae"}
    for family in ("fvae", "flow", "vae"):
        assert {"a", "b", "alpha", "ci95"} <= set(tradeoff["fits"][family])
    claim = tradeoff["claim"]
    assert {"at_bpd", "ci95"} <= set(claim["params_ratio_fvae_over_flow"])
    assert claim["verdict"] in ("supported", "refuted", "undecided") and claim["why"] and claim["would_decide"]


def test_part_trained_trials_keep_their_figure_and_enter_nothing(
    tradeoff: dict[str, Any], records: list[TrialRecord]
) -> None:
    part_trained = next(trial for trial in tradeoff["trials"] if trial["status"] == "stopped")
    assert part_trained["val_bpd"] == records[-3].history[-1].val_bpd
    assert part_trained["sigma1"] == records[-3].history[-1].sigma1
    assert part_trained["figures"]["val_bpd"]["fully_trained"] is False
    assert tradeoff["unfinished"] == ["0052-fvae"]
    assert not {"0050-flow", "0051-vae", "0052-fvae"} & set(sum(tradeoff["fronts"].values(), []))
    complete = [trial for trial in records if trial.status == "complete"]
    alone = build_tradeoff(complete, SEARCH)
    for key in ("fronts", "hypervolume", "fits", "importance"):
        assert tradeoff[key] == alone[key]
    assert tradeoff["claim"]["trials"] == alone["claim"]["trials"]


def test_the_goal_of_the_search_decides_whether_there_may_be_a_verdict() -> None:
    records = world(0.4, 12, scatter=0.01)
    goals = {goal: SEARCH | {"budget": SEARCH["budget"] | {"goal": goal}} for goal in ("map", "front")}
    claims = {goal: build_tradeoff(records, search)["claim"] for goal, search in goals.items()}
    assert [claim["verdict"] for claim in claims.values()] == ["supported", "undecided"]


def test_further_seeds_are_error_bars_and_nothing_else(
    records: list[TrialRecord], tradeoff: dict[str, Any], tmp_path: Path
) -> None:
    alone = tradeoff
    first = next(trial for trial in records if trial.id == alone["fronts"]["flow"][0])
    seeds = [
        dataclasses.replace(first, id=f"{90 + number:04d}-flow", replicate_of=first.id, val_bpd=bpd, test=None)
        for number, bpd in enumerate((0.1, 0.3))
    ]
    with_seeds = build_tradeoff([*records, *seeds], SEARCH)
    for key in ("fronts", "hypervolume", "fits", "importance"):
        assert with_seeds[key] == alone[key]
    width = [np.ptp(each["claim"]["bpd_difference_fvae_minus_flow"]["ci95"]) for each in (alone, with_seeds)]
    assert width[1] > width[0]  # seeds that lie so far apart make every difference less sure
    bpds = [first.val_bpd or 0, 0.1, 0.3]
    assert alone["seeds"] == {}
    assert with_seeds["seeds"] == {
        first.id: {
            "seeds": 3,
            "val_bpd_mean": pytest.approx(np.mean(bpds)),
            "val_bpd_std": pytest.approx(np.std(bpds, ddof=1)),
        }
    }
    assert [trial["replicate_of"] for trial in with_seeds["trials"][-2:]] == [first.id] * 2
    (bar,) = [each for each in size_figure(with_seeds).data if each.error_y.array is not None]
    assert list(bar.x) == [first.params] and list(bar.error_y.array) == [with_seeds["seeds"][first.id]["val_bpd_std"]]
    points = [value for each in size_figure(with_seeds).data if each.hovertext for value in each.y]
    assert 0.1 not in points and 0.3 not in points
    pictures = []
    for drawn, trials in ((alone, records), (with_seeds, [*records, *seeds])):
        write_plot(open_storage(tmp_path), drawn, trials)
        pictures.append((tmp_path / "tradeoff.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_a_trial_shows_the_epoch_that_it_kept() -> None:
    trial = record(0, "fvae", 5000, 2.5, best_epoch=4)
    shown = build_tradeoff([trial], SEARCH)["trials"][0]
    assert (shown["sigma1"], shown["sigma2"]) == (trial.history[3].sigma1, trial.history[3].sigma2)
    assert shown["sigma1_init"] == 0.05 and shown["sigma2_init"] == 0.1
    assert shown["training_flops"] == 3 * trial.flops_per_image * trial.history[-1].images


def test_every_test_figure_says_how_it_was_read(tradeoff: dict[str, Any]) -> None:
    figures = tradeoff["trials"][0]["figures"]
    common = {"split": "test", "seed": 5, "dataset_hash": SEARCH["dataset"]["hash"], "fully_trained": True}
    assert figures["test_bpd"] == common | {"k": 1}
    assert figures["test_bpd_iwae64"] == common | {"k": 64}
    assert figures["val_bpd"]["split"] == "val"


def test_hypervolume_by_hand() -> None:
    records = [record(0, "flow", 1000, 2.0), record(1, "fvae", 100, 3.0), record(2, "fvae", 10_000, 1.0)]
    volume = build_tradeoff(records, SEARCH)["hypervolume"]
    ceiling = math.log2(17)
    assert volume["reference"] == {"params": 10_000, "log10_params": 4.0, "val_bpd": ceiling}
    assert volume["flow"] == pytest.approx(1 * (ceiling - 2))
    assert volume["fvae"] == pytest.approx(2 * (ceiling - 3))  # the largest model spans no decade of its own
    assert volume["all"] == pytest.approx(2 * (ceiling - 3) + 1 * (3 - 2))
    assert volume["vae"] == 0


@pytest.mark.parametrize("name", EDGE_CASES)
def test_files_are_strict_and_complete(name: str, tmp_path: Path) -> None:
    tradeoff = build_tradeoff(EDGE_CASES[name], SEARCH)
    write_tradeoff(open_storage(tmp_path), tradeoff)
    assert json.loads((tmp_path / "tradeoff.json").read_text(), parse_constant=refuse) == tradeoff
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(EDGE_CASES[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tradeoff.json", "trials.csv"]


def test_csv_has_one_flat_row_a_trial(tradeoff: dict[str, Any], tmp_path: Path) -> None:
    write_tradeoff(open_storage(tmp_path), tradeoff)
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [trial["id"] for trial in tradeoff["trials"]]
    first = tradeoff["trials"][0]
    assert rows[0]["model.coupling"] == first["config"]["coupling"]
    assert rows[0]["train.epochs"] == "20"
    assert float(rows[0]["val_bpd"]) == first["val_bpd"]
    assert not any("{" in value for row in rows for value in row.values())


def test_a_complete_trial_without_a_finite_figure_is_no_map() -> None:
    with pytest.raises(ValueError, match="finite"):
        build_tradeoff([record(0, "flow", 5000, math.nan)], SEARCH)


def test_best_so_far_only_falls_and_ends_at_the_best() -> None:
    records = world(1, 6, families=("flow",))
    for axis in ("flops", "seconds"):
        curve = best_so_far(records, axis)  # type: ignore[arg-type]
        assert (np.diff(curve.compute) > 0).all() and (np.diff(curve.bpd) < 0).all()
        assert curve.bpd[-1] == min(epoch.val_bpd for trial in records for epoch in trial.history)
    assert training_flops(7, 10) == 210


def test_importance_finds_what_decides() -> None:
    # The synthetic suggestion's "width" is the size itself; nothing else enters the bits.
    shares = parameter_importance(world(1, 30, scatter=0.01))
    for family in ("fvae", "flow"):
        assert next(iter(shares[family])) == "width"
        assert shares[family]["width"] > 0.7
        assert sum(shares[family].values()) == pytest.approx(1)
    assert "latent_channels" in shares["fvae"] and "latent_channels" not in shares["flow"]
    assert shares["vae"] == {}


def test_importance_is_repeatable_quiet_and_takes_conditional_parameters(capfd: pytest.CaptureFixture[str]) -> None:
    records = world(1, 8)
    for trial in records[::2]:
        del trial.suggestion["flow_depth"]
    verbosity = optuna.logging.get_verbosity()
    assert parameter_importance(records) == parameter_importance(records)
    assert optuna.logging.get_verbosity() == verbosity
    assert capfd.readouterr().err == ""


def test_a_number_that_only_one_choice_asks_for_is_no_category() -> None:
    """It explains little of noise alone, however many values it has."""
    records = [
        dataclasses.replace(
            record,
            suggestion={"coupling": "affine" if number % 2 else "additive"}
            | ({"scale": 0.01 * 1.2**number} if number % 2 else {}),
            val_bpd=2.0 + number % 2 + 1e-3 * (number * 7 % 5),
        )
        for number, record in enumerate(world(1, 30, scatter=0.01)[:30])
    ]
    records = [dataclasses.replace(record, family="flow", status="complete") for record in records]
    shares = parameter_importance(records)["flow"]
    assert shares["coupling"] > 0.9


def test_importance_of_too_few_or_equal_trials_is_empty() -> None:
    assert parameter_importance(world(1, 3)) == {"vae": {}, "flow": {}, "fvae": {}}
    assert parameter_importance(EDGE_CASES["all alike"])["flow"] == {}


def overfitting(number: int, params: int, bpd: float, best_epoch: int) -> TrialRecord:
    return record(number, "flow", params, bpd, best_epoch=best_epoch)


def test_where_size_stops_mattering_and_why() -> None:
    small = [overfitting(0, 1000, 3.0, 20), overfitting(1, 10_000, 2.5, 20)]
    assert saturation(small, "flow") is None
    assert saturation([], "flow") is None
    assert saturation([*small, overfitting(2, 11_000, 2.6, 10)], "flow") is None  # no larger to speak of
    larger = [overfitting(2, 40_000, 2.6, 12), overfitting(3, 90_000, 2.7, 9), overfitting(4, 50_000, 2.6, 20)]
    assert saturation([*small, *larger], "flow") == {
        "params": 10_000, "larger": 3, "largest": 90_000, "overfit": 2, "best_epoch": 9, "epochs": 20,
    }  # fmt: skip
    assert saturation([*small, *larger], "vae") is None


@pytest.mark.parametrize(
    ("larger", "who", "why"),
    [
        (
            [(40_000, 12), (90_000, 9)],
            "2 complete trials of up to 90k",
            ": 2 of them overfit, the best epoch was 9 of 20",
        ),
        ([(40_000, 12)], "complete trial of up to 40k", ": overfits, the best epoch was 12 of 20"),
        ([(40_000, 20)], "complete trial of up to 40k", ", without overfitting: other hyperparameters or a longer "),
    ],
)
def test_the_page_says_where_size_stops_mattering(
    larger: list[tuple[int, int]], who: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [overfitting(0, 1000, 3.0, 20), overfitting(1, 10_000, 2.5, 20)]
    records += [overfitting(2 + place, params, 2.6, best) for place, (params, best) in enumerate(larger)]
    write_page(open_storage(tmp_path), build_tradeoff(records, SEARCH), records)
    message = f"the {who} parameters reached no fewer bits/dim than 10k{why}"
    assert message in (tmp_path / "tradeoff.html").read_text()
