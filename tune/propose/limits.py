"""What a model may cost at most: decided before it is trained, so that what is beyond costs nothing."""

from __future__ import annotations

import dataclasses

from fvae.config import ConfigError, require_positive
from tune.propose.candidates import Candidate
from tune.records.ledger import TrialRecord

STATE_BYTES = 24
"""Bytes that a training holds of every parameter at least: the weight in float32, its gradient, Adam's two moments,
and the averaged weight, now and of the best epoch."""


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
        """Whether it is as far as its size alone tells: all but what activations take, whose count costs a second."""
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
        """As options, for a line to the user; empty where there are no limits."""
        return " ".join(f"{option} {value:,}" for option, value in self._given())

    def _given(self) -> list[tuple[str, float]]:
        fields = {"--max-params": self.max_params, "--max-flops": self.max_flops, "--max-memory": self.max_memory}
        return [(option, value) for option, value in fields.items() if value is not None]
