"""Assemble a search's parts from its settings: the candidates, the limits, the proposer, the searcher and the rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from fvae.likelihood import uniform_bits_per_dim
from fvae.train_config import TrainConfig
from tune.propose.candidates import CandidateSource, SpaceCandidates
from tune.propose.designs import MOST, first_models
from tune.propose.expected_front import ExpectedFronts
from tune.propose.front_proposer import FrontProposer
from tune.propose.limits import Limits
from tune.propose.proposers import OptunaProposer, Proposer
from tune.propose.undecided_sizes import UndecidedSizes
from tune.propose.warm_start import WarmStart, warm_start
from tune.records.ledger import Ledger
from tune.run.tune_searcher import Allowance, FrontSearcher
from tune.settings import SearchSettings
from tune.space import SearchSpace
from tune.stats.forecasts import Forecasts
from tune.stopping import StoppingRule

SIGMA_LEARNING_RATE = 0.03
"""Learning rate of log σ1 and log σ2 in every trial: scales that must grow thirtyfold, as on MNIST, take a hundred
steps instead of six hundred; elsewhere it makes no difference (``docs/model.md``)."""


class Images(Protocol):
    """The part of a :class:`fvae.data.images.Dataset` that the parts of a search depend on."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""

    @property
    def bins(self) -> int:
        """Levels of a pixel."""

    def content_hash(self) -> str:
        """Hash of every pixel; needed for a warm start alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a search decides. The defaults are what users get; benchmarks replace one to measure what it contributes."""

    rule: StoppingRule = StoppingRule()
    """When a trial is stopped."""
    designs: int = MOST
    """Sound models that each family begins with, at most. 0: what it begins with is drawn at random."""
    by_size: bool = True
    """Whether a model's size counts. False: the front is the lowest bits/dim alone."""
    extrapolate: bool = True
    """Whether a part-trained trial counts by what it is forecast to reach. False: it counts by what it has reached so
    far, and is compared with others after equal training."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a search is made of, besides the machines."""

    source: CandidateSource
    """All models."""
    limits: Limits
    """Which of them may be trained."""
    expected: ExpectedFronts
    """Forecasts and expected fronts, for the scheduler."""
    searcher: FrontSearcher
    """The order of work."""
    warm_start: str | None
    """A line to the user on what an earlier search contributes; None without one."""


def assemble(
    settings: SearchSettings,
    images: Images,
    ledger: Ledger,
    budget: Allowance,
    *,
    validation_samples: int = 1,
    source: CandidateSource | None = None,
    strategy: Strategy | None = None,
) -> Parts:
    """The parts for a search's images and ledger.

    Args:
        settings: what the user asks for.
        images: what the models are for.
        ledger: of the search, opened.
        budget: of the search.
        validation_samples: noise samples of each validation image, in every trial.
        source: the models that may be trained. By default they are those of the images' search space; another source
            needs the sampler ``front`` and no warm start, as everything else reads the space.
        strategy: how the search decides; by default as every user's search does.

    Raises ``ConfigError`` for a ``--warm-start`` that is of no use, ``StorageError`` where its storage does not answer.
    """
    strategy = strategy or Strategy()
    one_front = settings.goal == "front"
    channels, height, width = images.shape
    space = SearchSpace.for_images(images.shape, images.bins)
    # In the space's order, whose first is that of most designs.
    likelihoods = tuple(each for each in space.likelihood if each in settings.likelihoods)
    space = dataclasses.replace(space, likelihood=likelihoods)
    fields = {"channels": channels, "height": height, "width": width, "bins": images.bins}
    in_space = SpaceCandidates(space, fields, shared_training(settings, validation_samples))
    if source is None:
        source = in_space
    elif settings.sampler != "front" or settings.warm_start is not None:
        raise ValueError("another source needs the sampler 'front' and no warm start")
    limits = limits_of(settings)
    earlier = _earlier(settings, images, in_space, ledger)
    fronts = earlier.fronts if earlier else None
    first = first_models(source, limits, settings.families, settings.max_trials, fronts=fronts, most=strategy.designs)
    expected = ExpectedFronts(
        ledger,
        Forecasts(strategy.rule.rungs(settings.epochs), settings.epochs, uniform_bits_per_dim(images.bins)),
        bins=images.bins,
        compete=one_front,
        by_size=strategy.by_size,
        extrapolate=strategy.extrapolate,
    )
    observed = earlier.observed if earlier else ()
    proposer: Proposer
    next_family: Callable[[Sequence[str]], str | None] | None = None
    if settings.sampler == "front":
        proposer = FrontProposer(
            expected,
            source,
            limits,
            space,
            fields,
            epochs=settings.epochs,
            seed=settings.seed,
            first=first,
            earlier=observed,
            undecided=UndecidedSizes(expected.forecasts, settings.seed) if settings.goal == "decide" else None,
        )
        if settings.goal != "map":
            next_family = proposer.best_family if one_front else proposer.least_certain_family
    else:
        proposer = OptunaProposer(
            settings.sampler, source=in_space, limits=limits, first=first, earlier=observed, seed=settings.seed
        )
    searcher = FrontSearcher(
        ledger=ledger,
        proposer=proposer,
        families=settings.families,
        budget=budget,
        seeds=settings.seeds,
        next_family=next_family,
        may_go_on=limits.allows_trial,
    )
    return Parts(source, limits, expected, searcher, earlier.summary if earlier else None)


def shared_training(settings: SearchSettings, validation_samples: int) -> TrainConfig:
    """How every trial is trained, but for what is searched of it."""
    return TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        precision=settings.precision,
        seed=settings.seed,
        validation_samples=validation_samples,
        sigma_learning_rate=SIGMA_LEARNING_RATE,
    )


def limits_of(settings: SearchSettings) -> Limits:
    """What a model may cost at most."""
    return Limits(
        max_params=settings.max_params,
        max_flops=None if settings.max_flops is None else int(settings.max_flops),
        max_memory=settings.max_memory_bytes,
    )


def _earlier(settings: SearchSettings, images: Images, source: SpaceCandidates, ledger: Ledger) -> WarmStart | None:
    if settings.warm_start is None:
        return None
    return warm_start(
        settings.warm_start,
        storage=settings.all_runs(),
        run=ledger.root,
        dataset_hash=images.content_hash(),
        source=source,
        families=settings.families,
    )
