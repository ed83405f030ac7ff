"""Models on disk: what is loaded is what was saved, or one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fvae import ConfigError, ModelConfig, build, evaluate, load, save
from fvae.checkpoint import write_tensors
from fvae.files import write_bytes
from tests.versions import of_the_first_version

pytestmark = pytest.mark.core


def model(family: str = "fvae"):
    torch.manual_seed(0)
    built = build(
        ModelConfig(
            family=family, channels=1, height=4, width=4, bins=8, flow_levels=1, coupling_width=8, mixing="permutation"
        )
    )
    built.initialize(IMAGES)
    return built


IMAGES = torch.randint(0, 8, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_loaded_model_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    saved = model(family)
    save(saved, tmp_path / "model")
    torch.manual_seed(1)  # another permutation, were it not saved
    loaded = load(tmp_path / "model")
    assert loaded.config == saved.config
    assert not loaded.training
    assert torch.equal(evaluate(saved, IMAGES, k=3), evaluate(loaded, IMAGES, k=3))


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_a_model_of_an_earlier_version_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    """Its config lacks the fields that have come since; σ(x') of a VAE was always a network's."""
    saved = model(family)
    values = of_the_first_version("model", saved.config.to_dict())
    tmp_path.joinpath("config.json").write_text(json.dumps(values))
    write_tensors(tmp_path / "model.safetensors", saved.state_dict(), {"config": values})
    loaded = load(tmp_path)
    assert loaded.config == saved.config
    assert torch.equal(evaluate(saved, IMAGES, k=3), evaluate(loaded, IMAGES, k=3))


def test_loaded_model_keeps_its_actnorm(tmp_path: Path) -> None:
    save(model("flow"), tmp_path)
    loaded = load(tmp_path).train()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    loaded.bits_per_dim(IMAGES + 0)  # would initialise a new model
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_float64_model_stays_float64(tmp_path: Path) -> None:
    save(model("flow").double(), tmp_path)
    assert next(load(tmp_path).parameters()).dtype == torch.float64


def test_missing_damaged_and_mixed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load(tmp_path)
    save(model("fvae"), tmp_path)
    save(model("flow"), tmp_path / "other")
    (tmp_path / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="different models"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load(tmp_path)
    weights = tmp_path / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        load(tmp_path / "other")


def test_no_pickle_on_disk(tmp_path: Path) -> None:
    save(model(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    json.loads((tmp_path / "config.json").read_text())
    assert not (tmp_path / "model.safetensors").read_bytes().startswith((b"PK", b"\x80"))


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
