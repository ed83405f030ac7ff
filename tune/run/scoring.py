"""Read the test split, once, for the models of the fronts, each in a process of Ray's.

A module without Ray Tune, whose import would cost each of these processes a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from fvae import ConfigError, NonFiniteError
from fvae.config import one_line
from fvae.data.images import Dataset, ImageSource, derived_seed, image_source
from fvae.evaluation import evaluate, standard_error
from pipelines.data.datasets import memory_bytes
from pipelines.storage import StorageError, open_storage
from pipelines.training import main_memory
from pipelines.training.model_files import ModelError, load_model
from pipelines.training.worker_warnings import keep_warnings, raise_trouble, trouble, with_warnings
from tune.records.ledger import Ledger, TrialRecord
from tune.records.scores import TestResult, keep_image_bits
from tune.run.gpu_shares import limit_to_share

if TYPE_CHECKING:
    from tune.run.resources import Resources


def read_test_split(
    trial_uri: str, images: np.ndarray | ImageSource, seed: int, threads: int, device: str
) -> dict[str, Any]:
    """Test bits/dim of a trial's saved model, k = 1 and 64, over every image ``[N, C, H, W]``.

    Returns ``test``, or ``failure``, one line, where the model cannot be measured: not finite, or gone; or what
    :func:`pipelines.training.worker_warnings.trouble` makes of a storage that fails.
    """
    torch.set_num_threads(threads)
    keep_warnings()
    limit_to_share(device)
    return with_warnings(_read_test_split(trial_uri, images, seed, device))


def _read_test_split(trial_uri: str, images: np.ndarray | ImageSource, seed: int, device: str) -> dict[str, Any]:
    try:
        storage = open_storage(trial_uri)
        model = load_model(storage, device)
        source = image_source(images)
        one, many = (evaluate(model, source, k=k, seed=derived_seed(seed, f"test/{k}")) for k in (1, 64))
        keep_image_bits(storage, one)
    except (NonFiniteError, ModelError) as error:
        return {"failure": f"test split: {error}"}
    except torch.OutOfMemoryError:  # no trial's fault
        return trouble(ConfigError(f"the test split of {trial_uri} needs more of a GPU; give --gpus-per-trial 1"))
    except (OSError, ConfigError) as error:
        return trouble(error)
    result = TestResult(
        bpd=float(one.mean()),
        bpd_iwae64=float(many.mean()),
        standard_error=standard_error(one),
        standard_error_iwae64=standard_error(many),
        seed=seed,
    )
    return {"test": result}


def read_tests(
    resources: Resources, dataset: Dataset, ledger: Ledger, ids: Sequence[str], warn: Callable[[str], None]
) -> Iterator[TrialRecord]:
    """Read the test split for each model of ``ids``, side by side; yields each record when it is written.

    A model that cannot be measured fails its trial, with the reason: the fronts may then be others. A storage that
    fails raises ``OSError`` or ``ConfigError``; ``warn`` gets a line for each retry.
    """
    images = ray.put(dataset.images("test"))
    settings = resources.settings
    waiting = list(reversed(ids))
    pending: dict[ray.ObjectRef, str] = {}
    while waiting or pending:
        while waiting and len(pending) < (settings.concurrent or len(ids)):
            record = ledger.records[waiting.pop()]
            gpus = resources.gpus(record.config, record.train)
            read = ray.remote(num_cpus=settings.cpus_per_trial, num_gpus=gpus)(read_test_split)
            arguments = (images, settings.seed, settings.cpus_per_trial, settings.device)
            pending[read.remote(ledger.trial_storage(record.id).uri, *arguments)] = record.id
        (done,), _ = ray.wait(list(pending))
        record_id = pending.pop(done)
        try:
            result: dict[str, Any] = ray.get(done)
        except RayError as error:
            raise StorageError(f"{record_id}: its test split was not read: {_why_lost(error)}") from error
        for line in result.get("warnings", ()):
            warn(f"{record_id}: {line}")
        raise_trouble(result)
        failed = "failure" in result
        outcome = {"status": "failed", "reason": result["failure"]} if failed else {"test": result["test"]}
        yield ledger.update(record_id, **outcome)


def _why_lost(error: RayError) -> str:
    """One line for a reading that failed or whose process was ended, and what would do."""
    if main_memory.ran_out(f"{type(error).__name__} {error}"):
        room = None if "RAY_ADDRESS" in os.environ else memory_bytes()  # it may have run on another machine
        in_use = main_memory.was_in_use(room)
        return f"out of memory: {in_use}; the same command with --concurrent 1 reads one by one"
    if isinstance(error, RayTaskError):
        message = one_line(error.cause, 200)
        return f"{type(error.cause).__name__}: {message}; the same command tries it again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its process was lost ({(lines or [type(error).__name__])[0][:200]}); the same command goes on"
