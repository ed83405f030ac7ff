"""Seconds, for people."""

from __future__ import annotations

import re

from fvae.config import ConfigError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


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
    found = _PARTS.fullmatch(text.strip().lower())
    seconds = sum(float(count) * _UNITS[unit] for unit, count in found.groupdict("0").items()) if found else 0.0
    if not seconds:
        raise ConfigError(f"{name}={text!r}: give a time such as 2h, 90m, 1h30m or 45s")
    return seconds
