"""The token that authenticates clients to a cluster's Ray, where RAY_AUTH_MODE is token."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

TOKEN = Path("~/.ray/auth_token")
"""Where Ray reads it on every machine; ``file_mounts`` in the cluster file copies it there."""


def make_token() -> None:
    """Make a token in this user's home, unless there is one; it is never readable by others (one made by Ray is).

    Two processes that make one at once have the same.
    """
    # Not at the top: importing it imports Ray, which takes seconds.
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

    path = TOKEN.expanduser()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.chmod(0o600)
        if path.read_text().strip():
            return
        path.unlink()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}-") as whole:
        whole.write(generate_new_authentication_token().encode())
        whole.flush()
        with contextlib.suppress(FileExistsError):
            os.link(whole.name, path)
