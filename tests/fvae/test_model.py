"""What a trained model can do: latents, reconstructions, samples; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvae.config import ModelConfig
from fvae.data.images import Array
from fvae.evaluation import evaluate
from fvae.iwae import iwae_bits_per_dim
from fvae.model import Model, build
from tests.fvae.strategies import EXAMPLES, config_of, model_configs, perturbed_model, random_images, seeds

pytestmark = pytest.mark.core


@EXAMPLES
@given(config=model_configs(), seed=seeds, temperature=st.sampled_from((0.0, 0.7, 1.0)))
def test_shapes_types_and_ranges(config: ModelConfig, seed: int, temperature: float) -> None:
    model = perturbed_model(config, seed).float()
    images = random_images(config, 3, seed)
    latents = model.encode(images)
    assert latents.shape == (3, latents[0].numel()) and latents.dtype == torch.float32
    assert latents[0].numel() == torch.Size(config.latent_shape).numel()
    for made in (model.sample(3, temperature), model.reconstruct(images), model.decode(latents)):
        assert made.shape == images.shape and made.dtype == torch.uint8
        assert int(made.max()) < config.bins
    assert model.sample(0).shape == (0, *config.image_shape)


@EXAMPLES
@given(config=model_configs(), seed=seeds)
def test_decoded_latents_are_the_reconstruction(config: ModelConfig, seed: int) -> None:
    model = perturbed_model(config, seed)
    images = random_images(config, 4, seed)
    reconstruction = model.reconstruct(images)
    assert torch.equal(model.decode(model.encode(images)), reconstruction)
    if config.family == "flow":
        assert torch.equal(reconstruction, images)


@EXAMPLES
@given(config=model_configs(), seed=seeds, steps=st.integers(2, 5))
def test_interpolation_runs_from_one_reconstruction_to_the_other(config: ModelConfig, seed: int, steps: int) -> None:
    model = perturbed_model(config, seed)
    images = random_images(config, 2, seed)
    line = model.interpolate(images[0], images[1], steps)
    assert line.shape == (steps, *config.image_shape) and line.dtype == torch.uint8
    assert torch.equal(line[[0, -1]], model.reconstruct(images))


def test_interpolation_is_straight_in_latents() -> None:
    model = perturbed_model(config_of("fvae"), 0)
    images = random_images(model.config, 2)
    ends = model.encode(images)
    middle = model.decode(ends.mean(0, keepdim=True))
    assert torch.equal(model.interpolate(images[0], images[1], 3)[1:2], middle)


@pytest.mark.parametrize("family", ["vae", "flow", "fvae"])
def test_temperature(family: str) -> None:
    """0 gives the image of z = 0 every time; more of it, more spread; a seed repeats a sample."""
    model = perturbed_model(config_of(family, bins=256), 0)  # type: ignore[arg-type]
    still = model.sample(4, temperature=0)
    assert torch.equal(still, model.decode(torch.zeros(4, 16, dtype=torch.float64)))
    spread = [model.sample(200, temperature=t).double().std(0).mean() for t in (0.01, 0.05, 0.2)]
    assert spread[0] < spread[1] < spread[2]
    first, again = (model.sample(4, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("n", "temperature"), [(-1, 1.0), (2.5, 1.0), (1, -0.1), (1, float("nan"))])
def test_impossible_samples_are_refused(n: int, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        build(config_of("flow")).sample(n, temperature)


@pytest.mark.parametrize(
    ("images", "steps", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            8,
            r"first of shape \(2, 1, 4, 4\): this model needs one image \[1, 4, 4\]",
        ),
        (np.zeros((4, 4), np.uint8), 8, r"first of shape \(4, 4\)"),
        (np.zeros((1, 4, 4), np.float32), 8, "dtype torch.float32: bits/dim needs integer levels"),
        (np.zeros((1, 4, 4), np.uint8), 0, "steps=0: must be an integer of at least 1"),
    ],
)
def test_an_interpolation_needs_two_images(images: Array, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config_of("fvae")).interpolate(images, images, steps)


def generator() -> torch.Generator:
    """Always the same noise."""
    return torch.Generator().manual_seed(3)


METHODS: dict[str, Callable[[Model, Array], torch.Tensor]] = {
    "bits_per_dim": lambda model, images: model.bits_per_dim(images, generator()),
    "forward": lambda model, images: model(images, generator()),
    "iwae_bits_per_dim": lambda model, images: iwae_bits_per_dim(model, images, 3, generator()),
    "evaluate": lambda model, images: evaluate(model, images, k=2),
    "encode": lambda model, images: model.encode(images),
    "reconstruct": lambda model, images: model.reconstruct(images),
    "interpolate": lambda model, images: model.interpolate(images[0], images[1], 3),
    "mean_sigma1": lambda model, images: torch.tensor(model.mean_sigma1(images)),
}
"""Whatever takes images."""


def backwards(array: np.ndarray) -> np.ndarray:
    """The same values, of which the memory runs the other way: torch knows no negative strides."""
    return array[::-1, :, ::-1].copy()[::-1, :, ::-1]


def read_only(array: np.ndarray) -> np.ndarray:
    """The same values, in read-only memory, such as Ray's."""
    array = array.copy()
    array.flags.writeable = False
    return array


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda array: array,
    "uint16": lambda array: array.astype(np.uint16),
    "uint64": lambda array: array.astype(np.uint64),
    "int64": lambda array: array.astype(np.int64),
    "the other byte order": lambda array: array.astype(np.dtype(np.int32).newbyteorder()),
    "channels last": lambda array: array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "backwards": lambda array: backwards(array.astype(np.int32)),
    "read-only": read_only,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("name", METHODS)
def test_arrays_give_what_tensors_give(name: str, kind: str) -> None:
    model = perturbed_model(config_of("vae", channels=3), 0)
    images = random_images(model.config, 3)
    array = ARRAYS[kind](images.numpy())
    found = METHODS[name](model, array)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, METHODS[name](model, images))
    assert np.array_equal(array, images.numpy())


def test_actnorm_takes_an_array() -> None:
    """The same weights from the array as from the tensor."""
    models = []
    for kind in (torch.Tensor.numpy, torch.Tensor.clone):
        torch.manual_seed(0)
        model = build(config_of("flow"))
        model.initialize(kind(random_images(model.config, 8)), generator())
        models.append(model.state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_latents_may_be_an_array(dtype: str) -> None:
    """They are computed with in the dtype of the weights."""
    model = perturbed_model(config_of("fvae"), 0).float()
    latents = model.encode(random_images(model.config, 3)).half()
    assert torch.equal(model.decode(latents.numpy().astype(dtype)), model.decode(latents.float()))


BAD_LATENTS = [
    (np.zeros((2, 15), np.float32), r"latents of shape \(2, 15\): this model needs \[B, 16\]"),
    (torch.zeros(16), r"latents of shape \(16,\)"),
    (np.zeros((2, 1, 4, 4), np.float32), "latents of shape"),
    (np.zeros((2, 16), np.int64), "latents of dtype torch.int64: this model needs floating point"),
    (torch.zeros(2, 16, dtype=torch.complex64), "latents of dtype torch.complex64"),
    (np.full((2, 16), "1"), "latents of dtype <U1: needs numbers"),
]


@pytest.mark.parametrize(("latents", "message"), BAD_LATENTS)
def test_latents_that_do_not_fit_are_refused(latents: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config_of("fvae")).decode(latents)


BAD_IMAGES = [
    (torch.zeros(2, 1, 4, 5, dtype=torch.uint8), r"shape \(2, 1, 4, 5\): this model needs \[B, 1, 4, 4\]"),
    (torch.zeros(1, 4, 4, dtype=torch.uint8), r"shape \(1, 4, 4\): this model needs \[B, 1, 4, 4\]"),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "shape"),
    (torch.zeros(2, 1, 4, 4), r"dtype torch.float32: bits/dim needs integer levels 0 … 15"),
    (torch.zeros(2, 1, 4, 4, dtype=torch.bool), "dtype torch.bool"),
    (torch.full((2, 1, 4, 4), 16, dtype=torch.uint8), "levels 16 … 16: this model has bins=16, so 0 … 15"),
    (torch.full((2, 1, 4, 4), -1), "levels -1 … -1"),
    (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "empty batch"),
    (np.full((2, 1, 4, 4), None), "images of dtype object: needs numbers"),
]
BAD_IMAGES += [(images.numpy(), message) for images, message in BAD_IMAGES if isinstance(images, torch.Tensor)]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_images_that_do_not_fit_are_refused(images: Array, message: str) -> None:
    """A wrong level or type would give bits/dim of another quantity, so it never passes."""
    model = build(config_of("fvae"))
    for call in (
        model.bits_per_dim,
        model,
        model.encode,
        model.reconstruct,
        model.initialize,
        lambda images: iwae_bits_per_dim(model, images, 2),
    ):
        with pytest.raises(ValueError, match=message):
            call(images)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"mean_sigma1", "evaluate"}))
def test_other_than_arrays_and_tensors_are_refused(name: str) -> None:
    images = random_images(config_of("fvae"), 2).tolist()
    with pytest.raises(TypeError, match="images are list; needs a NumPy array or a tensor"):
        METHODS[name](build(config_of("fvae")), images)


def test_integer_images_of_any_width_give_the_same_bits() -> None:
    model = perturbed_model(config_of("fvae", bins=256), 0)
    images = random_images(model.config, 3)
    bits = [
        model.bits_per_dim(images.to(dtype), torch.Generator().manual_seed(0))
        for dtype in (torch.uint8, torch.int32, torch.int64)
    ]
    assert torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2])


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_iwae_needs_a_sample(k: int) -> None:
    model = build(config_of("flow"))
    with pytest.raises(ValueError, match=f"k={k}: must be an integer of at least 1"):
        iwae_bits_per_dim(model, random_images(model.config, 1), k)


@pytest.mark.parametrize("family", ["flow", "fvae"])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_batch_that_memory_does_not_hold_is_halved(family: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise and the figures are those of the whole batch, and a size that has failed is not tried again."""
    model = perturbed_model(config_of(family), 0).eval()  # type: ignore[arg-type]
    images = random_images(model.config, 8)
    whole = iwae_bits_per_dim(model, images, 6, generator())
    held, tried = model.log_weight, []

    def log_weight(part: torch.Tensor, r: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        tried.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return held(part, r, u)

    monkeypatch.setattr(model, "log_weight", log_weight)
    torch.testing.assert_close(iwae_bits_per_dim(model, images, 6, generator()), whole)
    assert len([size for size in tried if size > most]) == len(set(tried) - set(range(1, most + 1)))


def test_one_image_that_memory_does_not_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(config_of("flow")).eval()

    def log_weight(*arguments: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "log_weight", log_weight)
    with pytest.raises(torch.OutOfMemoryError):
        iwae_bits_per_dim(model, random_images(model.config, 8), 6)


def coupling_parameters(kept: int, width: int, outputs: int) -> int:
    """3×3, 1×1, 3×3 convolutions with biases."""
    return (9 * kept * width + width) + (width * width + width) + (9 * width * outputs + outputs)


def test_parameter_count_by_hand() -> None:
    """Additive coupling, permutation, 2 levels: 4 channels, then 8 after the first split."""
    config = config_of("flow", flow_levels=2, flow_depth=3, coupling="additive", mixing="permutation")
    steps = 3 * (2 * 4 + coupling_parameters(2, 8, 2)) + 3 * (2 * 8 + coupling_parameters(4, 8, 4))
    split = 9 * 2 * 4 + 4
    assert build(config).parameter_count() == steps + split

    config = config_of("vae")  # E: entry, one block, exit of two heads; G: entry, block, exit; σ1, σ2
    block = 2 * (9 * 8 * 8 + 8)
    encoder = (9 * 4 * 8 + 8) + block + (9 * 8 * 8 + 8)
    decoder = (9 * 4 * 8 + 8) + block + (9 * 8 * 4 + 4)
    assert build(config).parameter_count() == encoder + decoder + 2


@EXAMPLES
@given(config=model_configs())
def test_parameter_count_is_what_an_optimizer_holds(config: ModelConfig) -> None:
    model = build(config)
    assert model.parameter_count() == sum(parameter.numel() for parameter in model.parameters())


def test_sizes_of_the_encoder_are_free_of_the_images_dimension() -> None:
    """Only entry and exit layers see the image: a larger one costs E and G nothing."""
    small, large = (build(config_of("vae", height=side, width=side)).parameter_count() for side in (4, 16))
    assert small == large


def test_latent_channels_shrink_the_flow() -> None:
    full = config_of("fvae", channels=3, height=8, width=8)
    reduced = config_of("fvae", channels=3, height=8, width=8, latent_channels=1)
    assert reduced.latent_shape == (1, 4, 4)

    def flow_parameters(model: Model) -> int:
        return sum(parameter.numel() for parameter in model.flow.parameters())

    assert flow_parameters(build(reduced)) < flow_parameters(build(full)) / 2
    assert build(reduced).encode(random_images(reduced, 2)).shape == (2, 16)


def test_sigmas_of_the_flow_family_are_fixed_and_equal() -> None:
    model = build(config_of("flow", sigma1_init=0.07, sigma2_init=0.9))
    assert model.sigma1 == pytest.approx(0.07) and model.sigma2 == pytest.approx(0.07)
    assert not {"log_sigma1", "log_sigma2"} & {name for name, _ in model.named_parameters()}
    model = build(config_of("fvae", sigma1_init=0.07, sigma2_init=0.9))
    assert model.sigma1 == pytest.approx(0.07) and model.sigma2 == pytest.approx(0.9)
    assert {"log_sigma1", "log_sigma2"} <= {name for name, _ in model.named_parameters()}
