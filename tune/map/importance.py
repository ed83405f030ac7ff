"""Hyperparameter importance: Optuna's fANOVA of a family's bits/dim, over its complete trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from fvae.config import FAMILIES
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials

MIN_TRIALS = 4
"""Below it a forest has nothing to split."""
LOG_SPAN = 10.0
"""A positive float that was tried over more than this factor was searched on a log scale."""
SEED = 0


def parameter_importance(records: Sequence[TrialRecord]) -> dict[str, dict[str, float]]:
    """Share of the variance of validation bits/dim that each hyperparameter explains, by family.

    Shares of a family sum to 1, in descending order; parameters with one value only are left out. A
    family with fewer than ``MIN_TRIALS`` complete trials, or whose trials are all alike, gives ``{}``.
    The same records always give the same shares.
    """
    return {family: _importance(complete_trials(records, family)) for family in FAMILIES}


def _importance(trials: Sequence[TrialRecord]) -> dict[str, float]:
    if len(trials) < MIN_TRIALS or len({trial.val_bpd for trial in trials}) == 1:
        return {}
    names = sorted({name for trial in trials for name in trial.suggestion})
    columns = {name: _column([trial.suggestion.get(name) for trial in trials]) for name in names}
    varied = {name: column for name, column in columns.items() if not column[1].single()}
    if not varied:
        return {}
    study = _quiet_study()
    for index, trial in enumerate(trials):
        study.add_trial(
            optuna.create_trial(
                params={name: values[index] for name, (values, _) in varied.items()},
                distributions={name: distribution for name, (_, distribution) in varied.items()},
                value=trial.val_bpd,
            )
        )
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=SEED))
    return {name: float(share) for name, share in shares.items()}


def _column(values: list[Any]) -> tuple[list[Any], BaseDistribution]:
    """A parameter's values and a distribution that holds them.

    fANOVA takes no conditional parameters. A choice that some trials lack becomes a category with ``None``; a number
    that they lack lies at the median of the others' (which choice lacks it is a column of its own). It measures volume
    in raw units, so a log-searched number is handed over as its logarithm.
    """
    numbers = [value for value in values if value is not None]
    if numbers and all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        middle = statistics.median_low(numbers)
        values = [middle if value is None else value for value in values]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return values, CategoricalDistribution(sorted(set(values), key=lambda value: (value is not None, str(value))))
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return values, IntDistribution(low, high)
    if low > 0 and high / low > LOG_SPAN:
        return [math.log(value) for value in values], FloatDistribution(math.log(low), math.log(high))
    return [float(value) for value in values], FloatDistribution(low, high)


def _quiet_study() -> optuna.Study:
    """A study in memory. Creating one logs a line that a user has no use for."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(SEED))
    finally:
        optuna.logging.set_verbosity(verbosity)
