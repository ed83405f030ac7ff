"""Accounting of a search's cost: epochs, images, seconds and devices of every trial ever started, and their sums.

Every trial is in exactly one state, and everything that it cost is in exactly one of its attempts
(:mod:`tune.records.attempts`); so the attempts' sums are the trials', and the trials' are the search's. Epochs that a
crash made a trial train again are counted as often as they were trained; its history holds each of them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from tune.records.attempts import Attempt, AttemptEnd
from tune.records.ledger import Status, TrialRecord

SUMS = ("attempts", "epochs", "images", "epochs_again", "images_again", "seconds", "rest_seconds", "unknown_rests",
        "core_seconds", "gpu_seconds")  # fmt: skip
"""Figures that are reported for each trial and summed for the search."""


def core_seconds(record: TrialRecord) -> float:
    """Cores × seconds that a trial is known to have held them."""
    return sum(attempt.cpus * attempt.held_seconds for attempt in record.attempts)


def gpu_seconds(record: TrialRecord) -> float:
    """GPUs × seconds that a trial is known to have held them; of a shared one its share."""
    return sum(attempt.gpus * attempt.held_seconds for attempt in record.attempts)


def devices_per_trial(records: Iterable[TrialRecord], gpus: bool) -> float:
    """GPUs (or cores) that an attempt held, on average over the attempts' seconds; 1 before there is one."""
    held = [(each.gpus if gpus else each.cpus, each.held_seconds) for record in records for each in record.attempts]
    seconds = sum(seconds for _, seconds in held)
    return sum(devices * seconds for devices, seconds in held) / seconds if seconds else 1.0


def trial_account(record: TrialRecord) -> dict[str, Any]:
    """What one trial cost, JSON-ready.

    ``epochs``, ``images``, ``seconds``: of every epoch that a process finished, in training and validation.
    ``epochs_again``, ``images_again``: those among them that an earlier process had finished already.
    ``rest_seconds``: what processes held their devices beyond their last finished epoch where they ended in the midst
    of one; ``unknown_rests`` of them are not known, because the driver ended with them.
    ``core_seconds``, ``gpu_seconds``: all these seconds, times the devices held.
    """
    attempts = record.attempts
    epochs, images = sum(each.epochs for each in attempts), sum(each.images for each in attempts)
    return {
        "attempts": len(attempts),
        "epochs": epochs,
        "images": images,
        "epochs_again": epochs - record.epochs,
        "images_again": images - (record.history[-1].images if record.history else 0),
        "seconds": sum(each.seconds for each in attempts),
        "rest_seconds": sum(each.rest_seconds or 0.0 for each in attempts),
        "unknown_rests": sum(each.rest_seconds is None for each in attempts),
        "core_seconds": core_seconds(record),
        "gpu_seconds": gpu_seconds(record),
    }


def account(records: Sequence[TrialRecord], search_seconds: float | None = None) -> dict[str, Any]:
    """The cost of the whole search, for ``tradeoff.json``.

    ``trials`` and ``attempts`` count them by their states; ``total`` holds :func:`trial_account` summed; ``by_trial``
    that of each trial ever started, with its attempts. ``search_seconds``: of wall time, over all sessions.
    """
    by_trial = {
        record.id: {
            "status": record.status,
            **trial_account(record),
            "by_attempt": [_attempt(a) for a in record.attempts],
        }
        for record in records
    }
    ends = Counter(attempt.ended for record in records for attempt in record.attempts)
    states = Counter(record.status for record in records)
    return {
        "trials": {"started": len(records), **{status: states[status] for status in get_args(Status)}},
        "attempts": {
            "started": sum(ends.values()),
            **{end.replace(" ", "_") or "running": ends[end] for end in get_args(AttemptEnd)},
        },
        "total": {name: sum(each[name] for each in by_trial.values()) for name in SUMS},
        "search_seconds": search_seconds,
        "by_trial": by_trial,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return vars(attempt) | {"ended": attempt.ended or "running"}
