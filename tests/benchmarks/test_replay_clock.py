"""The replay's clock, and what counts as found."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_curves import DIVERGED, EPOCHS, row, series, table, write_rows

from benchmarks.search.bound import fewest_epochs
from benchmarks.search.curves import SERIES, TARGETS, Curves
from benchmarks.search.replay import Decision, replay
from benchmarks.search.table import SCHEMA
from fvae import ConfigError

pytestmark = pytest.mark.core


class Scripted:
    """Starts rows in a given order; answers what it is told to, by (row, epoch)."""

    def __init__(self, order: list[int], answers: dict[tuple[int, int], Decision] | None = None) -> None:
        self.order, self.answers = list(order), answers or {}
        self.heard: list[tuple[int, int, float]] = []
        self.ends: list[tuple[int, bool]] = []

    def start(self) -> int | None:
        return self.order.pop(0) if self.order else None

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        self.heard.append((row, epoch, val_bpd))
        return self.answers.get((row, epoch), Decision.CONTINUE)

    def ended(self, row: int, complete: bool) -> None:
        self.ends.append((row, complete))


def three_rows() -> Curves:
    """Epochs of 1, 2 and 10 seconds; three epochs each."""
    rows = [
        row(index, "flow", 100 * (index + 1), series([4.0, 3.0, 3.5 - index]), series([seconds] * 3))
        for index, seconds in enumerate((1, 2, 10))
    ]
    return Curves(rows=tuple(rows), bins=17, epochs=3)


def test_workers_train_side_by_side_each_epoch_as_long_as_it_took():
    method = Scripted([0, 1, 2])
    trace = replay(three_rows(), method, workers=2)
    # Row 0 ends at 3 s and frees its worker for row 2 (10 s an epoch); row 1 ends at 6 s.
    assert trace.rows == (0, 1, 2)
    assert trace.seconds.tolist() == [3, 6, 33]
    # At 3 s one epoch of row 1 is done, at 6 s all its three.
    assert trace.epochs.tolist() == [4, 6, 9]
    assert trace.total_epochs == 9
    assert method.heard[:3] == [(0, 1, 4.0), (1, 1, 4.0), (0, 2, 3.0)]
    assert trace.seconds.tolist() != replay(three_rows(), Scripted([0, 1, 2]), workers=1).seconds.tolist()


def test_only_complete_rows_count():
    curves = table()
    method = Scripted(list(range(len(curves.rows))), {(7, 1): Decision.STOP, (8, EPOCHS - 1): Decision.STOP})
    trace = replay(curves, method, workers=4)
    assert set(trace.rows) == set(range(len(curves.rows))) - {7, 8, DIVERGED}
    assert sorted(method.ends) == [(index, index in trace.rows) for index in range(len(curves.rows))]
    for target in TARGETS:
        found = curves.hypervolumes(trace.rows)[target]
        assert trace.shares[target][-1] == pytest.approx(found / curves.truth[target])
    stopped = 1 + (EPOCHS - 1)
    diverged = 3  # the epoch in which it did is trained too
    assert trace.total_epochs == EPOCHS * (len(curves.rows) - 3) + stopped + diverged


def test_a_paused_row_goes_on_from_where_it_was():
    method = Scripted([0, 1, 0], {(0, 2): Decision.PAUSE})
    trace = replay(three_rows(), method, workers=1)
    assert trace.rows == (1, 0)
    assert [epoch for index, epoch, _ in method.heard if index == 0] == [1, 2, 3]
    assert trace.seconds.tolist() == [2 + 6, 2 + 6 + 1]
    assert (0, False) not in method.ends


def test_a_pause_that_nobody_takes_up_ends_the_search_without_the_row():
    trace = replay(three_rows(), Scripted([0, 1], {(0, 2): Decision.PAUSE}), workers=1)
    assert trace.rows == (1,)
    assert trace.total_epochs == 5


@pytest.mark.parametrize("order", [[0, 0], [0, 1, 0]])
def test_a_row_that_runs_or_has_ended_cannot_start(order):
    with pytest.raises(ValueError, match="0000-flow"):
        replay(three_rows(), Scripted(order), workers=2 if order == [0, 0] else 1)


def test_the_search_is_cut_at_its_epochs():
    assert replay(three_rows(), Scripted([0, 1, 2]), workers=1, max_epochs=4).total_epochs == 4


def test_hypervolume_equals_brute_force():
    curves = table()
    width, height = curves.reference
    grid = 1200
    xs, ys = np.linspace(2.4, width, grid), np.linspace(0, height, grid)
    cell = (xs[1] - xs[0]) * (ys[1] - ys[0])

    def area(family: str | None) -> float:
        dominated = np.zeros((grid, grid), dtype=bool)
        for each in curves.rows:
            if each.failure is None and family in (None, each.family):
                dominated |= (xs[:, None] >= math.log10(each.params)) & (ys[None, :] >= each.val_bpd.min())
        return float(dominated.sum() * cell)

    assert curves.truth["front"] == pytest.approx(area(None), rel=5e-3)
    assert curves.truth["map"] == pytest.approx(sum(area(family) for family in ("fvae", "flow", "vae")), rel=5e-3)


def test_the_order_of_rows_changes_no_hypervolume():
    curves = table(7)
    complete = [index for index in range(7) if index != DIVERGED]
    areas = [curves.hypervolumes(order) for order in itertools.permutations(complete[:4])]
    for area in areas:
        assert area == pytest.approx(areas[0])


def test_time_to_a_share_is_the_first_step_that_has_it():
    curves = table()
    trace = replay(curves, Scripted(list(range(len(curves.rows)))), workers=3)
    shares = trace.shares["front"]
    step = int(np.argmax(shares >= 0.9))
    assert trace.epochs_to("front", 0.9) == trace.epochs[step]
    assert trace.hours_to("front", 0.9) == trace.seconds[step] / 3600
    assert trace.epochs_to("front", 1.0) <= trace.total_epochs
    few = replay(curves, Scripted([0, 1]), workers=3)
    assert few.epochs_to("map", 0.99) == math.inf == few.hours_to("map", 0.99)


def test_a_search_sees_no_value_before_it_is_reported():
    for each in table().blind().rows:
        assert each.failure is None
        assert all(len(getattr(each, name)) == 0 for name in SERIES)


def test_the_table_reads_the_same_from_parquet_as_from_its_rows(tmp_path):
    records = write_rows(table(), tmp_path / "rows")
    file = tmp_path / "curves.parquet"
    metadata = {"curves": json.dumps({"bins": 17})}
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA).replace_schema_metadata(metadata), file)
    of_parquet, of_rows = Curves.load(file), Curves.load(tmp_path / "rows")
    assert of_parquet.truth == of_rows.truth == table().truth
    assert [each.suggestion for each in of_parquet.rows] == [each.suggestion for each in of_rows.rows]
    assert (of_parquet.epochs, of_parquet.bins) == (of_rows.epochs, of_rows.bins) == (EPOCHS, 17)


def test_a_missing_table_says_what_makes_it(tmp_path):
    with pytest.raises(ConfigError, match=r"benchmarks\.search\.table"):
        Curves.load(tmp_path / "none.parquet")


@pytest.mark.parametrize("target", TARGETS)
def test_no_fewer_rows_hold_a_share_than_the_bound_says(target):
    curves = table(11)
    complete = [index for index in range(11) if index != DIVERGED]
    for share in (0.6, 0.9, 0.97):
        fewest = fewest_epochs(curves, target, share) // EPOCHS
        best = {
            count: max(curves.hypervolumes(rows)[target] for rows in itertools.combinations(complete, count))
            for count in (fewest - 1, fewest)
        }
        assert best[fewest - 1] < share * curves.truth[target] <= best[fewest] + 1e-9
