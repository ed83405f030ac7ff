"""Limits on the models that may be proposed (``--max-params`` …), and those within them that have not been tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from fvae.config import ConfigError, require_positive
from fvae.data.images import derived_seed
from tune.propose.candidates import Candidate, CandidateSource
from tune.records.ledger import TrialRecord

STATE_BYTES = 24
"""Bytes that a training holds of every parameter at least: the weight in float32, its gradient, Adam's two moments,
and the averaged weight, now and of the best epoch."""
DRAWN_AT_ONCE = 100
"""How many candidates are drawn at a time where most are beyond the limits, or tried."""
MOST_DRAWN = 10_000
"""How many are drawn before the search reports that there is none."""
MOST_COUNTED = 100
"""How many of them may be within all limits but ``--max-memory``, which takes up to a second to count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper limits, each included; None: no limit. Raises ``ConfigError`` for one that is not above 0."""

    max_params: int | None = None
    """Trained parameters."""
    max_flops: float | None = None
    """FLOPs per image, as ``flops_per_image`` counts them."""
    max_memory: int | None = None
    """Bytes of tensors while training, as :func:`fvae.memory.training_memory` counts them."""

    def __post_init__(self) -> None:
        for option, value in self._given():
            require_positive(option, value)

    def allows(self, candidate: Candidate) -> bool:
        """Whether a candidate is within the limits. The cheapest limit is looked at first."""
        return self.allows_size(candidate) and (self.max_memory is None or candidate.memory_bytes <= self.max_memory)

    def allows_size(self, candidate: Candidate) -> bool:
        """Whether a candidate's size alone is within the limits: not its activations, whose count costs a second."""
        if self.max_params is not None and candidate.params > self.max_params:
            return False
        if self.max_flops is not None and candidate.flops_per_image > self.max_flops:
            return False
        return self.max_memory is None or STATE_BYTES * candidate.params <= self.max_memory

    def allows_trial(self, record: TrialRecord) -> bool:
        """Whether a trial that has begun is within the limits, which may be lower than they were then."""
        if not self._given():
            return True
        try:
            return self.allows(Candidate.of(record))
        except ConfigError:  # another version's
            return False

    def __str__(self) -> str:
        """The limits as options, for a line to the user; empty where there are none."""
        return " ".join(f"{option} {value:,}" for option, value in self._given())

    def _given(self) -> list[tuple[str, float]]:
        fields = {"--max-params": self.max_params, "--max-flops": self.max_flops, "--max-memory": self.max_memory}
        return [(option, value) for option, value in fields.items() if value is not None]


class Untried:
    """The candidates of a source, less what is beyond the limits and what was taken."""

    def __init__(self, source: CandidateSource, limits: Limits, seed: int) -> None:
        self.source, self.limits, self.seed = source, limits, seed
        self._taken: set[str] = set()

    def __contains__(self, candidate: Candidate) -> bool:
        """Whether a candidate may be proposed."""
        return candidate.key not in self._taken and self.limits.allows(candidate)

    def take(self, key: str) -> None:
        """The candidate of this :attr:`tune.propose.candidates.Candidate.key` is not to be proposed (again)."""
        self._taken.add(key)

    def draw(self, family: str, count: int = 1) -> list[Candidate]:
        """``count`` different ones, each drawn uniformly; fewer where no more are found.

        The draw is a function of the seed and of how many are taken, so that a search that was killed goes on as
        it would have. Raises ``ConfigError``, one line, where there is none.
        """
        rng = np.random.default_rng(derived_seed(self.seed, f"untried/{family}/{len(self._taken)}"))
        found: dict[str, Candidate] = {}
        too_large = 0
        for candidate in self._stream(family, rng):
            if candidate.key in self._taken or candidate.key in found or not self.limits.allows_size(candidate):
                continue
            if self.limits.allows(candidate):
                found[candidate.key] = candidate
            else:
                too_large += 1
            if len(found) == count or too_large == MOST_COUNTED:
                break
        if not found:
            raise ConfigError(self._none_left(family))
        return list(found.values())

    def _stream(self, family: str, rng: np.random.Generator) -> Iterator[Candidate]:
        for _ in range(MOST_DRAWN // DRAWN_AT_ONCE):
            drawn = self.source.draw(family, DRAWN_AT_ONCE, rng)
            yield from drawn
            if not drawn:
                return

    def _none_left(self, family: str) -> str:
        limits = str(self.limits)
        within = f" within {limits}" if limits else ""
        widen = "raise the limit" if limits else "widen tune/space.py"
        return f"family {family!r}: no untried model{within} is found; {widen}, or leave it out of --families"
