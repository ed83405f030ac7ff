"""normflows' Glow, to compare with."""

from __future__ import annotations

import normflows


def normflows_glow(channels: int, side: int, levels: int, depth: int, hidden: int) -> normflows.MultiscaleFlow:
    """As its own example builds it, with a standard normal base."""
    bases, flows, merges = [], [], []
    for level in range(levels):  # from the coarsest scale to the image
        here = channels * 2 ** (levels + 1 - level)
        blocks = [normflows.flows.GlowBlock(here, hidden) for _ in range(depth)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        size = side // 2 ** (levels - level)
        if level > 0:
            merges.append(normflows.flows.Merge())
        bases.append(
            normflows.distributions.DiagGaussian((here if level == 0 else here // 2, size, size), trainable=False)
        )
    return normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)
