"""Write a saved model as an MLflow model, a folder that MLflow serves: code, weights, requirements, no pickle.

    write_model_folder(Path("my-model"), Path("my-model-for-mlflow"), dataset_name="digits")

    MLmodel               what it is: signature, params, requirements
    pyfunc_model.py       what serves it (:mod:`pipelines.tracking.pyfunc_model`)
    code/fvae/            the model library, as it was when the folder was written
    artifacts/weights/    what ``fvae.save`` wrote
    requirements.txt      and python_env.yaml, conda.yaml: for an environment of its own

Nothing in it depends on where it lies.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import fvae
from fvae.checkpoint import CONFIG, WEIGHTS
from fvae.config import ModelConfig, require
from fvae.files import read_json, temporary_beside
from pipelines.tracking.settings import quiet_mlflow

if TYPE_CHECKING:  # it costs a second to import
    from mlflow.models import ModelSignature

REQUIREMENTS = ("torch>=2.11,<2.14", "numpy>=2", "safetensors>=0.6")
"""What ``fvae`` needs, as pyproject.toml says it; MLflow adds itself."""

_SCRIPT = Path(__file__).with_name("pyfunc_model.py")
MLMODEL, ARTIFACT = "MLmodel", "artifacts/weights"
"""What makes a folder an MLflow model, and where the weights lie in one of ours."""


def write_model_folder(saved_model: Path, destination: Path, *, dataset_name: str) -> None:
    """Make the MLflow model at ``destination``, whole or not at all, in place of what is there.

    Args:
        saved_model: a folder that ``fvae.save`` wrote.
        destination: a local folder.
        dataset_name: the data set that the model was trained on, for the folder's metadata.

    Raises ``ConfigError`` where ``saved_model`` is no saved model, ``OSError`` where the disk fails. No package
    registry is asked.
    """
    for name in (WEIGHTS, CONFIG):
        require((saved_model / name).is_file(), f"{saved_model}: no {name} there; fvae.save writes it")
    config = ModelConfig.from_dict(read_json(saved_model / CONFIG))
    destination.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary_beside(destination)
    try:
        _save_model(saved_model, beside, config, dataset_name)
        if destination.exists():
            shutil.rmtree(destination)
        beside.rename(destination)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _save_model(saved_model: Path, path: Path, config: ModelConfig, dataset_name: str) -> None:
    quiet_mlflow()  # before the import, which reads some of it
    import mlflow
    from mlflow.models import Model

    described = Model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example")  # the signature says what to send
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(_SCRIPT),
            code_paths=[str(Path(fvae.__file__).parent)],
            signature=_signature(config),
            pip_requirements=list(REQUIREMENTS),
            metadata={"family": config.family, "dataset": dataset_name, "bins": config.bins},
            mlflow_model=described,
        )
    # Not by `save_model`, which writes down from which absolute path they came.
    artifact = path / ARTIFACT
    artifact.mkdir(parents=True)
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(saved_model / name, artifact / name)
    description = described.flavors["python_function"]
    description["artifacts"] = {artifact.name: {"path": ARTIFACT, "uri": ARTIFACT}}
    description["model_code_path"] = _SCRIPT.name
    described.model_size_bytes = sum(file.stat().st_size for file in artifact.iterdir())
    described.save(str(path / MLMODEL))


def _signature(config: ModelConfig) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from pipelines.tracking.pyfunc_model import DEFAULTS, pass_inputs_unconverted

    types = {str: "string", int: "long", float: "double"}
    params = [ParamSpec(name, types[type(value)], value) for name, value in DEFAULTS.items()]
    inputs = Schema([TensorSpec(np.dtype("uint8"), (-1, *config.image_shape))])
    signature = ModelSignature(inputs=inputs, params=ParamSchema(params))
    pass_inputs_unconverted(signature)
    return signature
