"""How N parameters should be split, where the truth is made up: a parabola over the share."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from fvae import ModelConfig
from fvae.config import FAMILIES
from fvae.flops import encoder_and_decoder_parameters
from fvae.model import build
from pipelines.storage import open_storage
from tests.fvae.strategies import EXAMPLES, model_configs
from tests.tune.small_space import SOURCE
from tests.tune.synthetic import SEARCH, record
from tune.map import scaling
from tune.map.claim_text import by_share
from tune.map.page import write_page
from tune.map.share import best_shares, share_of
from tune.map.tradeoff import build_tradeoff
from tune.records.ledger import TrialRecord
from tune.stats.forecasts import Forecasts

pytestmark = pytest.mark.core

UNTRAINED = Forecasts((), 1, math.log2(17))


@EXAMPLES
@given(config=model_configs())
def test_parameters_of_e_and_g_are_those_that_are_built(config: ModelConfig) -> None:
    model = build(config)
    parts = ("encoder.", "decoder.", "log_sigma")
    built = sum(each.numel() for name, each in model.named_parameters() if name.startswith(parts))
    assert encoder_and_decoder_parameters(config) == built


def searched(best: float, count: int = 24, seed: int = 0) -> list[TrialRecord]:
    """Models of the digits' space, whose bits/dim are lowest at the share ``best``."""
    rng = np.random.default_rng(seed)
    records: list[TrialRecord] = []
    for family in FAMILIES:
        for candidate in SOURCE.draw(family, count, rng):
            trial = record(len(records), family, candidate.params, 3.0)
            trial = TrialRecord(**{**vars(trial), "config": candidate.model.to_dict()})
            share = share_of(trial)
            assert share is not None
            bits = 3.5 - 0.3 * np.log10(candidate.params) + 4 * (share - best) ** 2 + rng.exponential(0.02)
            records.append(TrialRecord(**{**vars(trial), "val_bpd": float(bits)}))
    return records


@pytest.mark.parametrize("best", [0.0, 0.3, 0.6, 1.0])
def test_the_best_share_is_found(best: float) -> None:
    for table in best_shares(searched(best), UNTRAINED, 0).values():
        middle = table["best"][1]
        assert middle["low"] - 0.05 <= best <= middle["high"] + 0.05
        assert abs(middle["share"] - best) < 0.2


def test_of_many_small_searches_intervals_hold_the_truth() -> None:
    """Of the shares that were tried."""
    held = []
    for seed in range(10):
        best = float(np.random.default_rng(seed).uniform(0.2, 0.8))
        for table in best_shares(searched(best, 8, seed), UNTRAINED, 0).values():
            middle, (_, *tried, _) = table["best"][1], table["share"]
            if tried[0] <= best <= tried[-1]:
                held.append(middle["low"] - 0.03 <= best <= middle["high"] + 0.03)
    assert len(held) > 10
    assert np.mean(held) > 0.85


def test_tables_go_from_flow_to_vae() -> None:
    found = best_shares(searched(0.5), UNTRAINED, 0)
    assert set(found) == {"discretized", "gaussian"}
    for table in found.values():
        assert table["share"] == sorted(table["share"])
        assert table["share"][0] == 0.0 and table["share"][-1] == 1.0
        for name in ("low", "median", "high"):
            assert np.shape(table[name]) == (len(table["size"]), len(table["share"]))
        json.dumps(table, allow_nan=False)


def test_without_f_vaes_there_is_nothing_to_split() -> None:
    assert best_shares([each for each in searched(0.5) if each.family != "fvae"], UNTRAINED, 0) == {}


def test_f_vaes_alone_are_compared_with_one_another() -> None:
    (table, *_) = best_shares([each for each in searched(0.5) if each.family == "fvae"], UNTRAINED, 0).values()
    assert 0 < table["share"][0] < table["share"][-1] < 1


def test_the_page_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "REPLICATES", 20)
    found = searched(0.5)
    records = [each for each in found if each.family == "flow" or each.config["likelihood"] == "discretized"]
    tradeoff = build_tradeoff(records, SEARCH)
    write_page(open_storage(tmp_path), tradeoff, records)
    page = (tmp_path / "tradeoff.html").read_text()
    assert page.count("share of the parameters in E and G") == 1  # a panel for the likelihood that is there
    (line,) = by_share(tradeoff["claim"]["shares"])
    assert line in page
    assert re.fullmatch(
        r"With the discretized likelihood and [\d.]+k parameters, the fewest bits/dim are reached with \d+% of them "
        r"in E and G \(95%: \d+% to \d+%; 0% is a flow, 100% a VAE\)\.",
        line,
    )
