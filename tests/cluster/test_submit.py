"""Commands of a laptop that run as jobs on a cluster, through a tunnel to its job server."""

from __future__ import annotations

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
from tests.cluster.hosts import ROOT, SHARED
from tests.cluster.onprem_cluster import MEMORY, SERVER, TOKEN, OnPremises
from tune.settings import SearchSettings

pytestmark = pytest.mark.system

CLOSED = "http://127.0.0.1:1"
REFUSED = f"error: RAY_ADDRESS={SERVER}: refused; RAY_AUTH_MODE=token and the cluster's token "
SEARCH = f"python tune/search.py --trials 3 --epochs 2 --storage {SHARED}/runs"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    """A cluster of one machine, which trains too, and the laptop's tunnel to it."""
    cluster = OnPremises(tmp_path_factory.mktemp("network"), workers=0)
    try:
        cluster.laptop.run("ray get-auth-token --generate")
        cluster.head.write(".ray/auth_token", (cluster.laptop.folder / "home/.ray/auth_token").read_text())
        start = f"ray start --head --node-ip-address={cluster.head.address} --num-cpus=1 --object-store-memory={MEMORY}"
        cluster.head.run(f"{start} --disable-usage-stats", TOKEN)
        cluster.open_tunnel()
        yield cluster
    finally:
        cluster.close()


def job_of(output: str) -> str:
    """The id that a command has said."""
    found = re.search(r"[Tt]he job (\S+?)[.;]? ", output)
    assert found, output
    return found[1]


def detach(cluster: OnPremises, process: subprocess.Popen[str], module: str) -> str:
    """Ctrl-C for the command on the laptop; returns what was said from then on."""
    cluster.laptop.run(f"kill -INT $(pgrep -f '^python -m {module} ')")
    output, _ = process.communicate(timeout=60)
    return output


def test_a_search_runs_there_with_the_code_from_here(cluster: OnPremises) -> None:
    status, output = cluster.here(SEARCH)

    assert status == 0, output
    assert "[  3/3]" in output
    assert "WARNING" not in output
    assert (cluster.network.shared / "runs" / "digits" / "tradeoff.json").exists()
    (shipped,) = cluster.head.run("ls -d /tmp/ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/").split()
    assert set(cluster.head.run(f"ls -A {shipped}").split()) == set(submit.SHIPPED)
    assert cluster.head.run(f"cat {shipped}/requirements.lock") == (ROOT / "requirements.lock").read_text()


def test_the_same_command_shows_what_is_finished(cluster: OnPremises) -> None:
    status, output = cluster.here(SEARCH)
    assert status == 0, output
    assert "Submitted as the job search-" in output
    assert "[  1/3]" not in output
    assert "Verdict on the paper's claim" in output


def test_ctrl_c_detaches_and_the_same_command_follows(cluster: OnPremises) -> None:
    command = f"python -m pipelines.train --train.epochs 40 --storage {SHARED}/runs --name followed"
    first = cluster.start_here(command)
    lines: list[str] = []
    assert first.stdout
    for line in first.stdout:
        lines.append(line)
        if line.startswith("epoch  2/40"):
            break
    said = detach(cluster, first, "pipelines.train")
    job = job_of("".join(lines))
    assert first.returncode == 1
    assert f"Detached; the job {job} goes on." in said
    assert f"`ray job logs --address {SERVER} --follow {job}`" in said
    assert "RUNNING" in cluster.laptop.run(f"ray job status --address {SERVER} {job} 2>&1", TOKEN)

    status, output = cluster.here(command)

    assert status == 0, output
    assert f"The job {job} runs already: following it." in output
    assert [line for line in output.splitlines() if line.startswith("epoch")][0].startswith("epoch  1/40")
    assert "validation" in output.splitlines()[-3] + output.splitlines()[-2] + output.splitlines()[-4]


def test_a_mistake_that_shows_there_only_has_its_exit_status(cluster: OnPremises) -> None:
    status, output = cluster.here(f"python tune/search.py --dataset /nowhere --storage {SHARED}/runs")
    assert status == 2, output
    assert output.splitlines()[-1].startswith("error: --dataset=/nowhere") or "error: /nowhere" in output, output


def test_a_job_that_is_stopped_is_no_success(cluster: OnPremises) -> None:
    command = f"python -m pipelines.train --train.epochs 4000 --storage {SHARED}/runs --name stopped"
    process = cluster.start_here(command)
    assert process.stdout
    job = job_of("".join(process.stdout.readline() for _ in range(1)))
    cluster.laptop.run(f"ray job stop --address {SERVER} {job}", TOKEN)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: the job {job} has ended as STOPPED" in output


@pytest.mark.parametrize(
    ("command", "env", "line"),
    [
        ("--storage /mnt/x", {"RAY_AUTH_MODE": "disabled"}, REFUSED),
        ("--storage /mnt/x", {"HOME": "/tmp"}, REFUSED),
        ("--storage /mnt/x", {"RAY_ADDRESS": CLOSED}, f"error: RAY_ADDRESS={CLOSED}: no job server answers there"),
        ("--trials 0 --storage /mnt/x", {}, "error: --trials=0: must be"),
    ],
)
def test_what_cannot_work_is_one_line(cluster: OnPremises, command: str, env: dict[str, str], line: str) -> None:
    status, output = cluster.here(f"python tune/search.py {command}", env)
    assert status == 2, output
    assert output.splitlines()[-1].startswith(line)
    assert len(output.splitlines()) == 1


# --- without a cluster -------------------------------------------------------------------------------


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
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
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
