"""URLs as they may be shown: without the user and password that stand in some."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/\s@]+@")


def without_user(text: str) -> str:
    """``text`` with every ``scheme://user:password@host`` in it as ``scheme://host``."""
    return _USER.sub("", text)
