"""A team's day: a search and a training that log to the server with a password, and its pages in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.pipelines.training.trainings import EPOCHS, OPTIONS
from tests.services.browser import Browser, browser
from tests.services.conftest import new_head
from tests.services.head import PATIENCE, ROOT, Head

pytestmark = pytest.mark.system

TRIALS = 3
SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""A folder for what the browser shows, for whoever wants to look at it."""


class Team(NamedTuple):
    """A head machine, and what was run on it."""

    head: Head
    bucket: str
    folder: Path
    """Where the commands were run."""

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One of this product's commands, which finds MLflow as a job on the head machine does."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.head.client(PYTHONPATH=str(ROOT), **environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """MLflow's answer to admin."""
        sent = json.dumps(body).encode() if body else None
        code, text = self.head.request(f"/api/2.0/mlflow/{path}", self.head.admin, sent)
        assert code == 200, text
        return json.loads(text)

    def runs(self) -> dict[str, dict[str, Any]]:
        """Every run of the digits, by name."""
        experiment = self.ask("experiments/get-by-name?experiment_name=fvae/digits")["experiment"]["experiment_id"]
        found = self.ask("runs/search", experiment_ids=[experiment], max_results=100)["runs"]
        return {run["info"]["run_name"]: run for run in found}


@pytest.fixture(scope="module")
def team(s3: str, s3_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    name = f"team-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=name)
    with new_head() as head:
        head.first_up("--artifacts", f"s3://{name}/mlflow")
        team = Team(head, name, tmp_path_factory.mktemp("work"))
        search = ["tune/search.py", "--trials", str(TRIALS), "--epochs", "2", "--batch-size", "256"]
        train = ["-m", "pipelines.train", *OPTIONS, "--register"]
        for words in ([str(ROOT / search[0]), *search[1:]], train):
            done = team.command(*words)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "not logged" not in done.stdout
        team.ask("registered-models/alias", name="fvae-digits", alias="champion", version="1")
        yield team


@pytest.fixture
def page() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def shot(page: Browser) -> Callable[[str], None]:
    """``shot("name")``: keep what the browser shows, where somebody wants to look at it."""

    def take(name: str) -> None:
        if SCREENSHOTS:
            page.screenshot(Path(SCREENSHOTS) / f"{name}.png")

    return take


def test_what_the_jobs_left_on_the_server_and_in_the_bucket(team: Team, s3_client: Any) -> None:
    runs = team.runs()
    assert len(runs) == 1 + TRIALS + 1  # the search, its trials, the training
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}
    (training,) = [run for name, run in runs.items() if name.startswith("digits-flow")]
    history = team.ask(f"metrics/get-history?run_id={training['info']['run_id']}&metric_key=val/bpd")["metrics"]
    assert [point["step"] for point in history] == list(range(1, EPOCHS + 1))
    # Through the server, which alone needs the bucket's credentials.
    assert all(run["info"]["artifact_uri"].startswith("mlflow-artifacts:/") for run in runs.values())
    keys = [found["Key"] for found in s3_client.list_objects_v2(Bucket=team.bucket)["Contents"]]
    assert all(key.startswith("mlflow/") for key in keys)
    for ending in ("tradeoff.html", "model.safetensors", "samples.png", "MLmodel"):
        assert any(key.endswith(ending) for key in keys), ending
    assert not (team.folder / "runs" / "mlflow.db").exists()


def test_the_registered_model_is_read_back_with_the_password_alone(team: Team) -> None:
    words = ["-m", "pipelines.evaluate", "--model", "models:/fvae-digits@champion", "--k", "1"]
    done = team.command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = team.command(*words, MLFLOW_TRACKING_PASSWORD="wrong")
    assert wrong.returncode == 1
    (line,) = wrong.stderr.splitlines()
    assert line.startswith("error: models:/fvae-digits@champion: cannot be read from")
    assert "401" in line or "not authenticated" in line.lower()
    assert team.head.password() not in done.stdout + done.stderr + wrong.stderr


def test_the_compare_page_of_a_finished_search(team: Team, page: Browser, shot: Callable[[str], None]) -> None:
    trials = {name: run for name, run in team.runs().items() if "mlflow.parentRunId" in str(run["data"]["tags"])}
    assert len(trials) == TRIALS
    ids = json.dumps([run["info"]["run_id"] for run in trials.values()])
    experiment = json.dumps([next(iter(trials.values()))["info"]["experiment_id"]])
    page.sign_in(*team.head.admin)
    page.open(f"{team.head.url}/#/compare-runs?runs={ids}&experiments={experiment}")
    page.wait_for(f"Comparing {TRIALS} Runs", *trials)
    families = {
        param["value"] for run in trials.values() for param in run["data"]["params"] if "family" in param["key"]
    }
    assert families == {"fvae", "flow", "vae"}
    # The table of parameters and that of metrics, each with all trials in it.
    page.wait_for("model.family", *families, "train.learning_rate", "val/bpd", "size/params")
    shot("compare")
    for run in trials.values():
        sizes = [metric["value"] for metric in run["data"]["metrics"] if metric["key"] == "size/params"]
        assert f"{sizes[0]:.0f}" in page.text()


def test_the_page_of_the_registered_model_with_its_alias(
    team: Team, page: Browser, shot: Callable[[str], None]
) -> None:
    page.sign_in(*team.head.admin)
    page.open(f"{team.head.url}/#/models/fvae-digits")
    page.wait_for("fvae-digits", "Version 1", "@ champion")
    shot("model")
