"""This project's search on the table, put together as every search is (:func:`tune.run.assembly.assemble`).

The table takes the place of the search space, also for the sound designs that a search begins with. The ledger stays
in memory, and the replay decides when the search is over.
"""

from __future__ import annotations

import dataclasses
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
from tune.propose.candidates import Candidate
from tune.records.ledger import Ledger, TrialRecord, changes
from tune.run.assembly import Strategy, assemble
from tune.run.tune_scheduler import FrontScheduler
from tune.settings import Goal, SearchSettings

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
        self._curves = curves
        self._untried = {family: [each for each in self.all if each.family == family] for family in FAMILIES}

    def draw(self, family: str, count: int, rng: np.random.Generator) -> list[Candidate]:
        """Some of the family's untried rows, whatever number is asked for."""
        untried = self._untried[family]
        return [untried[index] for index in rng.permutation(len(untried))[: max(1, round(SEEN * len(untried)))]]

    def between(self, parent: dict[str, Any], other: Candidate, rng: np.random.Generator) -> None:
        """A table holds nothing between its rows."""

    def designs(self, family: str, count: int) -> list[Candidate]:
        """The family's sound designs that the table holds, as many as are asked for at most, from small to large."""
        designs = [self.all[index] for index in self._curves.designs(count)]
        return sorted((each for each in designs if each.family == family), key=lambda each: each.params)

    def take(self, index: int) -> None:
        """A row is tried."""
        self._untried[self.all[index].family].remove(self.all[index])


@dataclasses.dataclass(frozen=True)
class TableImages:
    """What the rows of the table were trained on, as far as a search needs to know."""

    shape: tuple[int, int, int]
    bins: int

    @classmethod
    def of(cls, curves: Curves) -> TableImages:
        """All rows were trained on the same images."""
        model = ModelConfig.from_dict(dict(curves.rows[0].model))
        return cls(model.image_shape, curves.bins)

    def content_hash(self) -> str:
        """A replay has no warm start, which alone needs it."""
        raise NotImplementedError


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

    def __init__(self, curves: Curves, seed: int, *, goal: Goal = "map", strategy: Strategy | None = None) -> None:
        strategy = strategy or Strategy()
        settings = SearchSettings(
            trials=len(curves.rows),
            epochs=curves.epochs,
            seed=seed,
            goal=goal,
            families=tuple(family for family in FAMILIES if any(row.family == family for row in curves.rows)),
        )
        self.source, self.ledger = TableCandidates(curves), MemoryLedger()
        parts = assemble(
            settings, TableImages.of(curves), self.ledger, Unlimited(), source=self.source, strategy=strategy
        )
        self.searcher, self.scheduler = parts.searcher, FrontScheduler(parts.expected, strategy.rule)
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
        result = epoch_result(epoch, val_bpd)
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


def epoch_result(epoch: int, val_bpd: float) -> dict[str, Any]:
    """What a trial reports of an epoch, as far as a table knows it."""
    nothing = dict.fromkeys(EpochMetrics.__dataclass_fields__, 0)
    return nothing | {"epoch": epoch, "val_bpd": val_bpd, "train_bpd": val_bpd}


METHODS: dict[str, MakeMethod] = {
    "ours": Ours,
    "ours, one front": functools.partial(Ours, goal="front"),
    "ours without designs": functools.partial(Ours, strategy=Strategy(designs=0)),
    "ours, one front, without designs": functools.partial(Ours, goal="front", strategy=Strategy(designs=0)),
}
