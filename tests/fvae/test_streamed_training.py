"""A streamed data set is the one in memory, to models that train on it and are measured by it."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fvae import ModelConfig, TrainConfig, Trainer, build, evaluate
from fvae.config import ConfigError
from fvae.data import streaming as streaming_module
from fvae.data.images import ImageDataset
from fvae.data.manifest import Manifest
from fvae.data.shards import load_images
from fvae.data.streaming import ShardedImages, StreamedDataset
from fvae.model import images_at_once
from tests.fvae.datasets import (
    Files,
    in_shards,
    settle,
)

pytestmark = pytest.mark.core


def smooth(count: int, seed: int) -> np.ndarray:
    """Images with something to learn: 4×4, 8 levels."""
    random = np.random.default_rng(seed)
    return (random.integers(6, size=(count, 1, 1, 1)) + random.integers(2, size=(count, 1, 4, 4))).astype(np.uint8)


def smooth_dataset() -> tuple[Manifest, Files, ImageDataset]:
    sizes = {"train": [20, 13, 17], "val": [300, 400], "test": [9]}
    images = {split: smooth(sum(held), seed) for seed, (split, held) in enumerate(sizes.items())}
    manifest, files = in_shards({split: (images[split], sizes[split]) for split in sizes}, bins=8, name="smooth")
    return manifest, files, ImageDataset(name="smooth", bins=8, **images)


def test_a_streamed_data_set_is_the_one_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, files, memory = smooth_dataset()
    streamed = pickle.loads(pickle.dumps(StreamedDataset(manifest, files.fetch)))
    for name in ("name", "bins", "shape"):
        assert getattr(streamed, name) == getattr(memory, name)
    assert streamed.counts() == memory.counts() == {"train": 50, "val": 700, "test": 9}
    assert streamed.content_hash() == memory.content_hash()
    assert isinstance(streamed.images("train"), ShardedImages)
    for split in ("val", "test"):
        assert np.array_equal(streamed.images(split), memory.images(split))
    assert memory.held_bytes() == sum(memory.images(split).nbytes for split in ("train", "val", "test"))
    assert streamed.held_bytes() == memory.val.nbytes + memory.test.nbytes
    monkeypatch.setattr(streaming_module, "HELD_BYTES", memory.val.nbytes - 1)
    assert streamed.held_bytes() == memory.test.nbytes
    assert isinstance(streamed.images("val"), ShardedImages)
    assert isinstance(streamed.images("test"), np.ndarray)
    for dataset in (streamed, memory):
        with pytest.raises(ConfigError, match="split='all': must be one of train, val, test"):
            dataset.images("all")


CLOCKED = ("seconds", "images_per_second", "time_ms")
CONFIG = ModelConfig(
    family="vae", channels=1, height=4, width=4, bins=8, coupling_width=8, encoder_width=8, flow_depth=1
)
TRAIN = TrainConfig(epochs=3, batch_size=16, warmup_steps=4, learning_rate=3e-3)


def test_a_streamed_evaluation_is_that_in_memory_to_the_bit() -> None:
    manifest, files, memory = smooth_dataset()
    torch.manual_seed(0)
    model = build(CONFIG)
    model.initialize(torch.from_numpy(memory.train))
    assert len(memory.val) > images_at_once(CONFIG)  # several chunks, which end inside shards
    in_memory = evaluate(model, torch.from_numpy(memory.val), k=2, seed=3)
    streamed = evaluate(model, ShardedImages(manifest, "val", files.fetch), k=2, seed=3)
    assert torch.equal(in_memory, streamed)
    assert torch.equal(in_memory, evaluate(model, load_images(manifest, "val", files.fetch), k=2, seed=3))


def trainer(fetch: Any = None, model: ModelConfig = CONFIG, train: TrainConfig = TRAIN) -> Trainer:
    manifest, files, _ = smooth_dataset()
    sources = (ShardedImages(manifest, split, fetch or files.fetch, buffer_bytes=400) for split in ("train", "val"))
    return Trainer(model, train, *sources)


def run(trained: Trainer) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Train to the end: the epochs' metrics, without what depends on the clock, and all weights."""
    epochs = []
    while not trained.finished:
        metrics = dataclasses.asdict(trained.train_epoch())
        epochs.append({name: metrics[name] for name in metrics if name not in CLOCKED})
    return epochs, [*trained.model.state_dict().values(), *trained.best_model().state_dict().values()]


@pytest.mark.parametrize(("epochs", "steps"), [(0, 1), (0, 3), (1, 0), (2, 2)])
def test_streamed_training_resumed_equals_uninterrupted_to_the_bit(epochs: int, steps: int, tmp_path: Path) -> None:
    measured, weights = run(trainer())
    assert [epoch["images"] for epoch in measured] == [50, 100, 150]
    stopped = trainer()
    for _ in range(epochs):
        stopped.train_epoch()
    for _ in range(steps):
        stopped.train_step()
    stopped.save(tmp_path / "state.safetensors")
    resumed = trainer()
    resumed.train_step()  # of an iterator that the restored state has no use for
    resumed.restore(tmp_path / "state.safetensors")
    again, resumed_weights = run(resumed)
    assert again == measured[epochs:]
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed_weights, strict=True))
    settle()


def test_training_goes_on_after_a_read_that_failed_as_if_it_had_not() -> None:
    measured, weights = run(trainer())
    manifest, files, _ = smooth_dataset()

    def fetch(key: str) -> bytes:
        content = files.fetch(key)
        if len(files.read) == 5:
            raise ConnectionResetError(key)
        return content

    trained = trainer(fetch)
    failures, epochs = 0, []
    while not trained.finished:
        try:
            metrics = dataclasses.asdict(trained.train_epoch())
        except ConnectionResetError:
            failures += 1
            continue
        epochs.append({name: metrics[name] for name in metrics if name not in CLOCKED})
    assert failures == 1
    assert epochs == measured
    assert all(torch.equal(a, b) for a, b in zip(weights, trained.model.state_dict().values(), strict=False))


def test_streamed_and_in_memory_training_learn_alike() -> None:
    _, _, memory = smooth_dataset()
    flow = dataclasses.replace(CONFIG, family="flow", flow_levels=1)
    long = dataclasses.replace(TRAIN, epochs=30, learning_rate=1e-2)
    streamed, _ = run(trainer(model=flow, train=long))
    in_memory, _ = run(Trainer(flow, long, memory.train, memory.val))
    assert streamed != in_memory  # another order
    assert streamed[-1]["val_bpd"] < streamed[0]["val_bpd"] - 0.1
    assert streamed[-1]["val_bpd"] == pytest.approx(in_memory[-1]["val_bpd"], abs=0.1)
