"""Command lines: options, messages, progress, signals. Importing it checks that the packages of commands are there."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if missing := [name for name in ("mlflow", "ray", "rich", "tyro") if find_spec(name) is None]:
    sys.stderr.write(f"error: {', '.join(missing)}: not installed; pip install '.[search,cluster]' in fvae's folder\n")
    sys.exit(2)
