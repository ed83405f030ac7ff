"""The one reading of a trial's test split, in a process of Ray's.

A module without Ray Tune, whose import would cost each of these processes a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fvae import ConfigError, NonFiniteError
from fvae.data.images import ImageSource, derived_seed, image_source
from fvae.evaluation import evaluate, standard_error
from pipelines.storage import open_storage
from pipelines.training.model_files import ModelError, load_model
from pipelines.training.worker_warnings import keep_warnings, trouble, with_warnings
from tune.map.image_bits import keep_image_bits
from tune.records.ledger import TestResult
from tune.run.gpu_memory import keep_to_share


def read_test_split(
    trial_uri: str, images: np.ndarray | ImageSource, seed: int, threads: int, device: str
) -> dict[str, Any]:
    """Test bits/dim of a trial's saved model, k = 1 and 64, over every image ``[N, C, H, W]``.

    Returns ``test``, or ``failure``, one line, where the model cannot be measured: not finite, or gone; or what
    :func:`pipelines.training.worker_warnings.trouble` makes of a storage that fails.
    """
    torch.set_num_threads(threads)
    keep_warnings()
    keep_to_share(device)
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
