"""A searcher of Ray Tune: it resumes unfinished trials first, then begins new ones, then trains further seeds.

Families take turns, so that each gets a front and the claim a fair test. What to train next of a family is the
proposer's choice (:mod:`tune.propose.proposers`), whether anything is trained at all the budget's
(:mod:`tune.run.budget`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from fvae.config import ConfigError
from tune.propose.candidates import Candidate
from tune.propose.proposers import Proposer
from tune.records.ledger import Ledger, TrialRecord
from tune.stats.replicates import next_replicate


class Allowance(Protocol):
    """The part of :class:`tune.run.budget.Budget` that the searcher needs."""

    def may_start(self, ledger: Ledger, *, replicate: bool = False) -> str | None:
        """None where another trial may start, else why not, one line."""

    def over(self, ledger: Ledger) -> str | None:
        """None, or why all running trials are paused now, one line."""


class FrontSearcher(Searcher):
    """Suggests trials until the budget or the models are used up. The ledger is all that it remembers."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        proposer: Proposer,
        families: Sequence[str],
        budget: Allowance,
        seeds: int = 1,
        next_family: Callable[[Sequence[str]], str | None] | None = None,
        may_go_on: Callable[[TrialRecord], bool] = lambda record: True,
    ) -> None:
        """
        Args:
            ledger: of this search, opened; its records are passed to the proposer.
            proposer: chooses models. It has seen no record yet.
            families: that are searched.
            budget: of the search.
            seeds: with how many each model of a front is trained.
            next_family: whose turn it is of the families that are left, once each has had one; by default, and where
                it returns None, the one that had fewest.
            may_go_on: whether an unfinished trial of an earlier session is trained to its end in this one.
        """
        super().__init__()
        self.ledger, self.proposer, self.families = ledger, proposer, tuple(families)
        self.budget, self.seeds, self.next_family = budget, seeds, next_family
        self.trials_may_return = False
        """Whether a trial that has ended may have to be tried again: one whose share of a card did not hold it."""
        self.exhausted: dict[str, str] = {}
        """Families of which every model is tried, each with the line that reports it."""
        self.ended: str | None = None
        """Why nothing more is begun, one line, once Tune has been answered so. It does not change, though trials that
        still run may change what it was decided by."""
        records = list(ledger.records.values())
        self._next_number = 1 + max((record.number for record in records), default=-1)
        self._turns = Counter(dict.fromkeys(self.families, 0))
        self._unfinished = deque(record for record in records if record.status == "running" and may_go_on(record))
        self._live: dict[str, str] = {}  # Tune's id → ours, of what was suggested and has not ended
        for record in records:
            if record.replicate_of is None:
                self._turns[record.family] += 1 + _taken_up_again(record)
                proposer.tell(record)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's lacks FINISHED
        """The next trial's config for :class:`tune.run.trial.TrialProcess`; ``FINISHED``, or None: ask again later."""
        if why := self.budget.over(self.ledger):
            return self._finished(why)
        record = self._unfinished.popleft() if self._unfinished else self._new_trial() or self._replicate()
        if record is None:
            waits = self.seeds > 1 and self._first_seeds_live() or self.trials_may_return and self._live
            return None if waits else self._finished(self._why_none())
        self._live[trial_id] = record.id
        return {
            "id": record.id,
            "storage": self.ledger.trial_storage(record.id).uri,
            "model": record.config,
            "train": record.train,
        }

    def _finished(self, why: str) -> str:
        self.ended = self.ended or why
        return Searcher.FINISHED

    def _why_none(self) -> str:
        """Why there is neither a new trial nor another seed, one line."""
        return self.budget.may_start(self.ledger) or "every model has been tried"

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to do: the ledger gets the result, and a part-trained figure is no observation."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the trial's record in the ledger on to the proposer."""
        record = self.ledger.records[self._live.pop(trial_id)]
        if error and record.status == "running":  # the ledger is updated a moment later
            record = dataclasses.replace(record, status="failed")
        if result and "out_of_memory" in result:
            self._unfinished.append(record)
        if record.status != "running" and record.replicate_of is None:  # running: a later session goes on with it
            self.proposer.tell(record)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's properties; the objectives are the proposer's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: the ledger is the state."""

    def _new_trial(self) -> TrialRecord | None:
        """The next family's next trial, or one of its stopped ones that goes on; None where there is none.

        Raises ``ConfigError`` for a family of which no model is possible at all.
        """
        while (left := [family for family in self.families if family not in self.exhausted]) and (
            self.budget.may_start(self.ledger) is None
        ):
            family = min(left, key=lambda each: self._turns[each])
            if self.next_family is not None and self._turns[family]:
                family = self.next_family(left) or family
            try:
                proposal = self.proposer.propose(family)
            except ConfigError as error:
                if not self._turns[family]:
                    raise
                self.exhausted[family] = str(error)  # others may go on
                continue
            self._turns[family] += 1
            if isinstance(proposal, Candidate):
                return self._begin(proposal)
            return self.ledger.update(proposal.id, status="running", reason="")
        return None

    def _begin(self, candidate: Candidate) -> TrialRecord:
        record = TrialRecord(
            id=self._new_id(candidate.family),
            family=candidate.family,
            config=candidate.model.to_dict(),
            train=candidate.train,
            params=candidate.params,
            flops_per_image=candidate.flops_per_image,
            suggestion=candidate.suggestion,
        )
        self.ledger.put(record)
        return record

    def _replicate(self) -> TrialRecord | None:
        """Another seed of a front's model, once the fronts are complete."""
        if self.seeds == 1 or self._first_seeds_live() or self.budget.may_start(self.ledger, replicate=True):
            return None
        record = next_replicate(self.ledger.records.values(), self.seeds, self._new_id)
        if record is not None:
            self.ledger.put(record)
        return record

    def _first_seeds_live(self) -> bool:
        return any(self.ledger.records[record_id].replicate_of is None for record_id in self._live.values())

    def _new_id(self, family: str) -> str:
        self._next_number += 1
        return f"{self._next_number - 1:04d}-{family}"


def _taken_up_again(record: TrialRecord) -> int:
    """How often a trial went on after it had been stopped: each was a turn of its family."""
    stops = sum(attempt.ended == "stopped" for attempt in record.attempts)
    return stops - (stops > 0 and record.status == "stopped")
