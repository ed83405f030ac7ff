"""Packages of the extras ``search`` and ``cluster``: where some are not installed, a command ends with one line."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def require_packages(*modules: str) -> None:
    """Raise ``ImportError``, with a line that says what to install, where a module cannot be found.

    A command prints the line and ends with status 2. For the ``__init__.py`` of a package: it comes before the imports
    that would fail.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        names, where = ", ".join(missing), "in the folder of pyproject.toml"
        line = f"{names}: not installed; pip install '.[search,cluster]' {where}"
        if not _is_command():
            raise ImportError(line)
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _is_command() -> bool:
    """Whether this process runs a command of this product, and does not merely import it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    found_by_name = sys.argv[0] == "-m"  # python -m: the packages above the module are imported before it is known
    return found_by_name or (spec is not None and spec.name.startswith("pipelines.")) or _is_search(sys.argv[0])


def _is_search(program: str) -> bool:
    return Path(program).parts[-2:] == ("tune", "search.py") or program == "search.py"
