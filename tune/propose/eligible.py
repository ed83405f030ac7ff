"""Which models may still be proposed: within the limits, and neither tried nor proposed before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fvae.config import ConfigError
from fvae.data.images import derived_seed
from tune.propose.candidates import Candidate, CandidateSource
from tune.propose.limits import Limits

AT_ONCE = 100
"""How many candidates are drawn at a time where most are beyond the limits, or tried."""
MOST = 10_000
"""How many are drawn before it is said that there is none."""
MOST_COUNTED = 100
"""How many of them may be within all limits but ``--max-memory``, which takes up to a second to count."""


class Untried:
    """The candidates of a source, less what is beyond the limits and what was taken."""

    def __init__(self, source: CandidateSource, limits: Limits, seed: int) -> None:
        self.source, self.limits, self.seed = source, limits, seed
        self._taken: set[str] = set()

    def __contains__(self, candidate: Candidate) -> bool:
        """Whether it may be proposed."""
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
        for _ in range(MOST // AT_ONCE):
            drawn = self.source.draw(family, AT_ONCE, rng)
            yield from drawn
            if not drawn:
                return

    def _none_left(self, family: str) -> str:
        limits = str(self.limits)
        within = f" within {limits}" if limits else ""
        widen = "raise the limit" if limits else "widen tune/space.py"
        return f"family {family!r}: no untried model{within} is found; {widen}, or leave it out of --families"
