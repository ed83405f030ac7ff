"""A Ray of our own that nobody else can use, and a cluster that lets us in, or says in a line why not."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from fvae.config import ConfigError
from pipelines.training import ray_session as ray_session_module
from pipelines.training.auth_token import make_token
from pipelines.training.ray_session import ray_session
from tests.services.head import free_port

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]
SESSION = """
import ray
from fvae.config import ConfigError
from pipelines.training.ray_session import ray_session
try:
    with ray_session(0, {}):
        print("in", len(ray.nodes()))
except ConfigError as error:
    print("refused:", error)
"""


def session(**variables: str | None) -> str:
    """What a new process says that asks for a Ray, with these changes to its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(**needed: float) -> str:
    """The line with which this process is refused a Ray."""
    with pytest.raises(ConfigError) as refused, ray_session(0, {"CPU": ("--cpus-per-worker", needed.get("cpus", 0.0))}):
        pass
    return str(refused.value)


def test_the_token_of_our_own_ray_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / ".ray" / "auth_token"
    said = session(HOME=str(tmp_path), RAY_ADDRESS=None, RAY_AUTH_TOKEN=None, RAY_AUTH_MODE=None)
    assert said == "in 1\n"
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    first = token.read_text()
    token.chmod(0o644)  # as Ray itself makes it
    monkeypatch.setenv("HOME", str(tmp_path))
    make_token()
    assert (token.stat().st_mode & 0o777, token.read_text()) == (0o600, first)


def test_a_home_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = refusal()
    assert said.startswith("a Ray on this machine: cannot be used (") and "\n" not in said
    assert said.endswith("; set HOME to a folder of yours that can be written")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_folder_for_temporary_files_is_one_line_with_advice_that_works(variable: str, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    alone = {"RAY_ADDRESS": None, "RAY_TMPDIR": None, variable: str(folder)}
    said = session(**alone)
    assert said.startswith("refused: a Ray on this machine: cannot be used (") and said.count("\n") == 1
    assert said.endswith("set RAY_TMPDIR to a short one, such as /tmp\n")
    assert session(**alone | {"RAY_TMPDIR": "/tmp"}) == "in 1\n"


def test_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ray").write_text("not a folder")
    said = session(RAY_ADDRESS=None, RAY_TMPDIR=str(tmp_path))
    assert said.startswith("refused: a Ray on this machine: cannot be used (") and said.count("\n") == 1


def test_whatever_ray_raises_when_it_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own plain ``Exception`` for a node that is not up in time."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def late(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because …\nmore")

    monkeypatch.setattr(ray, "init", late)
    said = refusal()
    assert said.startswith("a Ray on this machine: cannot be used (The current node timed out during startup.")
    assert said.endswith("; start it again, when the machine is less busy") and "\n" not in said


def test_a_container_of_half_a_core_has_one_for_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cpu.max": "50000 100000", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(ray_session_module, "CGROUP", tmp_path)
    assert ray_session_module.has_less_than_a_core()
    for text in ("100000 100000", "max 100000", "200000 100000"):
        (tmp_path / "cpu.max").write_text(text)
        assert not ray_session_module.has_less_than_a_core()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000")
    assert ray_session_module.has_less_than_a_core()


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


def test_a_cluster_that_asks_for_another_token_is_one_line(ray_address: str) -> None:
    with ray_session(0, {}):
        assert len(ray.nodes()) == 1
    said = session(RAY_ADDRESS=ray_address, RAY_AUTH_TOKEN="0" * 64)
    assert said.startswith(f"refused: RAY_ADDRESS={ray_address}: cannot be used (") and said.count("\n") == 1
    assert "token" in said.lower()


def test_no_ray_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert refusal() == f"RAY_ADDRESS={address}: no Ray cluster answers there ([Errno 111] Connection refused)"


def test_more_than_a_machine_has_is_one_line(ray_address: str) -> None:
    assert refusal(cpus=1e6) == "--cpus-per-worker=1000000.0: there are 3 on the largest node"
