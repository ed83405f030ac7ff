"""MLflow pyfunc of a trained model: MLflow runs this file, which lies in the model's folder beside ``code/fvae``.

    {"inputs": images [N, C, H, W], "params": {"task": "score", "k": 64, "seed": 0}}  →  bits/dim of each image [N]

It imports nothing of this product but ``fvae``. See :mod:`pipelines.tracking.model_folder`, which puts it there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from torch import Tensor

from fvae import Model, NonFiniteError, load
from fvae.model import images_at_once
from fvae.scores import rows_at_once, score

TASKS = ("score", "sample", "reconstruct", "encode")
DEFAULTS: dict[str, Any] = {"task": "score", "k": 1, "seed": 0, "count": 16, "temperature": 1.0}
"""Every param of ``predict`` with its default."""
WEIGHTS = "weights"
"""The artifact that :func:`fvae.load` reads."""

# One request must not hold the server for hours, nor fill its memory.
_MOST_SAMPLES, _MOST_COUNT, _MOST_TEMPERATURE = 100_000, 10_000, 10.0
_LONGEST_VALUE = 40
_KINDS = {"f": "decimal numbers", "U": "text", "b": "true or false"}


class RequestError(MlflowException):
    """A request that cannot be answered: the server answers HTTP 400 with one line, without repeating the images."""

    def __init__(self, line: str) -> None:
        super().__init__(line, INVALID_PARAMETER_VALUE)
        self._line = line

    def serialize_as_json(self) -> str:
        """The body of the server's answer."""
        return json.dumps({"error_code": self.error_code, "message": self._line})


class ImageModel(PythonModel):
    """A model of ``fvae``: on the GPU where there is one, always in float32."""

    _skip_type_hint_validation = True  # private to MLflow, see below: `predict` checks its input, and more closely

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Model = load(Path(context.artifacts[WEIGHTS]), device).float()

    # MLflow would read a hint of `model_input`, and derive from it what may be sent.
    def predict(  # type: ignore[no-untyped-def]
        self, context: PythonModelContext, model_input, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Do ``params["task"]``; the same request has the same answer.

        Args:
            context: not used.
            model_input: levels 0 … bins − 1, an integer array ``[N, C, H, W]`` or lists of it; for ``sample`` anything,
                such as ``[]``.
            params: ``task``, one of

                - ``score``: bits/dim of each image, float64 ``[N]``, from ``k`` samples (1: the ELBO) of noise that
                  ``seed`` and the image's pixels fix: an image has one figure, whatever is sent with it
                  (:func:`fvae.scores.score`);
                - ``sample``: ``count`` images at ``temperature`` from ``seed``, uint8 ``[count, C, H, W]``;
                - ``reconstruct``: G(E(x)) of each image, uint8 ``[N, C, H, W]``;
                - ``encode``: every latent of each image, float32 ``[N, d]``.

        Raises :class:`RequestError`, which is an ``MlflowException``, for what cannot be answered.
        """
        options = _with_defaults(params)
        model, generator = self._model, torch.Generator(self._model.log_sigma1.device).manual_seed(options["seed"])
        # True float32: cuDNN would use TF32 for convolutions by default.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            match options["task"]:
                case "score":
                    images = self._images(model_input)
                    try:
                        return score(model, images, k=int(options["k"]), seed=int(options["seed"])).numpy()
                    except NonFiniteError as error:
                        raise RequestError(f"task='score': {error}") from error
                case "sample":
                    at_once, count = images_at_once(model.config), options["count"]
                    counts = [min(at_once, count - start) for start in range(0, count, at_once)]
                    samples = [model.sample(n, float(options["temperature"]), generator).cpu() for n in counts]
                    return torch.cat(samples).numpy()
                case "reconstruct":
                    return self._in_parts(model.reconstruct, self._images(model_input))
                case _:
                    return self._in_parts(model.encode, self._images(model_input))

    def _in_parts(self, function: Callable[[Tensor], Tensor], images: Tensor) -> np.ndarray:
        """``function`` of all images, always as many at once: how sums are rounded depends on the arrays' shape."""
        device, at_once = self._model.log_sigma1.device, rows_at_once(self._model)
        filled = torch.cat([images, images[-1:].expand(-len(images) % at_once, -1, -1, -1)])
        parts = [function(part.to(device)).cpu() for part in filled.split(at_once)]
        result = torch.cat(parts)[: len(images)].numpy()
        if not np.isfinite(result).all():
            raise RequestError("inputs: this model has no finite answer for them")
        return result

    def _images(self, model_input: Any) -> Tensor:
        """What was sent as uint8 ``[N, C, H, W]``, N ≥ 1; nothing is converted, cut off or wrapped around."""
        config = self._model.config
        needed = f"[N, {', '.join(map(str, config.image_shape))}]"
        try:
            images = np.asarray(model_input)
        except ValueError as error:
            raise RequestError(f"inputs: lists of unequal length, or too deep; send images as {needed}") from error
        if images.ndim != 4 or images.shape[1:] != config.image_shape or not len(images):
            raise RequestError(f"inputs: shape {list(images.shape)}; send images as {needed}, N at least 1")
        if images.dtype.kind not in "iu":
            kind = _KINDS.get(images.dtype.kind, "values that are no numbers")
            raise RequestError(f"inputs: {kind}; send levels, which are integers from 0 to {config.bins - 1}")
        low, high = int(images.min()), int(images.max())
        if low < 0 or high >= config.bins:
            raise RequestError(f"inputs: levels from {low} to {high}; this model has 0 to {config.bins - 1}")
        return torch.from_numpy(images.astype(np.uint8))


def _check(options: Mapping[str, Any]) -> None:
    if unknown := [name for name in options if name not in DEFAULTS]:
        raise RequestError(f"params: {_shown(unknown[0])} is none; use {', '.join(DEFAULTS)}")
    if options["task"] not in TASKS:
        raise RequestError(f"params: task={_shown(options['task'])}; use one of {', '.join(TASKS)}")
    most = {"k": (1, _MOST_SAMPLES), "seed": (0, 2**63 - 1), "count": (1, _MOST_COUNT)}
    for name, (least, largest) in most.items():
        value = options[name]
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not least <= value <= largest:
            raise RequestError(f"params: {name}={_shown(value)}; use an integer from {least} to {largest}")
    temperature = options["temperature"]
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 0 <= temperature <= _MOST_TEMPERATURE:  # NaN neither
        raise RequestError(f"params: temperature={_shown(temperature)}; use a number from 0 to {_MOST_TEMPERATURE:g}")


def _with_defaults(params: Any) -> dict[str, Any]:
    """All params of a request, checked. Raises :class:`RequestError`."""
    if not isinstance(params, Mapping | None):
        raise RequestError(f"params: {_shown(params)}; send a dictionary, such as {{'k': 64}}")
    options = DEFAULTS | {str(name): value for name, value in (params or {}).items() if value is not None}
    _check(options)
    return options


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


# --- private parts of MLflow -------------------------------------------------------------------
# MLflow gives no public way to see a request as it was sent. The parts used are `_skip_type_hint_validation` above and
# the two below; test_serving.py fails where a version of MLflow changes one of them.


def pass_inputs_unconverted(signature: ModelSignature) -> None:
    """Let the scoring server pass on what was sent, where it would make it uint8 silently: 1.5 and "1" become 1."""
    signature._is_signature_from_type_hint = True


def _check_params_ourselves() -> None:
    """Let this model see its params as they were sent.

    MLflow silently drops those with an unknown name, and answers a value of another type with all images. Its own
    check stays for every other model, and where MLflow no longer has this one.
    """
    theirs = getattr(mlflow.pyfunc, "_enforce_params_schema", None)
    if theirs is None or getattr(theirs, "of_fvae", False):
        return

    @functools.wraps(theirs)
    def check(params: Any, schema: Any) -> Any:
        if {each.name for each in getattr(schema, "params", ())} == set(DEFAULTS):
            return _with_defaults(params)
        return theirs(params, schema)

    check.of_fvae = True  # type: ignore[attr-defined]
    mlflow.pyfunc._enforce_params_schema = check  # type: ignore[attr-defined]


_check_params_ourselves()
set_model(ImageModel())
