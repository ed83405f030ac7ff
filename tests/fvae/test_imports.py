"""The model library stands alone: torch, numpy, safetensors; pyarrow where a shard is read or written."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fvae

pytestmark = pytest.mark.core

PACKAGE = Path(fvae.__file__).parent
ALLOWED = {"torch", "numpy", "safetensors", "fvae"}
ALSO_ALLOWED = {"shards.py": {"pyarrow"}}
FOREIGN = ("ray", "mlflow", "optuna", "boto3", "sklearn", "pandas", "matplotlib", "tune", "pipelines", "pyarrow")

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys
sys.modules["pyarrow"] = None  # as on a machine without it: importing it is an ImportError
import fvae
for module in pkgutil.walk_packages(fvae.__path__, "fvae."):
    importlib.import_module(module.name)
print(sorted(name for name in {FOREIGN!r} if sys.modules.get(name)))
"""


def test_importing_every_module_loads_no_foreign_package() -> None:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_import_statement_is_allowed() -> None:
    """Also those inside functions, which importing a module does not run."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                allowed = ALLOWED | ALSO_ALLOWED.get(path.name, set())
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name}:{node.lineno}: {name}"


def test_every_public_name_is_there_and_torch_comes_only_with_what_needs_it() -> None:
    program = """
import sys
import fvae, fvae.config, fvae.data.manifest, fvae.data.shards, fvae.files
assert "torch" not in sys.modules
assert set(fvae.__all__) == set(fvae._HOMES)
for name in fvae.__all__:
    assert callable(getattr(fvae, name)), name
assert "torch" in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
