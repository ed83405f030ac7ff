"""The token without which a cluster's Ray answers nobody."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

TOKEN = Path("~/.ray/auth_token")
"""Where Ray looks for it on every machine; ``file_mounts`` carries it there."""


def make_token() -> None:
    """A token in this user's home, unless there is one; it is never readable by others (Ray's own is).

    Of two processes that make one at once, both have the same.
    """
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
