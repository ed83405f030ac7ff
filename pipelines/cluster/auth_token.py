"""The token without which a cluster's Ray answers nobody."""

from __future__ import annotations

from pathlib import Path

from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

TOKEN = Path("~/.ray/auth_token")
"""Where Ray looks for it on every machine; ``file_mounts`` carries it there."""


def make_token() -> None:
    """A token in this user's home, unless there is one; it is never readable by others (``ray get-auth-token`` is)."""
    path = TOKEN.expanduser()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    if not path.read_text().strip():
        path.write_text(generate_new_authentication_token())
