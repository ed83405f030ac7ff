"""Parameters and FLOPs of a model, counted from its config alone, in microseconds and before it is built.

A search compares thousands of configs that it never trains, so nothing is built here: the layers that hold weights are
listed with their sizes, and the tests hold the list to the models that are built from the same configs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from fvae.config import ModelConfig

TRAINING_FACTOR = 3
"""A training step costs about three forward passes: the backward pass is two products per product."""


class Layer(NamedTuple):
    """What trains together: a convolution, a matrix product, an ActNorm."""

    weights: int
    """Trained numbers that each pixel is multiplied with and summed over: products."""
    others: int
    """Trained numbers beside them: biases, scales. They cost no product."""
    pixels: int
    """Pixels of an image at which the layer works."""


def parameters_and_flops(config: ModelConfig) -> tuple[int, int]:
    """Parameter count and FLOPs per image (2 per multiply-add) of one forward ELBO evaluation.

    Matrix products and convolutions are counted, as torch's own counter counts them. Work that a batch shares
    (composing a 1×1 convolution) is left out.
    """
    parameters = flops = 0
    for layer in layers(config):
        parameters += layer.weights + layer.others
        flops += 2 * layer.weights * layer.pixels
    return parameters, flops


def encoder_and_decoder_parameters(config: ModelConfig) -> int:
    """Parameters of E and G, the scales σ1 and σ2 among them: all of a VAE's, none of a flow's."""
    if not config.has_encoder:
        return 0
    return 2 + sum(layer.weights + layer.others for part in (_encoder, _decoder) for layer in part(config))


def layers(config: ModelConfig) -> Iterator[Layer]:
    """Everything in ``config``'s model that is trained."""
    if config.has_flow:
        yield from _flow(config)
    if config.has_encoder:
        yield from _encoder(config)
        yield from _decoder(config)
        yield Layer(0, 2, 1)  # σ1 and σ2
    if config.dequantization == "variational":
        yield from _dequantization(config)


def _convolution(inputs: int, outputs: int, size: int, pixels: int) -> Layer:
    return Layer(inputs * outputs * size**2, outputs, pixels)


def _flow(config: ModelConfig) -> Iterator[Layer]:
    """:class:`fvae.flow.MultiScaleFlow`."""
    channels, height, width = config.latent_shape
    pixels = height * width
    scales = max(1, config.flow_levels)
    for scale in range(scales):
        if config.flow_levels:
            channels, pixels = 4 * channels, pixels // 4
        step = list(_flow_step(config, channels, pixels))
        for _ in range(config.flow_depth):
            yield from step
        if scale < scales - 1:
            kept = channels // 2
            if config.split_mixing:
                yield Layer(channels**2, 0, pixels)
            yield _convolution(kept, 2 * (channels - kept), 3, pixels)  # split prior
            channels = kept


def _flow_step(config: ModelConfig, channels: int, pixels: int) -> Iterator[Layer]:
    """:class:`fvae.flow.FlowStep`."""
    yield Layer(0, 2 * channels, pixels)  # ActNorm
    if config.mixing == "plu":
        yield Layer(channels**2, 0, pixels)
    kept, hidden = channels // 2, config.coupling_width
    outputs = (channels - kept) * (2 if config.coupling == "affine" else 1)
    yield _convolution(kept, hidden, 3, pixels)
    yield _convolution(hidden, hidden, 1, pixels)
    yield _convolution(hidden, outputs, 3, pixels)


def _encoder(config: ModelConfig) -> Iterator[Layer]:
    """:class:`fvae.networks.Encoder`."""
    levels, width = config.encoder_levels, config.encoder_width
    inputs, pixels = config.channels, config.height * config.width
    for level in range(max(1, levels)):
        if levels:
            inputs, pixels = 4 * inputs, pixels // 4
        yield _convolution(inputs, width, 3 if level == 0 else 1, pixels)
        yield from _residual_blocks(config, pixels)
        inputs = width
    yield _convolution(width, config.encoder_heads * _deepest_channels(config), 3, pixels)


def _decoder(config: ModelConfig) -> Iterator[Layer]:
    """:class:`fvae.networks.Decoder`."""
    levels, width = config.encoder_levels, config.encoder_width
    pixels = config.height * config.width // 4**levels
    yield _convolution(_deepest_channels(config), width, 3, pixels)
    finer = 4 if levels else 1  # channels that become pixels, where there are levels
    for _ in range(max(1, levels) - 1):
        yield from _residual_blocks(config, pixels)
        yield _convolution(width, finer * width, 1, pixels)
        pixels *= finer
    yield from _residual_blocks(config, pixels)
    yield _convolution(width, config.decoder_heads * finer * config.channels, 3, pixels)


def _dequantization(config: ModelConfig) -> Iterator[Layer]:
    """:class:`fvae.dequantization.VariationalDequantization`."""
    channels, width, pixels = config.channels, config.dequantization_width, config.height * config.width
    for _ in range(3):  # the image's context and two couplings' inputs
        yield _convolution(channels, width, 3, pixels)
    for _ in range(3):  # the affine map and two couplings
        yield _convolution(width, 2 * channels, 3, pixels)


def _residual_blocks(config: ModelConfig, pixels: int) -> Iterator[Layer]:
    width = config.encoder_width
    return (_convolution(width, width, 3, pixels) for _ in range(2 * config.encoder_blocks))


def _deepest_channels(config: ModelConfig) -> int:
    """Channels of w at the encoder's last level: :meth:`fvae.networks.Encoder.forward` before it reshapes."""
    return math.prod(config.latent_shape) // (config.height * config.width // 4**config.encoder_levels)
