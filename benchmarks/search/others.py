"""The other tuners that the search is measured against, each in four ways.

Plain: one search over all families. ``stratified``: three searches, one a family, in turn, as someone would do who
wants each family's front. ``designs``: it begins with the sound designs that this project's own search begins with,
as every one of these tools can be told to. Settings are the tools' own defaults but where a variant of
:data:`VARIANTS` did better.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.samplers import BaseSampler

from benchmarks.search.curves import Curves
from benchmarks.search.halving import TuneAsha, random_order
from benchmarks.search.optuna_searches import OptunaSearch, joint_tpe, nsga2, tpe
from benchmarks.search.replay import Decision, MakeMethod, Method
from fvae import ConfigError
from fvae.config import FAMILIES

DESIGNS = 6
"""Sound designs of each family that a search begins with, in those ways that begin with some."""


class RandomSearch:
    """Rows in random order, all fully trained."""

    def __init__(self, curves: Curves, seed: int, first: Sequence[int] = ()) -> None:
        self._untried = random_order(curves, seed, first)

    def start(self) -> int | None:
        """The next one."""
        return self._untried.popleft() if self._untried else None

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """Always on."""
        return Decision.CONTINUE

    def ended(self, row: int, complete: bool) -> None:
        """Nothing is learned."""


class Stratified:
    """One search for each family, in turn; each sees its own family's rows alone."""

    def __init__(self, make: MakeMethod, curves: Curves, seed: int) -> None:
        self._members = [
            [index for index, row in enumerate(curves.rows) if row.family == family] for family in FAMILIES
        ]
        self._members = [members for members in self._members if members]
        self._searches: list[Method] = [
            make(dataclasses.replace(curves, rows=tuple(curves.rows[index] for index in members)), 1000 * seed + place)
            for place, members in enumerate(self._members)
        ]
        self._home = {
            row: (place, index) for place, members in enumerate(self._members) for index, row in enumerate(members)
        }
        self._turn = 0

    def start(self) -> int | None:
        """Of the family whose turn it is; of the next one that has something to train."""
        for _ in self._searches:
            place, self._turn = self._turn, (self._turn + 1) % len(self._searches)
            index = self._searches[place].start()
            if index is not None:
                return self._members[place][index]
        return None

    def report(self, row: int, epoch: int, val_bpd: float) -> Decision:
        """What the family's search says."""
        place, index = self._home[row]
        return self._searches[place].report(index, epoch, val_bpd)

    def ended(self, row: int, complete: bool) -> None:
        """Tell the family's search."""
        place, index = self._home[row]
        self._searches[place].ended(index, complete)


def from_designs(make: Callable[..., Method], curves: Curves, seed: int) -> Method:
    """A search that begins with sound designs, as this project's own does."""
    return make(curves, seed, first=curves.designs(DESIGNS))


def _optuna(curves: Curves, seed: int, first: Sequence[int] = (), *, sampler: Callable[[int], BaseSampler]) -> Method:
    return OptunaSearch(curves, seed, first, sampler=sampler(seed))


def _moasha(curves: Curves, seed: int, first: Sequence[int] = (), **settings: Any) -> Method:
    try:
        from benchmarks.search.moasha import SyneTuneMoasha
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"moasha is Syne Tune's, and {error.name} is not installed: "
            "pip install --no-deps -r benchmarks/search/requirements.txt"
        ) from error
    return SyneTuneMoasha(curves, seed, first, **settings)


def halvings(grace: int, factor: int) -> dict[str, Callable[..., Method]]:
    """Tune's ASHA, and Syne Tune's MOASHA as it is released and with its ranks put right."""
    settings = {"grace_period": grace, "reduction_factor": factor}
    return {
        "asha": functools.partial(TuneAsha, **settings),
        "moasha": functools.partial(_moasha, **settings, repaired=False),
        "moasha repaired": functools.partial(_moasha, **settings, repaired=True),
    }


def four_ways(methods: Mapping[str, Callable[..., Method]]) -> dict[str, MakeMethod]:
    """Plain and from designs, and both family by family."""
    both = dict(methods) | {f"{name} designs": functools.partial(from_designs, make) for name, make in methods.items()}
    return both | {f"{name} stratified": functools.partial(Stratified, make) for name, make in both.items()}


TOOLS: dict[str, Callable[..., Method]] = {
    "random": RandomSearch,
    "tpe": functools.partial(_optuna, sampler=tpe),
    "nsga2": functools.partial(_optuna, sampler=nsga2),
    "asha": halvings(grace=1, factor=4)["asha"],
    "moasha": halvings(grace=1, factor=3)["moasha"],
    "moasha repaired": halvings(grace=1, factor=3)["moasha repaired"],
}
"""What is compared; each of these :func:`four_ways`."""

METHODS = four_ways(TOOLS)

VARIANTS = four_ways(
    {
        "tpe joint": functools.partial(_optuna, sampler=joint_tpe),
        "nsga2 of 16": functools.partial(_optuna, sampler=functools.partial(nsga2, population=16)),
        "nsga2 of 24": functools.partial(_optuna, sampler=functools.partial(nsga2, population=24)),
        **{
            f"{name} {grace}/{factor}": make
            for grace in (1, 2, 4)
            for factor in (3, 4)
            for name, make in halvings(grace, factor).items()
        },
    }
)
"""Other settings, by which those of :data:`TOOLS` were chosen; of halving, grace period/reduction factor."""
