"""The models that gpu_steps.py and memory.py measure."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fvae import ModelConfig, TrainConfig

PAPER = Path(__file__).parents[1] / "configs" / "paper-64x64.toml"
SIZES = {
    "tiny": {"flow_levels": 2, "flow_depth": 1, "coupling_width": 8, "encoder_levels": 1, "encoder_width": 8},
    "small": {"flow_levels": 3, "flow_depth": 4, "coupling_width": 64, "encoder_levels": 2, "encoder_width": 40},
    "middle": {
        "flow_levels": 3,
        "flow_depth": 12,
        "coupling_width": 160,
        "encoder_levels": 2,
        "encoder_blocks": 3,
        "encoder_width": 88,
    },
}
"""f-VAEs of 32×32 colour images: 11 thousand, 0.5 and 5 million parameters."""
BATCHES = {"tiny": 8, "small": 128, "middle": 128}


def model(name: str) -> tuple[ModelConfig, TrainConfig]:
    """A size of ``SIZES``, or ``paper``: its configuration file."""
    if name == "paper":
        tables = tomllib.loads(PAPER.read_text(encoding="utf-8"))
        return ModelConfig.from_dict(tables["model"]), TrainConfig.from_dict(tables["train"])
    shape = {"channels": 3, "height": 32, "width": 32}
    return ModelConfig(family="fvae", **shape, **SIZES[name]), TrainConfig(batch_size=BATCHES[name], learning_rate=1e-3)  # type: ignore[arg-type]
