"""Candidates: models that could be trained, with their sizes, FLOPs and memory, for a proposer to choose from."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import optuna

from fvae.config import ConfigError, ModelConfig
from fvae.flops import parameters_and_flops
from fvae.memory import training_memory
from fvae.train_config import TrainConfig, identity_of_any_version
from tune.propose.define_by_run import NearestTrial, UniformTrial, crossed
from tune.records.ledger import TrialRecord
from tune.space import SearchSpace, initial_designs, suggest, suggestion_of

DRAWS = 100
"""How many points in a row may be no possible model before a space counts as empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model that could be trained, and how."""

    family: str
    suggestion: dict[str, Any]
    """Its point in the search space, as Optuna's parameters."""
    model: ModelConfig
    train: dict[str, Any]
    """``TrainConfig.to_dict()``, with what is searched of it."""

    @classmethod
    def of(cls, record: TrialRecord) -> Candidate:
        """What a trial trains. Raises ``ConfigError`` where its config is none of this version's."""
        model = ModelConfig.from_dict(record.config)
        return cls(family=record.family, suggestion=record.suggestion, model=model, train=record.train)

    @cached_property
    def key(self) -> str:
        """Its identity: two candidates of the same key are the same training."""
        return key(self.model.to_dict(), self.train)

    @property
    def params(self) -> int:
        """Trained parameters."""
        return self._counts[0]

    @property
    def flops_per_image(self) -> int:
        """Multiply-adds ×2 of one ELBO evaluation of one image (forward)."""
        return self._counts[1]

    @cached_property
    def memory_bytes(self) -> int:
        """Bytes of the tensors of its training. Counting them takes up to seconds, unlike the other two."""
        return training_memory(
            self.model,
            self.train["batch_size"],
            precision=self.train["precision"],
            validation_samples=self.train.get("validation_samples", 1),
        ).total

    @cached_property
    def _counts(self) -> tuple[int, int]:
        return parameters_and_flops(self.model)


def key(model: dict[str, Any], train: dict[str, Any]) -> str:
    """:attr:`Candidate.key` of a trial's ``config`` and ``train``."""
    return json.dumps(identity_of_any_version({"model": model, "train": train}), sort_keys=True)


def point_of(record: TrialRecord, space: SearchSpace, images: dict[str, int]) -> dict[str, Any]:
    """A trial's point in ``space``: its suggestion, or where that is of another version's space its model's point.

    Raises ``ConfigError`` where its config is none of this version's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of values out of a range
            suggest(optuna.trial.FixedTrial(record.suggestion), record.family, space, images)
        return record.suggestion
    except ValueError:  # it lacks something that is asked for
        return suggestion_of(ModelConfig.from_dict(record.config), record.train, space)


class CandidateSource(Protocol):
    """A source of candidates: a search space, or a table of models that are trained already."""

    def draw(self, family: str, count: int, rng: np.random.Generator) -> list[Candidate]:
        """``count`` possible models of a family, each drawn uniformly; fewer where there are none."""

    def between(self, parent: dict[str, Any], other: Candidate, rng: np.random.Generator) -> Candidate | None:
        """A model near the suggestion ``parent``: some of its values are those of ``other``, of the same family.

        None where that is no possible model.
        """

    def designs(self, family: str, count: int) -> list[Candidate]:
        """``count`` models of a family with sound settings, from small to large; fewer where there are no more."""


class SpaceCandidates:
    """The candidates of a search space, for images of one shape and one training budget.

    >>> source = SpaceCandidates(SearchSpace.for_images((1, 8, 8), 17), images, TrainConfig(epochs=20))
    >>> small, *_ = sorted(source.draw("fvae", 100, np.random.default_rng(0)), key=lambda c: c.params)
    """

    def __init__(self, space: SearchSpace, images: dict[str, int], train: TrainConfig) -> None:
        """``images`` holds ``channels``, ``height``, ``width`` and ``bins``; ``train`` what all candidates share."""
        self.space, self.images, self.train = space, images, train.to_dict()

    def draw(self, family: str, count: int, rng: np.random.Generator) -> list[Candidate]:
        """``count`` possible models, uniform in the space's own scales; duplicates are possible in a small space."""
        drawn: list[Candidate] = []
        failures = 0
        while len(drawn) < count and failures < DRAWS:
            try:
                drawn.append(self.ask(UniformTrial(rng), family))
                failures = 0
            except ConfigError:
                failures += 1
        return drawn

    def ask(self, trial: optuna.trial.BaseTrial, family: str) -> Candidate:
        """The candidate that ``trial`` suggests. Raises ``ConfigError`` where it is no possible model."""
        model, searched = suggest(trial, family, self.space, self.images)
        return Candidate(family=family, suggestion=dict(trial.params), model=model, train=self.train | searched)

    def at(self, family: str, suggestion: dict[str, Any]) -> Candidate:
        """The candidate at a point of the space. Raises ``ConfigError`` for a point that is not of this space."""
        fixed = optuna.trial.FixedTrial(suggestion)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Optuna warns so of a value that is out of range
                return self.ask(fixed, family)
        except (ValueError, UserWarning) as error:  # ConfigError is a ValueError
            raise ConfigError(f"{family} {suggestion}: not in the search space ({error})") from error

    def near(self, family: str, suggestion: dict[str, Any]) -> Candidate:
        """The candidate nearest to a point of another space. Raises ``ConfigError`` where there is none."""
        try:
            return self.ask(NearestTrial(suggestion), family)
        except KeyError as error:
            raise ConfigError(f"{family} {suggestion}: has no {error}") from error

    def between(self, parent: dict[str, Any], other: Candidate, rng: np.random.Generator) -> Candidate | None:
        """See :meth:`CandidateSource.between`."""
        try:
            return self.at(other.family, crossed(parent, other.suggestion, rng))
        except ConfigError:
            return None

    def designs(self, family: str, count: int) -> list[Candidate]:
        """:func:`tune.space.initial_designs`: from small to large, with sound settings."""
        return [self.at(family, design) for design in initial_designs(family, self.space, count)]
