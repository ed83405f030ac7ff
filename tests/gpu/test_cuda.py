"""The same code on a CUDA GPU. Not part of `make test`: run `make test-gpu` where there is one.

It needs torch, numpy, safetensors, pyarrow and pytest alone.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from fvae import Model, ModelConfig, NonFiniteError, TrainConfig, Trainer, build, evaluate
from fvae.memory import training_memory
from fvae.precision import true_float32

pytestmark = pytest.mark.gpu

NETWORKS = {"likelihood": "discretized", "posterior_scale": "network", "decoder_scale": "network"}
OPTIONS: dict[str, dict[str, Any]] = {
    "vae": {"family": "vae"},
    "flow": {"family": "flow"},
    "fvae": {"family": "fvae"},
    "flow-variational": {"family": "flow", "dequantization": "variational", "sigma1_init": 0.0},
    "vae-discretized": {"family": "vae", **NETWORKS},
    "fvae-discretized": {"family": "fvae", **NETWORKS},
}
SHAPES = [(1, 28, 28), (3, 32, 32)]


def config(options: str, shape: tuple[int, int, int]) -> ModelConfig:
    channels, height, width = shape
    return ModelConfig(
        **OPTIONS[options],
        channels=channels,
        height=height,
        width=width,
        flow_levels=2,
        flow_depth=4,
        coupling_width=64,
        encoder_levels=2,
        encoder_width=64,
    )


def perturbed(options: str, shape: tuple[int, int, int]) -> Model:
    """A new model whose last convolutions are not zero, as they begin: they would hide what comes before them."""
    torch.manual_seed(0)
    model = build(config(options, shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("log_sigma1", "log_sigma2"):
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def images(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Smooth random images: low resolution, enlarged, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(count, channels, height // 4, width // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 240 + 15 * torch.rand(fine.shape, generator=generator)).to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_bits_on_the_gpu_equal_those_on_the_cpu(options: str, shape: tuple[int, int, int], device: str) -> None:
    """In float64 on the CPU and in float32 on the GPU, where TF32 alone is off by some 1e-2."""
    model = perturbed(options, shape)
    batch = images(16, shape)
    model.initialize(batch)
    noise = model.double().noise(16)
    with torch.no_grad():
        on_cpu = model.log_weight(batch, *noise)
        r, u = (each.float().to(device) for each in noise)
        with true_float32(device):
            on_gpu = model.float().to(device).log_weight(batch.to(device), r, u).cpu()
    difference = (on_cpu - on_gpu).abs() / (math.prod(shape) * math.log(2))
    assert float(difference.max()) < 1e-3


@pytest.mark.parametrize("options", OPTIONS)
def test_an_evaluation_on_the_gpu_is_in_float32(options: str, device: str) -> None:
    """Also where the user lets cuBLAS use TF32, as cuDNN does by default."""
    model = perturbed(options, (3, 32, 32))
    batch = images(16, (3, 32, 32))
    model.initialize(batch)
    model.to(device)
    exact = evaluate(model, batch, k=4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        allowed = evaluate(model, batch, k=4)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(exact, allowed)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_is_finite_and_learns(options: str, shape: tuple[int, int, int], precision: str, device: str) -> None:
    train = TrainConfig(epochs=10, batch_size=64, learning_rate=1e-3, precision=precision)  # type: ignore[arg-type]
    trainer = Trainer(config(options, shape), train, images(1024, shape), images(128, shape, seed=1), device)
    epochs = []
    while not trainer.finished:
        epochs.append(trainer.train_epoch().val_bpd)
    assert all(math.isfinite(bits) for bits in epochs)
    assert epochs[-1] < epochs[0]
    assert evaluate(trainer.best_model(), images(64, shape, seed=2), k=8).isfinite().all()


def test_flow_inverts_after_bf16_training(device: str) -> None:
    train = TrainConfig(epochs=5, batch_size=64, learning_rate=1e-3, precision="bf16")
    trainer = Trainer(config("flow", (3, 32, 32)), train, images(512, (3, 32, 32)), images(64, (3, 32, 32)), device)
    while not trainer.finished:
        trainer.train_epoch()
    model = trainer.best_model()
    w = torch.rand(32, 3, 32, 32, device=device) - 0.5
    with torch.no_grad(), true_float32(device):
        z, _ = model.flow(w)
        assert float((model.flow.inverse(z) - w).abs().max()) < 1e-4


def test_non_finite_training_is_caught_within_an_epoch(device: str) -> None:
    train = TrainConfig(epochs=2, batch_size=64)
    trainer = Trainer(config("flow", (1, 28, 28)), train, images(256, (1, 28, 28)), images(64, (1, 28, 28)), device)
    trainer.train_step()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.inf)
    with pytest.raises(NonFiniteError, match="step 1 "):
        trainer.train_epoch()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_checkpointing_and_compiling_change_how_not_what(precision: str, device: str) -> None:
    """Within what kernels that add in another order do to a few steps."""
    train = TrainConfig(epochs=1, batch_size=64, precision=precision)  # type: ignore[arg-type]
    ways = [{}, {"checkpoint_activations": True}, {"compile": True}, {"graph": True}, {"compile": True, "graph": True}]
    reached = []
    for way in ways:
        data = images(320, (3, 32, 32)), images(128, (3, 32, 32), seed=1)
        reached.append(Trainer(config("fvae", (3, 32, 32)), train, *data, device, **way).train_epoch().val_bpd)
    assert reached[1:] == pytest.approx(reached[:1] * (len(ways) - 1), abs=0.01)


def test_a_graph_is_captured_and_replayed(device: str) -> None:
    """Epochs whose last batch is smaller among them, with no warning that it was not possible."""
    train = TrainConfig(epochs=3, batch_size=32)
    trainer = Trainer(
        config("fvae", (1, 28, 28)), train, images(100, (1, 28, 28)), images(64, (1, 28, 28)), device, graph=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while not trainer.finished:
            trainer.train_epoch()
    if device == "cuda":
        static_step = trainer._optimizer_step.static_step
        assert static_step is not None and static_step._graph is not None


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_memory_is_what_was_computed(precision: str, checkpoint_activations: bool, device: str) -> None:
    """Never much more than computed; on top come what kernels take as scratch space and rounding."""
    if device == "cpu":
        pytest.skip("the allocator that counts is the GPU's")
    shape, batch = (3, 32, 32), 256
    train = TrainConfig(epochs=2, batch_size=batch, precision=precision)  # type: ignore[arg-type]
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(
        config("fvae", shape),
        train,
        images(batch, shape),
        images(64, shape),
        device,
        checkpoint_activations=checkpoint_activations,
    )
    while not trainer.finished:
        trainer.train_epoch()
    measured = torch.cuda.max_memory_allocated() - before
    computed = training_memory(
        trainer.model.config,
        batch,
        precision=precision,  # type: ignore[arg-type]
        checkpoint_activations=checkpoint_activations,
    ).total
    scratch = 256 * 2**20
    assert 0.8 * computed < measured < 1.1 * computed + scratch
