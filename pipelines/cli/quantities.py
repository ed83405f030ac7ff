"""Durations and sizes in bytes, as users write and read them."""

from __future__ import annotations

import re

from fvae.config import ConfigError

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _SECONDS))
_BYTES = {"b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for ending, base in (("b", 1000), ("ib", 1024))
}


def duration(seconds: float) -> str:
    """``75`` → ``1m15s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def parse_duration(name: str, text: str) -> float:
    """Seconds of ``2h``, ``90m``, ``1h30m``, ``1.5h``, ``45s``, ``2d``; ``name`` is the option's, for its error.

    Raises ``ConfigError`` for anything else, and for no time at all.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = sum(float(count) * _SECONDS[unit] for unit, count in found.groupdict("0").items()) if found else 0.0
    if not seconds:
        raise ConfigError(f"{name}={text!r}: give a time such as 2h, 90m, 1h30m or 45s")
    return seconds


def parse_bytes(name: str, text: str) -> int:
    """Bytes of ``2GiB``, ``500 MB``, ``1.5gib``; ``name`` is the option's, for its error.

    Raises ``ConfigError`` for anything else, and for less than a byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    count = int(float(found[1]) * _BYTES.get(found[2], 0)) if found else 0
    if not count:
        raise ConfigError(f"{name}={text!r}: give a size such as 2GiB, 512MiB or 800MB")
    return count


def format_bytes(count: float) -> str:
    """Bytes as ``7.6 GiB`` or ``350 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"
