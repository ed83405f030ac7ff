"""How fast an epoch is read from shards, and how long training the smallest models waits for it, in one run.

    python benchmarks/reading.py DATASET --output benchmarks/results/reading.txt

DATASET is what `python -m pipelines.ingest` wrote: a folder or an s3:// prefix. First the reading alone:
a whole epoch of batches, shuffled, with nothing to train. Then, of each family, the smallest model of the
search's space trains on the streamed images and on the same images in memory, in turn. Waiting is all
the time that the trainer spends asking for its next batch, the gathering of its images included; filling
the first window, before the first step, is shown apart.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import optuna
import torch
import tyro
from torch import Tensor

from fvae import ConfigError, Manifest, ModelConfig, ShardedImages, TrainConfig, Trainer
from fvae.config import FAMILIES, Family
from fvae.data.images import ImageSource, image_source, read_only_tensor, steps_per_epoch
from fvae.data.manifest import MANIFEST
from fvae.data.shards import load_images
from pipelines.storage import open_storage
from tune.space import SearchSpace, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is read, and for how long."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Folder or s3:// prefix of an ingested data set."""
    steps: int = 1500
    """Training steps of each model, at least 200."""
    batch: int = 32
    """Images per step."""
    buffer_mib: int = 32
    """Shuffle buffer, decoded MiB: small, so that windows change during the run."""
    threads: int = 2
    """CPU threads of the training."""
    device: str = "cpu"
    """Where the models train."""
    families: tuple[Family, ...] = FAMILIES
    """Whose smallest models train."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what is printed to this file."""


class Timed:
    """A source that notes how long each of its batches is waited for."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.waits: list[float] = []

    @property
    def shape(self) -> tuple[int, int, int]:
        """The source's."""
        return self.source.shape

    def __len__(self) -> int:
        return len(self.source)

    def for_worker(self, worker: int, workers: int) -> Timed:
        """This one: the benchmark trains alone."""
        return self

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """The source's."""
        return self.source.in_order(batch_size)

    def first(self, count: int) -> Tensor:
        """The source's."""
        return self.source.first(count)

    def batches(self, **place: int) -> Iterator[Tensor]:
        """The source's batches, each timed."""
        batches = self.source.batches(**place)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append(time.perf_counter() - started)
            yield batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One training."""

    parameters: int
    """Of the model."""
    images_per_second: float
    """From the second step on."""
    first: float
    """Seconds until the first batch was there."""
    waited: float
    """Share of the time from the second step on that was spent waiting."""
    waited_in_all: float
    """The same with the first batch."""


def smallest(family: Family, shape: tuple[int, int, int], bins: int) -> tuple[ModelConfig, dict[str, float]]:
    """The smallest model of the search's space, and the lowest learning rate."""
    space = SearchSpace.for_images(shape, bins)
    point = {name: low for name, (low, *_) in vars(space).items()}
    point |= {"coupling": "additive", "mixing": "permutation", "posterior_scale": "scalar", "decoder_scale": "scalar"}
    point["latent_share"] = (space.latent_share_vae if family == "vae" else space.latent_share)[-1]
    if family == "vae":
        point["sigma1_latent"] = point["sigma1_vae"]
    channels, height, width = shape
    images = {"channels": channels, "height": height, "width": width, "bins": bins}
    return suggest(optuna.trial.FixedTrial(point), family, space, images)


def train(settings: Settings, family: Family, images: Tensor | ImageSource, val: Tensor, bins: int) -> Measured:
    """Train the smallest model of ``family`` on ``images``."""
    timed = Timed(image_source(images))
    model, searched = smallest(family, timed.shape, bins)
    epochs = -(-settings.steps // steps_per_epoch(len(timed), settings.batch))
    config = TrainConfig(epochs=epochs, batch_size=settings.batch, **searched)
    # A tensor goes to the device as a whole, as in a search.
    trainer = Trainer(model, config, images if isinstance(images, Tensor) else timed, val, settings.device)
    trainer.train_step()
    started = time.perf_counter()
    for _ in range(settings.steps - 1):
        trainer.train_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    first, waited = sum(timed.waits[:1]), sum(timed.waits[1:])
    return Measured(
        parameters=trainer.model.parameter_count(),
        images_per_second=(settings.steps - 1) * settings.batch / seconds,
        first=first,
        waited=waited / seconds,
        waited_in_all=(waited + first) / (seconds + first),
    )


def read_only(source: ShardedImages, batch: int) -> str:
    """One line: an epoch of batches with nothing to train."""
    started = time.perf_counter()
    images = sum(len(images) for images in source.batches(seed=0, epoch=0, batch_size=batch))
    seconds = time.perf_counter() - started
    size = sum(shard.bytes for shard in source.manifest.of_split("train"))
    return (
        f"reading alone: {images:,} images of {len(source.manifest.of_split('train'))} shards in {seconds:.2f} s: "
        f"{images / seconds:,.0f} images/s, {size / seconds / 1e6:.0f} MB/s of files"
    )


def main(settings: Settings) -> None:
    """Read, train, print."""
    if settings.steps < 200:
        raise SystemExit("error: --steps: at least 200")
    torch.set_num_threads(settings.threads)
    try:
        storage = open_storage(settings.dataset)
        manifest = Manifest.from_json(storage.read(MANIFEST), f"{storage.uri}/{MANIFEST}")
    except (ConfigError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    load = os.getloadavg()[0]
    streamed = ShardedImages(manifest, "train", storage.read, buffer_bytes=settings.buffer_mib * 2**20)
    in_memory = read_only_tensor(load_images(manifest, "train", storage.read))
    shape = "×".join(map(str, manifest.shape))
    windows = len(list(streamed.windows(0, 0)))
    report = [
        f"{manifest.name} ({shape}), {'S3' if storage.local_path is None else 'local'}, {settings.steps} steps of "
        f"batch {settings.batch}, buffer {settings.buffer_mib} MiB: {windows} windows an epoch",
        f"{settings.threads} threads, {settings.device}, load average {load:.1f} before, {platform.machine()}, "
        f"torch {torch.__version__}",
        "",
        read_only(streamed, settings.batch),
        "",
        f"{'smallest':8}  {'parameters':>10}  {'images/s in memory':>18}  {'streamed':>8}  "
        f"{'first batch':>11}  {'waited':>7}  {'with the first':>14}",
    ]
    val = in_memory[:64]
    for family in settings.families:
        memory, shards = (train(settings, family, images, val, manifest.bins) for images in (in_memory, streamed))
        report.append(
            f"{family:8}  {shards.parameters:>10,}  {memory.images_per_second:>18,.0f}  "
            f"{shards.images_per_second:>8,.0f}  {shards.first:>9.2f} s  {shards.waited:>7.2%}  "
            f"{shards.waited_in_all:>14.2%}"
        )
    text = "\n".join(report)
    print(text)
    if settings.output:
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        settings.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
