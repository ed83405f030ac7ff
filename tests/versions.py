"""What earlier versions wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LATER = {
    "model": (
        "likelihood",
        "posterior_scale",
        "decoder_scale",
        "dequantization",
        "dequantization_width",
        "split_mixing",
    ),
    "train": ("sigma_learning_rate", "validation_samples", "kl_warmup"),
}
"""The fields that have come since the first version, of each config."""


def of_the_first_version(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A config's ``to_dict()`` as the first version wrote it; ``part`` is ``model`` or ``train``."""
    return {name: value for name, value in values.items() if name not in LATER[part]}
