"""Training: repeatable and resumable to the bit, guarded against non-finite figures, honest about its data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fvae import ConfigError, ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.data.images import TensorImages, derived_seed
from fvae.evaluation import evaluate
from fvae.iwae import iwae_bits_per_dim
from fvae.model import images_at_once
from fvae.workers import Workers
from tests.versions import of_the_first_version

pytestmark = pytest.mark.core

CLOCKED = ("seconds", "images_per_second", "time_ms")
FAMILIES = ("vae", "flow", "fvae")
SETTINGS = TrainConfig(epochs=3, batch_size=16, warmup_steps=4, learning_rate=3e-3)


def config(family: str, **changes: object) -> ModelConfig:
    small = {"bins": 8, "coupling_width": 8, "flow_depth": 2, "encoder_width": 8, "flow_levels": 1}
    return ModelConfig(family=family, channels=1, height=4, width=4, **{**small, **changes})  # type: ignore[arg-type]


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth random images: neighbours are alike, so there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 6, (count, 1, 1, 1), generator=generator)
    return (base + torch.randint(0, 2, (count, 1, 4, 4), generator=generator)).to(torch.uint8)


def trainer(family: str = "fvae", train: TrainConfig = SETTINGS, **changes: object) -> Trainer:
    return Trainer(config(family, **changes), train, images(50), images(20, seed=1))


def weights(trained: Trainer) -> list[Tensor]:
    states = (trained.model.state_dict(), trained.ema.state_dict(), trained.best_model().state_dict())
    return [tensor for state in states for tensor in state.values()]


def run(trained: Trainer) -> list[dict]:
    """Train to the end; the epochs' metrics, without what depends on the clock."""
    epochs = []
    while not trained.finished:
        metrics = dataclasses.asdict(trained.train_epoch())
        epochs.append({name: metrics[name] for name in metrics if name not in CLOCKED})
    return epochs


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_weights_to_the_bit(family: str) -> None:
    first, second = trainer(family), trainer(family)
    torch.manual_seed(999)  # the trainer's random state is its own
    assert run(first) == run(second)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    other = trainer(family, dataclasses.replace(SETTINGS, seed=1))
    assert run(other) != run(trainer(family))


def test_arrays_tensors_and_sources_of_them_train_alike_to_the_bit() -> None:
    measured = []
    for kind in (lambda tensor: tensor, Tensor.numpy, TensorImages):
        trained = Trainer(config("vae"), SETTINGS, kind(images(50)), kind(images(20, seed=1)))
        measured.append((run(trained), weights(trained)))
    for epochs, tensors in measured[1:]:
        assert epochs == measured[0][0]
        assert all(torch.equal(a, b) for a, b in zip(tensors, measured[0][1], strict=True))


NETWORKS = {"likelihood": "discretized", "posterior_scale": "network", "decoder_scale": "network"}
OPTIONS: dict[str, tuple[TrainConfig, dict[str, object]]] = {
    **{family: (SETTINGS, {"family": family}) for family in FAMILIES},
    "discretized": (dataclasses.replace(SETTINGS, sigma_learning_rate=1e-2), {"family": "fvae", **NETWORKS}),
    "variational": (
        dataclasses.replace(SETTINGS, validation_samples=3),
        {"family": "flow", "dequantization": "variational", "sigma1_init": 0.0},
    ),
    "KL warm-up": (dataclasses.replace(SETTINGS, kl_warmup=0.5), {"family": "vae"}),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("epochs", "steps"), [(0, 1), (1, 0), (1, 2), (2, 3)])
def test_resumed_equals_uninterrupted_to_the_bit(options: str, epochs: int, steps: int, tmp_path: Path) -> None:
    train, model = OPTIONS[options]
    family = str(model["family"])
    changes = {name: value for name, value in model.items() if name != "family"}
    whole = trainer(family, train, **changes)
    measured = run(whole)
    stopped = trainer(family, train, **changes)
    for _ in range(epochs):
        stopped.train_epoch()
    for _ in range(steps):
        stopped.train_step()
    stopped.save(tmp_path / "state.safetensors")
    resumed = trainer(family, train, **changes)
    resumed.restore(tmp_path / "state.safetensors")
    assert run(resumed) == measured[epochs:]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_restore_refuses_another_training(tmp_path: Path) -> None:
    trained = trainer("flow")
    trained.train_step()
    path = tmp_path / "state.safetensors"
    trained.save(path)
    with pytest.raises(ConfigError, match="model differs"):
        trainer("flow", coupling_width=9).restore(path)
    with pytest.raises(ConfigError, match="train differs"):
        trainer("flow", dataclasses.replace(SETTINGS, epochs=4)).restore(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        trainer("flow").restore(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_an_earlier_version_goes_on(family: str, tmp_path: Path) -> None:
    """Its configs lack the fields that have come since."""
    stopped = trainer(family)
    stopped.train_epoch()
    state = stopped.state()
    assert state is not None
    for part in ("model", "train"):
        state.metadata[part] = of_the_first_version(part, state.metadata[part])
    state.write(tmp_path / "state.safetensors")
    resumed = trainer(family)
    resumed.restore(tmp_path / "state.safetensors")
    assert run(resumed) == run(trainer(family))[1:]


def test_the_scales_have_a_learning_rate_of_their_own() -> None:
    """The first step of Adam moves every parameter by its rate."""
    train = dataclasses.replace(SETTINGS, warmup_steps=0, learning_rate=1e-3, sigma_learning_rate=0.05)
    trained = trainer("fvae", train)
    before = {name: parameter.detach().clone() for name, parameter in trained.model.named_parameters()}
    trained.train_step()
    moved = {name: (parameter - before[name]).abs().max() for name, parameter in trained.model.named_parameters()}
    for name in ("log_sigma1", "log_sigma2"):
        assert float(moved.pop(name)) == pytest.approx(0.05, rel=1e-3)
    moved = {name: each for name, each in moved.items() if "affine" not in name}  # ActNorm is set in the first step
    assert max(map(float, moved.values())) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_in_static_memory_is_the_same_step(options: str, precision: str, tmp_path: Path) -> None:
    """Also the last of an epoch, of 2 images instead of 16, and where it goes on from either kind's checkpoint."""
    train, model = OPTIONS[options]
    train = dataclasses.replace(train, precision=precision)
    family, changes = str(model["family"]), {name: value for name, value in model.items() if name != "family"}

    def made(graph: bool) -> Trainer:
        return Trainer(config(family, **changes), train, images(50), images(20, seed=1), graph=graph)

    expected, static = run(made(False)), made(True)
    tolerance = 1e-3 if precision == "float32" else 2e-2
    ways = [static, *(resumed_from(made(graph), made(not graph), tmp_path) for graph in (False, True))]
    for trained in ways:
        measured = run(trained)
        for epoch, plain in zip(measured, expected[-len(measured) :], strict=True):
            assert epoch == pytest.approx(plain, abs=tolerance, rel=tolerance)


def resumed_from(first: Trainer, second: Trainer, folder: Path) -> Trainer:
    """``second``, which goes on where ``first`` has stopped in the midst of its second epoch."""
    first.train_epoch()
    first.train_step()
    first.save(folder / "state.safetensors")
    second.restore(folder / "state.safetensors")
    return second


def test_several_workers_or_micro_batches_have_no_static_step() -> None:
    for options in ({"micro_batch_size": 4}, {"workers": Workers(rank=0, count=2)}):
        with pytest.raises(ConfigError, match="graph=True: a step of"):
            Trainer(config("flow"), SETTINGS, images(50), images(20), graph=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["vae", "fvae"])
def test_a_warmed_up_kl_divergence_counts_in_the_gradient_alone(family: str) -> None:
    """β·∇KL and the whole gradient of the reconstruction, whereas the bits/dim are the bound's at any β."""
    model = trainer(family).model
    batch = images(30)
    noise = model.noise(30, torch.Generator().manual_seed(0))
    model.initialize(batch, noise=noise)
    plain = gradients(model, batch, noise)
    found = {}
    for weight in (0.0, 0.25, 1.0):
        model.kl_weight = torch.tensor(weight)
        bits, found[weight] = gradients(model, batch, noise)
        torch.testing.assert_close(bits, plain[0], rtol=1e-6, atol=1e-6)
    for name, whole in plain[1].items():
        torch.testing.assert_close(found[1.0][name], whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found[0.25][name], 0.75 * found[0.0][name] + 0.25 * whole, rtol=1e-3, atol=1e-6, msg=name
        )
    assert any(not torch.allclose(found[0.0][name], whole) for name, whole in plain[1].items())
    parts = [name for name, gradient in found[0.0].items() if name.startswith("flow.") and gradient.any()]
    assert not parts  # F is seen by the prior alone


def gradients(model: torch.nn.Module, batch: Tensor, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Bits/dim of a batch, and the gradient of their mean to each parameter."""
    bits = model(batch, noise=noise)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(bits.mean(), list(parameters.values()), allow_unused=True, materialize_grads=True)
    return bits.detach(), dict(zip(parameters, found, strict=True))


def test_the_weight_of_the_kl_divergence_rises_over_its_share_of_the_steps() -> None:
    trained = trainer("vae", dataclasses.replace(SETTINGS, kl_warmup=0.5))  # 12 steps
    seen = []
    while not trained.finished:
        trained.train_step()
        assert trained.model.kl_weight is not None
        seen.append(float(trained.model.kl_weight))
    assert seen == pytest.approx([min(1, step / 6) for step in range(12)])
    assert trainer("vae").model.kl_weight is None
    assert trained.best_model().kl_weight is None


def test_a_flow_has_no_kl_divergence_to_warm_up() -> None:
    with pytest.raises(ConfigError, match=r"kl_warmup=0\.5: a flow has no KL divergence"):
        trainer("flow", dataclasses.replace(SETTINGS, kl_warmup=0.5))


def test_validation_averages_its_noise_samples() -> None:
    """The same bound with less of the noise's luck: the mean of as many draws, and nearer to the mean of many."""
    trained = trainer("fvae")
    run(trained)
    model, validation = trained.best_model(), images(20, seed=1)
    generator = torch.Generator().manual_seed(derived_seed(7, "batch/0"))
    draws = torch.stack([iwae_bits_per_dim(model, validation, 1, generator) for _ in range(5)])
    found = evaluate(model, validation, samples=5, seed=7)
    torch.testing.assert_close(found, draws.mean(0).double())
    spread = [
        torch.stack([evaluate(model, validation, samples=count, seed=s).mean() for s in range(30)]).std()
        for count in (1, 16)
    ]
    assert float(spread[1]) < 0.5 * float(spread[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_validation_bits(family: str) -> None:
    long = dataclasses.replace(SETTINGS, epochs=40, learning_rate=1e-2)
    epochs = run(trainer(family, long))
    assert epochs[-1]["val_bpd"] < epochs[0]["val_bpd"] - 0.1
    assert epochs[-1]["images"] == 40 * 50


def test_best_model_is_that_of_the_lowest_epoch() -> None:
    trained = trainer("flow", dataclasses.replace(SETTINGS, epochs=30, learning_rate=5e-2))
    epochs = run(trained)
    lowest = min(epochs, key=lambda epoch: epoch["val_bpd"])
    assert trained.best_epoch == lowest["epoch"]
    assert trained.best_val_bpd == lowest["val_bpd"]
    best = float(evaluate(trained.best_model(), images(20, seed=1), seed=derived_seed(SETTINGS.seed, "val")).mean())
    assert best == lowest["val_bpd"]


@pytest.mark.parametrize("family", FAMILIES)
def test_non_finite_loss_ends_training_with_step_and_cause(family: str) -> None:
    trained = trainer(family)
    for _ in range(5):
        trained.train_step()
    name, parameter = next(iter(trained.model.named_parameters()))
    with torch.no_grad():
        parameter.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"step 5 \(epoch 2\): loss (nan|inf)") as caught:
        trained.train_step()
    assert "first non-finite in" in str(caught.value)


def test_a_non_finite_model_is_never_saved(tmp_path: Path) -> None:
    trained = trainer("flow")
    trained.train_step()
    trained._optimizer_step.guard._bad_step.fill_(0)
    with pytest.raises(NonFiniteError, match="step 0"):
        trained.save(tmp_path / "state.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_non_finite_image_fails_the_evaluation() -> None:
    trained = trainer("flow")
    with torch.no_grad():
        next(trained.model.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="20 of 20 images"):
        evaluate(trained.model, images(20))


def test_evaluation_counts_every_image_of_a_ragged_last_batch() -> None:
    model = trainer("flow").best_model()
    count = images_at_once(model.config) + 3
    bits = evaluate(model, images(count), k=2)
    assert bits.shape == (count,)
    assert bits.dtype == torch.float64


def test_evaluation_takes_its_noise_in_batches_that_the_shape_alone_fixes() -> None:
    """Published figures depend on it."""
    model = trainer("flow").best_model()
    many, noise = images(300), torch.Generator()
    by_hand = []
    for number, part in enumerate(many.split(128)):
        noise.manual_seed(derived_seed(5, f"batch/{number}"))
        by_hand.append(iwae_bits_per_dim(model, part, 1, noise).double())
    assert torch.equal(evaluate(model, many, seed=5), torch.cat(by_hand))


@given(st.integers(1, 30), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_an_epoch_trains_on_every_image_once(count: int, batch_size: int) -> None:
    """Batches of an epoch put together are the images, whatever the batch size divides."""
    numbered = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    train = TrainConfig(epochs=2, batch_size=batch_size)
    trained = Trainer(config("flow", bins=256), train, numbered, numbered)
    seen = []
    for step in range(trained.steps_per_epoch):
        seen += trained._batches.share(step)[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(count))
    assert trained._batches.images_before(trained.steps_per_epoch) == count


def test_bf16_trains_near_float32_and_evaluates_in_float32() -> None:
    plain, half = (trainer("fvae", dataclasses.replace(SETTINGS, precision=p, epochs=6)) for p in ("float32", "bf16"))
    in_plain, in_half = run(plain)[-1]["val_bpd"], run(half)[-1]["val_bpd"]
    assert in_half == pytest.approx(in_plain, abs=0.05)
    assert in_half != in_plain  # autocast was really on
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("ema_decay", 1.0),
        ("precision", "fp8"),
        ("seed", -1),
        ("gradient_clip", 0.0),
        ("weight_decay", -0.1),
        ("kl_warmup", 1.5),
        ("sigma_learning_rate", 0.0),
        ("validation_samples", 0),
    ],
)
def test_impossible_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        TrainConfig(**{field: value})  # type: ignore[arg-type]
