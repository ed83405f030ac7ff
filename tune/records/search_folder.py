"""The folder of a search's run, and ``search.json`` in it: a run belongs to one search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fvae.config import ConfigError
from fvae.data.images import Dataset
from fvae.data.streaming import StreamedDataset
from pipelines.data.datasets import describe
from pipelines.storage import Storage
from pipelines.storage.json_objects import read_json
from tune.settings import SearchSettings

SEARCH = "search.json"
FORMAT = 4
"""Raised whenever models, figures or records of an earlier version would no longer compare."""
COMPARED = ("epochs", "batch_size", "precision", "seed")
"""Settings that all trials of a run share, besides the data set."""


ENOUGH_SAMPLES = 2000
"""Validation images times noise samples, beyond which more no longer reduce the standard error noticeably."""
MAX_VALIDATION_SHARE = 0.45
"""Ratio of validated samples to the epoch's training images: all but the first sample take some 4% of its time."""


def validation_samples(counts: Mapping[str, int]) -> int:
    """Noise samples of each validation image: several where the images are few, and one epoch's time allows it.

    An image of a validation costs about a ninth of one of training; up to four samples go through a model together.
    """
    few = ENOUGH_SAMPLES // max(1, counts["val"])
    cheap = int(MAX_VALIDATION_SHARE * counts["train"] / max(1, counts["val"]))
    return max(1, min(few, cheap, 4))


def open_search(run: Storage, settings: SearchSettings, dataset: Dataset) -> dict[str, Any]:
    """``search.json`` of this run, made or checked. Raises ``ConfigError`` where it is another search's."""
    search, there = check_search(run, settings, dataset)
    if not there:
        run.write(SEARCH, (json.dumps(search, indent=1) + "\n").encode())
    return search


def check_search(run: Storage, settings: SearchSettings, dataset: Dataset) -> tuple[dict[str, Any], bool]:
    """What ``search.json`` of this run holds or is to hold, and whether it is there; nothing is written.

    Raises ``ConfigError`` where it is another search's.
    """
    streamed = isinstance(dataset, StreamedDataset)  # which is another order of the same images
    mine = {
        "format": FORMAT,
        "dataset": describe(dataset),
        "streamed": streamed,
        "validation_samples": validation_samples(dataset.counts()),
        **{name: getattr(settings, name) for name in COMPARED},
    }
    try:
        search = read_json(run, SEARCH)
    except FileNotFoundError:
        if run.exists("job.json"):
            raise ConfigError(f"{run.uri}: holds a training; give another --name") from None
        return mine, False
    search = {"validation_samples": 1} | search  # of an earlier version, whose trials its later ones must compare with
    if search.get("format") != FORMAT:
        raise ConfigError(f"{run.uri}: a search of another version of this software; give another --name")
    theirs = search["dataset"]
    if theirs["hash"] != mine["dataset"]["hash"]:
        raise ConfigError(
            f"{run.uri}: holds a search of another data set ({theirs['name']}, hash {theirs['hash']}; "
            f"this is {dataset.name}, hash {mine['dataset']['hash']}); give another --name"
        )
    if search["streamed"] != streamed:
        raise ConfigError(
            f"{run.uri}: was searched with its images {'streamed' if search['streamed'] else 'in memory'}, and trials "
            f"must compare; give --streaming {'always' if search['streamed'] else 'never'} or another --name"
        )
    for name in COMPARED:
        if search[name] != mine[name]:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{run.uri}: was searched with {option} {search[name]}, not {mine[name]}, and trials must compare; "
                f"give {option} {search[name]} or another --name"
            )
    return search, True
