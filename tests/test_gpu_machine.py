"""A GPU machine may have torch, numpy, safetensors, pyarrow and pytest, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent
ABSENT = ("ray", "mlflow", "optuna", "boto3", "moto", "tyro", "rich", "hypothesis", "sklearn", "PIL", "xdist")


def on_a_gpu_machine(*pytest_arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest where importing what such a machine lacks fails."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
        f"import pytest; sys.exit(pytest.main({['-p', 'no:cacheprovider', *pytest_arguments]}))"
    )
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_gpu_tests_are_found_and_run_there() -> None:
    found = on_a_gpu_machine("-m", "gpu", "tests/gpu", "--device", "cpu", "-k", "non_finite or equal_those and flow-28")
    assert found.returncode == 0, found.stdout + found.stderr


def test_they_ask_for_a_gpu() -> None:
    found = on_a_gpu_machine("-m", "gpu", "tests/gpu", "-k", "non_finite")
    assert found.returncode == 1
    assert "CUDA" in found.stdout


def test_the_report_can_be_imported_there() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({(*ABSENT, 'normflows')})); import benchmarks.gpu_report"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
