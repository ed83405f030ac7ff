"""The common style of the figure and the page: names, colours and formats of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

LABELS = {"fvae": "f-VAE", "flow": "flow", "vae": "VAE"}
COLORS = {"fvae": "#d55e00", "flow": "#0072b2", "vae": "#009e73"}
"""Colours of Okabe and Ito's palette, which are distinguishable with any colour vision."""
GREY = "#8a8f98"
INK = "#1f2430"


def rgba(color: str, opacity: float) -> str:
    """CSS colour of ``#rrggbb`` at an opacity."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def format_count(value: float) -> str:
    """``950``, ``12.3k``, ``1.2M``: three significant digits."""
    for divisor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 0.9995 rounds up to the next unit, so that 999,950 is 1M and not 1e+03k
        if abs(value) >= 0.9995 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """``48 s``, ``3.5 min``, ``2.1 h``."""
    if value < 100:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 6000 else f"{value / 3600:.3g} h"


def focus_range(values: Sequence[float] | Iterable[float]) -> tuple[float, float] | None:
    """Ends of a bits/dim axis that shows ``values`` but for far outliers above; null without values.

    One model that failed to learn must not flatten the rest of the map into a line.
    """
    data = np.sort(np.fromiter(values, dtype=float))
    if not len(data):
        return None
    first, third = np.quantile(data, (0.25, 0.75))
    top = data[data <= third + 3 * (third - first)].max()
    margin = 0.07 * (top - data[0]) or 0.05
    return float(data[0] - margin), float(top + margin)
