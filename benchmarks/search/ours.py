"""This project's search on the table: its real searcher, proposer, scheduler and forecasts, its ledger in memory.

The sound designs that a search begins with are taken from the table, as the table holds them.
"""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler

from benchmarks.search.curves import Curves
from benchmarks.search.replay import Decision, MakeMethod
from fvae import ModelConfig
from fvae.config import FAMILIES
from fvae.epoch_metrics import EpochMetrics
from pipelines.storage import open_storage
from tune.candidates import Candidate
from tune.designs import MOST
from tune.forecasts import Forecasts
from tune.front_proposer import FrontProposer
from tune.ledger import Ledger, TrialRecord, changes
from tune.limits import Limits
from tune.scheduler import FrontScheduler, Rule
from tune.searcher import FrontSearcher
from tune.space import SearchSpace
from tune.standings import Standings

SEEN = 0.5
"""Share of the untried rows that one choice is made from, at random: a search in the whole space sees a draw, too."""


class MemoryLedger(Ledger):
    """Keeps records, writes none."""

    def __init__(self) -> None:
        super().__init__(open_storage("/nonexistent-replay"))

    def put(self, record: TrialRecord) -> None:
        """Replace the trial's record."""
        self.records[record.id] = record


class TableCandidates:
    """The rows of the table as candidates."""

    def __init__(self, curves: Curves) -> None:
        self.all = [
            Candidate(
                family=row.family,
                suggestion=dict(row.suggestion),
                model=ModelConfig.from_dict(dict(row.model)),
                train=dict(row.train),
            )
            for row in curves.rows
        ]
        self.row = {candidate.key: index for index, candidate in enumerate(self.all)}
        self._untried = {family: [each for each in self.all if each.family == family] for family in FAMILIES}

    def draw(self, family: str, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Some of the family's untried rows, whatever number is asked for."""
        untried = self._untried[family]
        return [untried[index] for index in rng.permutation(len(untried))[: max(1, round(SEEN * len(untried)))]]

    def between(self, parent: dict[str, Any], other: Candidate, rng: np.random.Generator) -> None:
        """A table holds nothing between its rows."""

    def take(self, index: int) -> None:
        """A row is tried."""
        self._untried[self.all[index].family].remove(self.all[index])


class Unlimited:
    """A budget that never ends: the replay does."""

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        """Always."""
        return None

    def over(self, ledger: Ledger) -> str | None:
        """Never."""
        return None


class Ours:
    """One search."""

    def __init__(
        self,
        curves: Curves,
        seed: int,
        *,
        compete: bool = False,
        designs: int = MOST,
        by_size: bool = True,
        extrapolate: bool = True,
        rule: Rule | None = None,
    ) -> None:
        rule = rule or Rule()
        shape = ("channels", "height", "width")
        images = {name: int(curves.rows[0].model[name]) for name in (*shape, "bins")}
        self.source = TableCandidates(curves)
        self.ledger = MemoryLedger()
        standings = Standings(
            self.ledger,
            Forecasts(rule.rungs(curves.epochs), curves.epochs, curves.bins),
            bins=curves.bins,
            compete=compete,
            by_size=by_size,
            extrapolate=extrapolate,
        )
        first: dict[str, list[Candidate]] = {family: [] for family in FAMILIES}
        for index in curves.designs(designs) if designs else ():
            first[curves.rows[index].family].append(self.source.all[index])
        proposer = FrontProposer(
            standings,
            self.source,
            Limits(),
            SearchSpace.for_images(tuple(images[name] for name in shape)),  # type: ignore[arg-type]
            images,
            epochs=curves.epochs,
            seed=seed,
            first={family: sorted(each, key=lambda candidate: candidate.params) for family, each in first.items()},
        )
        self.scheduler = FrontScheduler(standings, rule)
        self.searcher = FrontSearcher(
            ledger=self.ledger,
            proposer=proposer,
            families=[family for family in FAMILIES if any(row.family == family for row in curves.rows)],
            budget=Unlimited(),
            most_worth=proposer.most_worth if compete else None,
        )
        self._tune_ids = (f"tune-{number}" for number in itertools.count())
        self._trials: dict[int, tuple[str, str]] = {}  # row → Tune's id, ours

    def start(self) -> int | None:
        """What the searcher suggests next."""
        tune_id = next(self._tune_ids)
        config = self.searcher.suggest(tune_id)
        if not isinstance(config, dict):
            return None
        record = self.ledger.records[config["id"]]
        index = self.source.row[Candidate.of(record).key]
        if index not in self._trials:
            self.source.take(index)
        self._trials[index] = tune_id, record.id
        return index

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """As Tune does: the scheduler first, then the ledger."""
        tune_id, record_id = self._trials[row]
        result = _result(epoch, val_bpd)
        trial = SimpleNamespace(config={"id": record_id})
        if self.scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:  # type: ignore[arg-type]
            self.searcher.on_trial_complete(tune_id, result)
            return Decision.PAUSE
        self.ledger.update(record_id, **changes(self.ledger.records[record_id], result))
        return Decision.CONTINUE

    def ended(self, row: int, complete: bool) -> None:
        """The last epoch was done, or training diverged."""
        tune_id, record_id = self._trials[row]
        if complete:
            best = min(self.ledger.records[record_id].history, key=lambda point: point.val_bpd)
            self.ledger.update(record_id, status="complete", best_epoch=best.epoch, val_bpd=best.val_bpd)
        else:
            self.ledger.update(record_id, status="failed", reason="diverged")
        self.searcher.on_trial_complete(tune_id)


def _result(epoch: int, val_bpd: float) -> dict[str, Any]:
    nothing = dict.fromkeys(EpochMetrics.__dataclass_fields__, 0)
    return nothing | {"epoch": epoch, "val_bpd": val_bpd, "train_bpd": val_bpd}


METHODS: dict[str, MakeMethod] = {
    "ours": Ours,
    "ours, one front": functools.partial(Ours, compete=True),
    "ours without designs": functools.partial(Ours, designs=0),
    "ours, one front, without designs": functools.partial(Ours, compete=True, designs=0),
}
