"""The nightly job in the documents, as a schedule, a crontab's line and a RayCronJob: one job, and it is accepted."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import command_line, schedule
from pipelines.durations import parse_duration
from pipelines.retraining.settings import RetrainSettings
from pipelines.scheduling.settings import Add
from pipelines.scheduling.slots import Cron
from pipelines.scheduling.store import Store

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
MANIFEST = yaml.safe_load((ROOT / "docs" / "rayjob" / "retrain-cronjob.yaml").read_text())
TEXT = (ROOT / "docs" / "retraining.md").read_text()


def retraining(command: str) -> list[str]:
    """What a command line tells ``pipelines.retrain``."""
    words = shlex.split(command)
    after = words[words.index("pipelines.retrain") + 1 :]
    return after[: after.index(">>")] if ">>" in after else after


def scheduled() -> list[str]:
    """The words of the first ``pipelines.schedule add`` of the document."""
    found = re.search(r"^python -m pipelines.schedule (add nightly(?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    assert found is not None
    return shlex.split(found[1].replace("\\\n", " "))


def crontab() -> tuple[str, str, str]:
    """Zone, cron expression and command of the document's crontab."""
    found = re.search(r"^CRON_TZ=(\S+)\n(?:\w+=\S+\n)*((?:\S+ ){5})(.*)$", TEXT, re.MULTILINE)
    assert found is not None
    return found[1], found[2].strip(), found[3]


def test_the_schedule_is_accepted_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = tmp_path / "notify.sh"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o700)
    own, after = schedule.split_arguments(["schedule", *scheduled()])
    own = [str(hook) if word == "~/notify.sh" else word for word in own]
    monkeypatch.setattr(sys, "argv", [*own, "--store", f"sqlite:///{tmp_path}/schedules.db"])
    assert schedule.main(command_line.parse(schedule.ScheduleSettings), after) == 0
    assert "Added nightly: next run" in capsys.readouterr().out
    store = Store(f"sqlite:///{tmp_path}/schedules.db")
    (entry,) = store.entries()
    store.close()
    assert entry.schedule.exclusive == "fvae-photos"
    assert retraining(entry.schedule.command()) == list(after or ())


def test_all_three_run_the_same_command_at_the_same_times() -> None:
    own, after = schedule.split_arguments(scheduled())
    zone, cron, command = crontab()
    spec: dict[str, Any] = MANIFEST["spec"]
    arguments = list(after or ())
    assert arguments == retraining(command) == retraining(spec["jobTemplate"]["entrypoint"])
    assert own[own.index("--cron") + 1] == cron == spec["schedule"]
    assert own[own.index("--zone") + 1] == zone == spec["timeZone"]
    Cron(cron, zone)
    limit = parse_duration("--limit", own[own.index("--limit") + 1])
    assert spec["jobTemplate"]["activeDeadlineSeconds"] == limit
    assert spec["jobTemplate"]["backoffLimit"] + 1 == Add(name="x", cron=cron).attempts


def test_the_retraining_knows_these_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["retrain", *retraining(MANIFEST["spec"]["jobTemplate"]["entrypoint"])])
    settings = command_line.parse(RetrainSettings)
    assert settings.model == "fvae-photos"
    assert settings.dataset == "s3://bucket/photos"


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
