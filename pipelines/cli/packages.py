"""Packages of the extras ``search`` and ``cluster``: where some are not installed, a command ends with one line."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require_packages(*modules: str) -> None:
    """End the process with status 2, and a line that says what to install, where a module cannot be found.

    For the ``__init__.py`` of a package: it comes before the imports that would fail.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        names, where = ", ".join(missing), "in the folder of pyproject.toml"
        print(f"error: {names}: not installed; pip install '.[search,cluster]' {where}", file=sys.stderr)
        sys.exit(2)
