"""A Ray of our own that nobody else can use, and a cluster that lets us in, or says in a line why not."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines.cluster.auth_token import make_token
from tests.services.head import free_port

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
SESSION = """
import ray
from fvae.config import ConfigError
from pipelines.ray_session import ray_session
try:
    with ray_session(0, {"CPU": ("--cpus-per-worker", CPUS)}):
        print("in", len(ray.nodes()))
except ConfigError as error:
    print("refused:", error)
"""


def session(cpus: float = 0.0, **variables: str | None) -> str:
    """What a new process says that asks for a Ray, with these changes to its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", SESSION.replace("CPUS", str(cpus))],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_token_of_our_own_ray_is_nobody_else_s(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": None}
    token = tmp_path / ".ray" / "auth_token"
    assert session(**home) == "in 1\n"
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    first = token.read_text()
    token.chmod(0o644)  # as Ray itself makes it
    assert session(**home) == "in 1\n"
    assert (token.stat().st_mode & 0o777, token.read_text()) == (0o600, first)


def test_a_home_that_cannot_be_written_is_one_line() -> None:
    said = session(HOME="/proc/none", RAY_AUTH_TOKEN=None)
    assert said.startswith("refused: a Ray on this machine: cannot be used (") and said.count("\n") == 1


def test_who_makes_a_token_at_once_has_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"

    def made(_: int) -> str:
        make_token()
        return token.read_text()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            (text,) = set(pool.map(made, range(8)))
            assert len(text) == 64 and [path.name for path in token.parent.iterdir()] == ["auth_token"]
            token.unlink()
    token.touch()
    assert made(0)


def test_a_cluster_that_asks_for_another_token_is_one_line(cluster: Cluster) -> None:
    assert session(RAY_ADDRESS=cluster.address).startswith("in ")
    said = session(RAY_ADDRESS=cluster.address, RAY_AUTH_TOKEN="0" * 64)
    assert said.startswith(f"refused: RAY_ADDRESS={cluster.address}: cannot be used (") and said.count("\n") == 1
    assert "token" in said.lower()


def test_no_ray_at_the_address_is_one_line() -> None:
    address = f"127.0.0.1:{free_port()}"
    said = session(RAY_ADDRESS=address)
    assert said == f"refused: RAY_ADDRESS={address}: no Ray cluster answers there ([Errno 111] Connection refused)\n"


def test_more_than_a_machine_has_is_one_line() -> None:
    said = session(cpus=1e6)
    assert said.startswith("refused: --cpus-per-worker=1000000.0: there ") and "on the largest node" in said
