"""The recipe: the configuration to train, which is the champion's own, a file's, or the best of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fvae.config import ConfigError, ModelConfig, require
from fvae.data.images import Dataset
from fvae.flops import parameters_and_flops
from pipelines.retraining.registered_model import Version
from pipelines.retraining.search import search_for
from pipelines.retraining.settings import RetrainSettings
from pipelines.tracking.registry import RunConfigs
from pipelines.training.configs import TrainConfigs, train_configs
from pipelines.training.settings import TrainSettings


class Champion(NamedTuple):
    """The version in service, and the configuration in its run."""

    version: Version
    configs: RunConfigs | None
    """None where it was not registered by ``pipelines.train`` or ``pipelines.retrain``."""

    @property
    def content_hash(self) -> str | None:
        """Content hash of the data set that it was trained on."""
        return self.configs.data.get("hash") if self.configs else None


def recipe(
    settings: RetrainSettings, dataset: Dataset, champion: Champion | None, say: Callable[[str], None]
) -> tuple[TrainConfigs, str]:
    """The configuration to train, and its source in a few words.

    Runs the search where one is requested. Raises ``ConfigError`` where there is no configuration, or where it does not
    fit the images; ``StorageError`` where the search ends without a result.
    """
    if settings.search is not None:
        known = None if champion is None else champion.configs
        start = None if known is None else TrainConfigs(known.model, known.train, None)
        found = search_for(settings, dataset, start, say)
        return found.configs, found.what
    return without_search(settings, dataset, champion, say)


def without_search(
    settings: RetrainSettings, dataset: Dataset, champion: Champion | None, say: Callable[[str], None]
) -> tuple[TrainConfigs, str]:
    """:func:`recipe` where no search is requested."""
    if settings.config is None and champion is not None:
        if champion.configs is None:
            raise ConfigError(
                f"{settings.model} version {champion.version.number}, the champion, has no training's run, so its "
                "configuration is not known; give --config or --search"
            )
        configs = TrainConfigs(champion.configs.model, champion.configs.train, None)
        return configs, f"the configuration of version {champion.version.number}"
    options = TrainSettings(dataset=settings.dataset or "", storage=settings.storage, config=settings.config)
    return train_configs(options, dataset, say), settings.config or "the defaults"


def require_fit(settings: RetrainSettings, dataset: Dataset, model: ModelConfig, what: str) -> None:
    """Raise ``ConfigError`` unless a model is for images of the data set's shape and levels."""
    mine, theirs = (model.image_shape, model.bins), (tuple(dataset.shape), dataset.bins)
    require(
        mine == theirs,
        f"--dataset {settings.dataset}: images of {_images(*theirs)}; {what} is for {_images(*mine)}. A data set of "
        "other images needs another name, and so another model",
    )


def too_large(settings: RetrainSettings, model: ModelConfig) -> list[str]:
    """The limits of size that a model exceeds, a sentence each."""
    parameters, flops = parameters_and_flops(model)
    found = []
    if settings.max_params is not None and parameters > settings.max_params:
        found.append(f"{parameters:,} parameters are more than --max-params {settings.max_params:,}")
    if settings.max_flops is not None and flops > settings.max_flops:
        found.append(f"{flops:,} FLOPs for an image are more than --max-flops {settings.max_flops:,g}")
    return found


def _images(shape: tuple[int, ...], bins: int) -> str:
    channels, height, width = shape
    return f"{width}×{height}×{channels}, {bins} levels"
