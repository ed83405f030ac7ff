"""A search's parts, put together from its settings: what may be trained, who chooses, and who stops."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fvae.data import Dataset
from fvae.train_config import TrainConfig
from tune.budget import Budget
from tune.candidates import SpaceCandidates
from tune.designs import first_models
from tune.forecasts import Forecasts
from tune.ledger import Ledger
from tune.limits import Limits
from tune.proposers import OptunaProposer, Proposer
from tune.settings import SearchSettings
from tune.space import SearchSpace
from tune.standings import Standings
from tune.warm_start import WarmStart, warm_start

if TYPE_CHECKING:  # it imports Ray
    from tune.searcher import FrontSearcher


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a search is made of, besides the machines."""

    source: SpaceCandidates
    """All models."""
    limits: Limits
    """Which of them may be trained."""
    standings: Standings
    """How the trials stand, for the scheduler."""
    searcher: FrontSearcher
    """The order of work."""
    said: str | None
    """A line to the user on what an earlier search gave."""


def assemble(settings: SearchSettings, dataset: Dataset, ledger: Ledger, budget: Budget) -> Parts:
    """The parts for a search's images and ledger.

    Raises ``ConfigError`` for a ``--warm-start`` that is of no use, ``StorageError`` where its storage does not answer.
    """
    from tune.scheduler import Rule  # both import Ray, which takes seconds
    from tune.searcher import FrontSearcher

    channels, height, width = dataset.shape
    space = SearchSpace.for_images(dataset.shape)
    images = {"channels": channels, "height": height, "width": width, "bins": dataset.bins}
    train = TrainConfig(
        epochs=settings.epochs, batch_size=settings.batch_size, precision=settings.precision, seed=settings.seed
    )
    source = SpaceCandidates(space, images, train)
    limits = limits_of(settings)
    earlier = _earlier(settings, dataset, source, ledger)
    first = first_models(source, limits, settings.families, settings.max_trials, earlier.fronts if earlier else None)
    standings = Standings(
        ledger, Forecasts(Rule().rungs(settings.epochs), settings.epochs, dataset.bins), bins=dataset.bins
    )
    observed = earlier.observed if earlier else ()
    proposer: Proposer
    most_worth = None
    if settings.sampler == "front":
        from tune.front_proposer import FrontProposer

        proposer = FrontProposer(
            standings,
            source,
            limits,
            space,
            images,
            epochs=settings.epochs,
            seed=settings.seed,
            first=first,
            earlier=observed,
        )
        most_worth = proposer.most_worth if settings.goal == "front" else None
    else:
        proposer = OptunaProposer(
            settings.sampler, source=source, limits=limits, first=first, earlier=observed, seed=settings.seed
        )
    searcher = FrontSearcher(
        ledger=ledger,
        proposer=proposer,
        families=settings.families,
        budget=budget,
        seeds=settings.seeds,
        most_worth=most_worth,
    )
    return Parts(source, limits, standings, searcher, earlier.summary if earlier else None)


def limits_of(settings: SearchSettings) -> Limits:
    """What a model may cost at most."""
    return Limits(
        max_params=settings.max_params,
        max_flops=None if settings.max_flops is None else int(settings.max_flops),
        max_memory=settings.max_memory_bytes,
    )


def _earlier(settings: SearchSettings, dataset: Dataset, source: SpaceCandidates, ledger: Ledger) -> WarmStart | None:
    if settings.warm_start is None:
        return None
    return warm_start(
        settings.warm_start,
        storage=settings.all_runs(),
        run=ledger.root,
        dataset_hash=dataset.content_hash(),
        source=source,
        families=settings.families,
    )
