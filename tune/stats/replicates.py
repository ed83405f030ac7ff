"""Replicates: the fronts' models trained again with other seeds, to measure the spread over seeds.

A replicate is a trial of its own in the ledger, which names the trial that it repeats. It is trained to the end, and
only the error bars on the map rest on it: no front, no fit, no claim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from fvae.data.images import derived_seed
from tune.records.ledger import TrialRecord
from tune.stats.pareto import fronts


class Spread(TypedDict):
    """Validation bits/dim of one model over the seeds that it was fully trained with."""

    seeds: int
    """How many: at least 2."""
    val_bpd_mean: float
    """Their mean."""
    val_bpd_std: float
    """Their sample standard deviation."""


def next_replicate(records: Iterable[TrialRecord], seeds: int, new_id: Callable[[str], str]) -> TrialRecord | None:
    """The next replicate to train, so that each model of a front comes to ``seeds`` seeds; None where all are there.

    Every model's second seed comes before any model's third. One that failed is not tried again: that is a result too.

    Args:
        records: of all trials, replicates included.
        seeds: in all, the first included.
        new_id: makes a new trial's id from its family.
    """
    for trial, seed in lacking(list(records), seeds):
        return TrialRecord(
            id=new_id(trial.family),
            family=trial.family,
            config=trial.config,
            train={**trial.train, "seed": seed},
            params=trial.params,
            flops_per_image=trial.flops_per_image,
            suggestion=trial.suggestion,
            replicate_of=trial.id,
        )
    return None


def lacking(records: Sequence[TrialRecord], seeds: int) -> list[tuple[TrialRecord, int]]:
    """The replicates that the present fronts still lack: each with the trial that it repeats, and its seed."""
    trials = {record.id: record for record in records}
    present = {(record.replicate_of, record.train["seed"]) for record in records}
    chosen = dict.fromkeys(trial_id for ids in fronts(records).values() for trial_id in ids)
    wanted = [(trials[trial_id], number) for number in range(1, seeds) for trial_id in chosen]
    pairs = [(trial, replicate_seed(trial, number)) for trial, number in wanted]
    return [(trial, seed) for trial, seed in pairs if (trial.id, seed) not in present]


def replicate_seed(trial: TrialRecord, number: int) -> int:
    """The seed of a trial's replicate, counted from 1."""
    return derived_seed(trial.train["seed"], f"replicate/{trial.number}/{number}") % 2**31


def spread(records: Iterable[TrialRecord]) -> dict[str, Spread]:
    """What further seeds measured, by the id of the trial that they repeat; complete trials only."""
    measured: dict[str, list[float]] = {}
    trials = {record.id: record for record in records}
    for record in trials.values():
        first = trials.get(record.replicate_of or "")
        if first is None or (bpd := _measured(first)) is None or (again := _measured(record)) is None:
            continue
        measured.setdefault(first.id, [bpd]).append(again)
    return {
        trial_id: {
            "seeds": len(bpds),
            "val_bpd_mean": statistics.fmean(bpds),
            "val_bpd_std": statistics.stdev(bpds),
        }
        for trial_id, bpds in measured.items()
    }


def _measured(record: TrialRecord) -> float | None:
    return record.val_bpd if record.status == "complete" else None
