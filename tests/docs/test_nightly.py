"""The nightly job of docs/retraining.md: as a schedule, a crontab's line and a RayCronJob it is the same job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.quantities import parse_duration
from pipelines.retraining.settings import RetrainSettings
from pipelines.schedule import split_arguments
from pipelines.scheduling.cron import Cron
from pipelines.scheduling.settings import Add
from tests.docs.blocks import ROOT, blocks, commands
from tests.docs.printed import product
from tests.docs.terminal import Terminal

pytestmark = pytest.mark.core

PAGE = blocks("docs/retraining.md")
MANIFEST = yaml.safe_load((ROOT / "docs" / "rayjob" / "retrain-cronjob.yaml").read_text())


@pytest.fixture
def terminal(home: Path) -> Terminal:
    (home / "fvae-data" / "logs").mkdir(parents=True)
    return Terminal(home)


def retraining(words: list[str]) -> list[str]:
    """What ``pipelines.retrain`` is given in a command."""
    assert words[:3] == ["python", "-m", "pipelines.retrain"]
    return words[3:]


def scheduled(terminal: Terminal) -> list[str]:
    """The words of the page's first ``pipelines.schedule add``, from ``add`` on."""
    add, *_ = (each for block in PAGE for each in commands(block) if "pipelines.schedule add" in each.text)
    (words,) = terminal.type(add.text)
    return words[3:]


def crontab() -> tuple[str, str, str]:
    """Zone, cron expression and command of the page's crontab."""
    (block,) = (block for block in PAGE if block.text.startswith("CRON_TZ="))
    found = re.fullmatch(r"CRON_TZ=(\S+)\n(?:\w+=\S+\n)*((?:\S+ ){5})(.*)\n", block.text)
    assert found is not None
    return found[1], found[2].strip(), found[3]


def test_all_three_run_the_same_command_at_the_same_times(terminal: Terminal) -> None:
    own, after = split_arguments(scheduled(terminal))
    zone, cron, command = crontab()
    spec: dict[str, Any] = MANIFEST["spec"]
    (by_cron,) = terminal.type(command)
    (by_kubernetes,) = terminal.type(spec["jobTemplate"]["entrypoint"])
    assert list(after or ()) == retraining(by_cron) == retraining(by_kubernetes)
    assert own[own.index("--cron") + 1] == cron == spec["schedule"]
    assert own[own.index("--zone") + 1] == zone == spec["timeZone"]
    Cron(cron, zone)
    limit = parse_duration("--limit", own[own.index("--limit") + 1])
    assert spec["jobTemplate"]["activeDeadlineSeconds"] == limit
    assert spec["jobTemplate"]["backoffLimit"] + 1 == Add(name="x", cron=cron).attempts


def test_the_retraining_knows_these_options(terminal: Terminal) -> None:
    (words,) = terminal.type(MANIFEST["spec"]["jobTemplate"]["entrypoint"])
    command = product(words)
    assert command is not None
    settings = command.parse()
    assert isinstance(settings, RetrainSettings)
    assert (settings.model, settings.dataset) == ("fvae-photos", "s3://bucket/photos")


def test_the_manifest_has_the_shape_of_a_raycronjob() -> None:
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayCronJob")
    assert set(MANIFEST["spec"]) <= {"schedule", "timeZone", "suspend", "jobTemplate"}
    job = MANIFEST["spec"]["jobTemplate"]
    cluster = job["rayClusterSpec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert cluster["authOptions"]["mode"] == "token"
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in pods}
    assert len(images) == 1  # every node runs the same code
    lock = (ROOT / "requirements.lock").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in re.sub(r"\[[^]]*\]", "", lock)
