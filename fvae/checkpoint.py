"""Save and load models: safetensors with JSON, never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fvae.config import ConfigError, ModelConfig
from fvae.files import read_json, write_text, written_whole
from fvae.model import Model, build

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHECKSUM = "sha256"


def save(model: Model, path: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` into the folder ``path``, each whole or absent.

    The header of the weights also holds the config, which :func:`load` compares with the JSON.
    """
    path = Path(path)
    config = json.dumps(model.config.to_dict(), indent=1)
    write_text(path / CONFIG, config + "\n")
    write_tensors(path / WEIGHTS, model.state_dict(), {"config": model.config.to_dict()})


def load(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Load the model that is saved in the folder ``path``, on ``device``, in evaluation mode.

    Raises ``ConfigError`` where a file is missing, damaged or belongs to another model.
    """
    path = Path(path)
    for name in (WEIGHTS, CONFIG):
        if not (path / name).is_file():
            raise ConfigError(f"{path}: no {name} there; a saved model is a folder with {WEIGHTS} and {CONFIG}")
    tensors, metadata = read_tensors(path / WEIGHTS, device)
    values = read_json(path / CONFIG)
    if values != metadata.get("config"):
        raise ConfigError(f"{path}: {CONFIG} and {WEIGHTS} are of different models; save the model again")
    model = build(ModelConfig.from_dict(values))
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    model.to(device=device, dtype=dtype)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{path / WEIGHTS}: does not fit its own config ({str(error).splitlines()[0]})") from error
    return model.eval()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write one safetensors file, whole or absent; its header has ``metadata`` (JSON values) and a checksum of all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {key: json.dumps(value) for key, value in metadata.items()}
    header[CHECKSUM] = _checksum(contiguous, header)
    with written_whole(path) as file:  # by name: without a copy of all in memory
        safetensors.torch.save_file(contiguous, file.name, metadata=header)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote. Raises ``ConfigError`` for a damaged file, ``OSError`` as ``open`` does.

    Every tensor and the metadata are verified; only a file that another program wrote has no checksum.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            header = dict(file.metadata() or {})
        written = header.pop(CHECKSUM, None)
        metadata = {key: json.loads(value) for key, value in header.items()}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: not a whole safetensors file ({error})") from error
    if written is not None and written != _checksum(tensors, header):
        raise ConfigError(f"{path}: damaged (its content is not what its checksum says)")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def _checksum(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    """SHA-256 (hex) of what a file holds: contiguous tensors on the CPU and the header's other entries."""
    digest = hashlib.sha256(json.dumps(sorted(header.items())).encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Bring the names, types, shapes and content of tensors into a hash, whatever their order and device."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
