"""Bytes, for people."""

from __future__ import annotations

import re

from fvae.config import ConfigError

_UNITS = {"b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for ending, base in (("b", 1000), ("ib", 1024))
}


def parse_bytes(name: str, text: str) -> int:
    """Bytes of ``2GiB``, ``500 MB``, ``1.5gib``; ``name`` is the option's, for its error.

    Raises ``ConfigError`` for anything else, and for less than a byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    count = int(float(found[1]) * _UNITS.get(found[2], 0)) if found else 0
    if not count:
        raise ConfigError(f"{name}={text!r}: give a size such as 2GiB, 512MiB or 800MB")
    return count


def format_bytes(count: float) -> str:
    """Bytes as ``7.6 GiB`` or ``350 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"
