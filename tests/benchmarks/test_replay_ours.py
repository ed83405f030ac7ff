"""This project's search on the replay: whole, and without its parts."""

from __future__ import annotations

import functools

import pytest
from synthetic_curves import DIVERGED, table

from benchmarks.search.ablation import WITHOUT
from benchmarks.search.ours import METHODS, Ours
from benchmarks.search.replay import Trace, replay
from fvae.config import FAMILIES

pytestmark = pytest.mark.core

CURVES = table()
ALL = METHODS | WITHOUT


@functools.cache
def searched(name: str) -> tuple[Ours, Trace]:
    method = ALL[name](CURVES.blind(), 0)
    assert isinstance(method, Ours)
    return method, replay(CURVES, method, workers=4)


def rows(name: str) -> tuple[int, ...]:
    return searched(name)[1].rows


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_tried_once_and_complete_stopped_or_diverged(name: str) -> None:
    method, trace = searched(name)
    records = {row: method.ledger.records[trial_id] for row, (_, trial_id) in method._trials.items()}
    assert len(method.ledger.records) == len(records) == len(CURVES.rows)
    of_status = {status: [row for row in records if records[row].status == status] for status in ("complete", "failed")}
    assert of_status == {"complete": sorted(trace.rows, key=list(records).index), "failed": [DIVERGED]}
    stopped = [record for record in records.values() if record.status == "stopped"]
    assert len(stopped) + len(trace.rows) + 1 == len(records)
    assert bool(stopped) == (name != "without stopping")
    for record in stopped:
        assert record.epochs in method.scheduler.expected.forecasts.rungs


def test_a_seed_is_one_search() -> None:
    again, other = (replay(CURVES, METHODS["ours"](CURVES.blind(), seed), workers=4) for seed in (0, 1))
    assert again.rows == rows("ours") != other.rows
    assert again.seconds.tolist() == searched("ours")[1].seconds.tolist()


def test_what_is_left_out_changes_the_search() -> None:
    """The share of each size is the exception: nothing starves in so small a table, nor in the large one."""
    same = ("ours", "whole", "without a share per size")
    assert len({rows(name) for name in same}) == 1
    others = {rows(name) for name in ALL if name not in same}
    assert rows("ours") not in others
    assert len(others) == len(ALL) - len(same) - 1  # "ours without designs" is "without designs"
    assert rows("ours without designs") == rows("without designs")


@pytest.mark.parametrize("name", ["ours", "ours without designs"])
def test_families_take_turns_from_their_sound_designs_on_where_the_search_has_them(name: str) -> None:
    method = METHODS[name](CURVES.blind(), 0)
    designs = CURVES.designs(6)
    started = [row for _ in designs if (row := method.start()) is not None]
    assert [CURVES.rows[row].family for row in started] == list(FAMILIES) * (len(designs) // 3)
    assert (set(started) == set(designs)) == (name == "ours")
