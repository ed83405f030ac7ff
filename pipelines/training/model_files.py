"""What a training leaves in its storage: the model and its pictures."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch

from fvae import ConfigError, Model, Trainer, load, save
from fvae.data.images import derived_seed
from pipelines.storage import Storage
from pipelines.storage.json_objects import address
from pipelines.storage.local_copies import written_to
from pipelines.training.image_grids import png_grid

MODEL = "model"
SAMPLES, RECONSTRUCTIONS = "samples.png", "reconstructions.png"
INTERPOLATIONS = "interpolations.png"
"""Between pairs of validation images: none where there is only one."""
PICTURES = (SAMPLES, RECONSTRUCTIONS, INTERPOLATIONS)


class ModelError(ValueError):
    """A saved model that is missing or damaged: its own trial's trouble, unlike a storage's. One line."""


def keep_model(trainer: Trainer, storage: Storage) -> None:
    """Write the model with the lowest validation bits/dim, and its pictures, the model last.

    Raises ``OSError`` or ``ConfigError`` where it cannot.
    """
    model = trainer.best_model()
    bins = model.config.bins
    device = trainer.device
    generator = torch.Generator(device).manual_seed(derived_seed(trainer.config.seed, "samples"))
    samples = model.sample(64, generator=generator).cpu().numpy()
    originals = trainer.val_images.first(32).cpu()
    rebuilt = model.reconstruct(originals.to(device)).cpu()
    ends = originals[:8].to(device)
    lines = [model.interpolate(ends[2 * pair], ends[2 * pair + 1], 10).cpu() for pair in range(len(ends) // 2)]
    pairs = torch.stack((originals, rebuilt), dim=1).flatten(0, 1).numpy()  # original, reconstruction, …
    storage.write(SAMPLES, png_grid(samples, bins, 16))
    storage.write(RECONSTRUCTIONS, png_grid(pairs, bins, 16))
    if lines:
        storage.write(INTERPOLATIONS, png_grid(torch.cat(lines).numpy(), bins, 10))
    save_model(model, storage)


def save_model(model: Model, storage: Storage) -> None:
    """Write the model's folder. Raises ``OSError`` or ``ConfigError`` where it cannot."""
    with written_to(storage, MODEL) as path:
        save(model, path)


def load_model(storage: Storage, device: str) -> Model:
    """The model of this place. Raises ``ModelError`` where it is missing or damaged, ``OSError`` where no storage
    answers."""
    with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
        if storage.local_path is not None:
            path = storage.local_path / MODEL
        else:
            path = Path(folder) / MODEL
            with contextlib.suppress(FileNotFoundError):  # load says it better
                storage.download(MODEL, path)
        try:
            return load(path, device)
        except ConfigError as error:
            raise ModelError(str(error).replace(str(path), address(storage, MODEL))) from error
