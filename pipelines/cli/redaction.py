"""Redaction of URLs: without user, password and query, so that they can be shown."""

from __future__ import annotations

import re

# A password may contain what should be percent-encoded there, "/" and "@" too: everything up to the last "@" goes.
_USER = re.compile(r"(?<=://)(?:[^/\s:@?]*:\S*@|[^/\s?]*@)")
_QUERY = re.compile(r"\?\S*=\S*")
_SECRET = re.compile(r"[?&][^=&]*(?:pass|pwd|token|secret|user|auth|cred|api_?key)[^=&]*=", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """``text`` with every ``scheme://user:password@host/path?query`` in it as ``scheme://host/path``."""
    return _QUERY.sub("", _USER.sub("", text))


def plain_url(url: str) -> str:
    """``url``, which is nothing but a URL, without its secrets, also where a password contains spaces."""
    return without_secrets(url if url.startswith(("sqlite:", "file:")) else re.sub(r"\s", "%20", url))


def has_secret(url: str) -> bool:
    """Whether ``url`` contains a user, or a parameter of its query has the name of a secret."""
    return bool(_USER.search(url) or _SECRET.search(url))
