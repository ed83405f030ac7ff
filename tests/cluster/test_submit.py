"""Commands that become jobs on a cluster elsewhere: what is refused here, what goes along, and what runs here."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvae.config import ConfigError
from pipelines import submit
from pipelines.train_settings import TrainSettings
from tests.commands import call
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """A command that submits turns the logs of its process off; here they come back."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--storage", "/mnt/x"], f"error: RAY_ADDRESS={CLOSED}: no job server answers there"),
        (["--trials", "0", "--storage", "/mnt/x"], "error: --trials=0: must be"),  # before anybody is asked
    ],
)
def test_what_cannot_work_is_one_line(monkeypatch: pytest.MonkeyPatch, options: list[str], line: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    done = call(submit.here_or_there(lambda _: pytest.fail("ran here")), SearchSettings, *options)
    assert done.status == 2, done.out
    (printed,) = done.err.splitlines()
    assert printed.startswith(line)
    assert done.out == ""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            SearchSettings(),
            "--storage=runs: is a folder of this machine, .*; give s3://bucket/prefix, or the absolute ",
        ),
        (
            SearchSettings(storage="s3://runs", dataset="data/photos"),
            "--dataset=data/photos: is a folder of this machine",
        ),
        (TrainSettings(storage="/shared", config="mine.toml"), "--config=mine.toml: only files in configs/ go along"),
    ],
)
def test_what_the_cluster_would_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: SearchSettings, line: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    with pytest.raises(ConfigError, match=line):
        submit.here_or_there(lambda _: pytest.fail("ran here"))(settings)


def test_configs_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = TrainSettings(storage="s3://bucket/runs", config="configs/paper-64x64.toml")
    submit.require_reachable(settings, "no")


def test_without_a_url_the_command_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (None, "auto", "10.0.0.1:6379"):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        assert submit.here_or_there(lambda _: 7)(SearchSettings()) == 7


def test_in_a_job_results_may_not_lie_in_its_copy_of_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    folder.mkdir(parents=True)
    lock = (ROOT / "requirements.lock").read_text()
    (folder / "requirements.lock").write_text(re.sub(r"(?m)^optuna==.*$", "optuna==1.0", lock))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="--storage=runs: lies in the job's copy of the code"):
        submit.here_or_there(lambda _: 0)(SearchSettings())
    assert submit.here_or_there(lambda _: 0)(SearchSettings(storage="/shared")) == 0
    assert re.fullmatch(
        r"warning: requirements.lock says optuna 1\.0, and the machine has [\d.]+; `ray up` .*\n",
        capsys.readouterr().out,
    )


def test_what_is_shipped_by_ray_job_submit(tmp_path: Path) -> None:
    """``ray job submit --working-dir .`` goes by .rayignore: no environment, no history, no runs."""
    project = tmp_path / "project"
    for name in ("fvae", ".git", ".venv", "runs", "data", "tests", "benchmarks"):
        (project / name).mkdir(parents=True)
        (project / name / "file").write_text("x")
    (project / "requirements.lock").write_text("x")
    shutil.copy(ROOT / ".rayignore", project)
    code = (
        "import sys, zipfile; from pathlib import Path; from ray._private.runtime_env.packaging import create_package\n"
        "create_package(sys.argv[1], Path(sys.argv[2]), include_gitignore=True)\n"
        "print(*zipfile.ZipFile(sys.argv[2]).namelist())"
    )
    packed = subprocess.run(
        [sys.executable, "-c", code, str(project), str(tmp_path / "made.zip")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {name for name in packed.stdout.split() if not name.endswith("/")} == {
        "fvae/file",
        ".rayignore",
        "requirements.lock",
    }
