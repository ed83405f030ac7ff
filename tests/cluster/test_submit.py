"""Commands that become jobs on a cluster elsewhere: what is refused here, what goes along, and what runs here."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvae.config import ConfigError
from pipelines.cluster import shipped_files as shipped
from pipelines.cluster import submission as submit
from pipelines.training.settings import TrainSettings
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
    done = call(submit.run_or_submit(lambda _: pytest.fail("ran here")), SearchSettings, *options)
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
        (
            TrainSettings(storage="/shared", config="mine.toml"),
            "--config=mine.toml: only files in configs/ are sent",
        ),
    ],
)
def test_what_the_cluster_would_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: SearchSettings, line: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    with pytest.raises(ConfigError, match=line):
        submit.run_or_submit(lambda _: pytest.fail("ran here"))(settings)


def test_configs_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = TrainSettings(storage="s3://bucket/runs", config="configs/paper-64x64.toml")
    submit.require_reachable(settings, "no")
    monkeypatch.chdir(ROOT / "fvae")  # the job would look for the file elsewhere
    with pytest.raises(ConfigError, match="--config=../configs/paper-64x64.toml: .* start the command in "):
        submit.require_reachable(dataclasses.replace(settings, config="../configs/paper-64x64.toml"), "no")


def test_the_file_of_a_config_goes_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    (folder / "configs/my-models").mkdir(parents=True)
    (folder / "configs/my-models/flow.toml").write_text("")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(submit, "ROOT", folder)
    monkeypatch.setattr(submit, "shipped_files", lambda config: shipped.shipped_files(folder, config))
    monkeypatch.setattr(submit, "this_command", lambda: ["python"])
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    options = ["--dry-run", "--storage", "/shared", "--config", "configs/my-models/flow.toml"]
    done = call(submit.run_or_submit(lambda _: pytest.fail("ran here")), TrainSettings, *options)
    assert done.out.splitlines()[1:] == [f"and 1 files of {folder}:", "  configs/my-models/flow.toml"]


def test_without_a_url_the_command_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (None, "auto", "10.0.0.1:6379"):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        assert submit.run_or_submit(lambda _: 7)(SearchSettings()) == 7


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
        submit.run_or_submit(lambda _: 0)(SearchSettings())
    assert submit.run_or_submit(lambda _: 0)(SearchSettings(storage="/shared")) == 0
    assert re.fullmatch(
        r"warning: requirements.lock requires optuna 1\.0, and the machine has [\d.]+; `ray up` .*\n",
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


def project(folder: Path) -> Path:
    """This product's files, and beside and among them what a user may keep there."""
    for name in shipped.shipped_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    private = [
        "photos [2024]",
        "trailing ",
        "back\\slash",
        "normal",
        "!fvae",
        "#notes",
        "**",
        "tune ",
        "fvae\n",
        "tests",
    ]
    private += ["pipelines/photos [2024]", "tune/data 1", "fvae/__pycache__", "configs/.secret", "pipelines/.git"]
    for name in private:
        (folder / name).mkdir(parents=True)
        for file in ("private.txt", "private.py", "private.json"):
            (folder / name / file).write_text("private")
    for name in ("key [1].pem", "*", "?", "[a-z]*", "!tune", "tune/notes.txt", "fvae/.env", "configs/key.pem", ".env"):
        (folder / name).write_text("private")
    for name in (
        "configs/gcp.json",
        "configs/mine.toml",
        "configs/my-models/other.toml",
        "fvae/old/module.py",
        "pipelines/key.json",
        "pipelines/data/rows.json",
        "pipelines/cluster/mine.sh",
        "pipelines/cluster/policies/mine.json",
        "tune/notes.html",
        "tune/notes.js",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    (folder / "tune/outside.py").symlink_to("/etc/hostname")
    (folder / "fvae/linked").symlink_to(folder / "normal")
    return folder


def packed(environment: dict[str, Any], archive: Path) -> set[str]:
    """The files that Ray makes of it."""
    from ray._private.runtime_env.packaging import create_package

    create_package(environment["working_dir"], archive, include_gitignore=True, excludes=environment["excludes"])
    return {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}


@pytest.mark.parametrize("config", [None, "configs/my-models/flow.toml", "configs/../configs/x.json"])
def test_what_goes_along_is_a_list_of_paths(
    config: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = set(shipped.shipped_files())
    folder = project(tmp_path / "project [1]")
    if config:
        (folder / config).parent.mkdir(exist_ok=True)
        (folder / config).write_text("the user's")
    monkeypatch.setattr(submit, "staged", lambda config: shipped.staged(folder, config))
    environment = submit.runtime_env(config)
    named = {os.path.normpath(config)} if config else set()
    assert packed(environment, tmp_path / "made.zip") == ours | named
    for name in ours:
        assert Path(environment["working_dir"], name).read_bytes() == (ROOT / name).read_bytes()
    assert {"tune/search.py", "tune/map/page.html", "configs/paper-64x64.toml", "requirements.lock"} <= ours


def test_every_file_of_the_packages_goes_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = (path for package in shipped.PACKAGES for path in (ROOT / package).rglob("__init__.py"))
    names = [path.parent.relative_to(ROOT).as_posix() for path in inits]
    folders = {name.replace("/", "."): name for name in names}
    assert set(settings["package-data"]) <= set(folders)
    modules = {path.relative_to(ROOT).as_posix() for each in folders.values() for path in (ROOT / each).glob("*.py")}
    data = {f"{folders[package]}/{name}" for package, files in settings["package-data"].items() for name in files}
    alone = {name for name in shipped.OTHERS if name.partition("/")[0] not in shipped.PACKAGES}
    assert set(shipped.shipped_files()) == modules | data | alone


def test_of_two_checkouts_the_one_that_is_called_runs(tmp_path: Path) -> None:
    """Its environment knows the other one, as an environment does that was made there."""
    second = shipped.staged()
    try:
        with (second / "tune/space.py").open("a") as file:
            file.write(
                "import os, pipelines.training.ray_environment\n"
                "raise SystemExit('second: ' + os.environ['PYTHONPATH'])\n"
            )
        done = subprocess.run(
            [sys.executable, str(second / "tune/search.py"), "--dry-run"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(second)
    assert done.stderr.strip() == f"second: {second}{os.pathsep}{ROOT}", done.stderr


@pytest.mark.parametrize("settings", [SearchSettings, TrainSettings])
def test_a_dry_run_shows_what_would_go_along(settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    monkeypatch.setattr(submit, "this_command", lambda: ["python", "tune/search.py", "--name", "a b"])
    done = call(submit.run_or_submit(lambda _: pytest.fail("ran here")), settings, "--dry-run", "--storage", "/shared")
    assert done.status == 0
    first, second, *names = done.out.splitlines()
    assert first == f"Nothing is submitted. To {CLOSED} would go the job: python tune/search.py --name 'a b'"
    assert second == f"and {len(names)} files of {ROOT}:"
    assert [name.strip() for name in names] == shipped.shipped_files()
