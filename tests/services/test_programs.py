"""What starts a program again: its digest changes with all that the program depends on, and with nothing else."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from pipelines.services import programs, secret_files
from pipelines.services.paths import Places
from pipelines.services.settings import PROGRAMS, ServiceSettings
from tests.services.head import Head

pytestmark = pytest.mark.core

Digests = dict[str, str]


@pytest.fixture
def places(head: Head) -> Places:
    """A data folder with its secrets."""
    places = Places.below(str(head.data))
    places.make()
    keep(places)
    secret_files.write_server_users_file(places, f"sqlite:///{places.users}", secret_files.admin_password(places))
    return places


def keep(places: Places, **variables: str) -> None:
    secret_files.keep_environment(places, {"HOME": str(places.data.parent), **variables})


def digests(places: Places, **changes: Any) -> Digests:
    settings = ServiceSettings(artifacts=str(places.data / "artifacts"), **changes)
    return {program: programs.digest(program, places, settings) for program in PROGRAMS}


def changed(before: Digests, after: Digests) -> set[str]:
    return {program for program in PROGRAMS if before[program] != after[program]}


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        ({}, set()),
        ({"public_names": ("mlflow.example.org",)}, {"mlflow"}),
        ({"database": "postgresql+psycopg2://me@host/runs"}, {"mlflow"}),
        ({"port": 5001}, {"mlflow", "scheduler"}),  # where the scheduler's jobs find MLflow
        ({"log_size": "1MiB", "log_copies": 9, "at_boot": True}, set()),  # supervisord's own
    ],
)
def test_a_setting_concerns_these_programs(places: Places, changes: dict[str, Any], concerned: set[str]) -> None:
    assert changed(digests(places), digests(places, **changes)) == concerned


def test_another_place_of_artifacts_concerns_mlflow(places: Places) -> None:
    settings = [ServiceSettings(artifacts=path) for path in ("/a", "/b")]
    for program in PROGRAMS:
        before, after = (programs.digest(program, places, one) for one in settings)
        assert (before != after) == (program == "mlflow")


@pytest.mark.parametrize(
    ("variables", "concerned"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, {"scheduler"}),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {"mlflow", "scheduler"}),
        ({"EDITOR": "ed"}, set()),  # is not kept
    ],
)
def test_a_variable_concerns_these_programs(places: Places, variables: dict[str, str], concerned: set[str]) -> None:
    before = digests(places)
    keep(places, **variables)
    assert changed(before, digests(places)) == concerned


def test_a_new_password_concerns_mlflow(places: Places) -> None:
    before = digests(places)
    password = secret_files.admin_password(places, new=True)
    secret_files.write_server_users_file(places, f"sqlite:///{places.users}", password)
    assert changed(before, digests(places)) == {"mlflow"}


def test_a_digest_is_public_and_so_it_is_salted_with_a_secret(places: Places) -> None:
    before = digests(places)
    (places.secrets / "flask-secret-key").unlink()
    assert changed(before, digests(places)) == {"mlflow", "scheduler"}


def test_no_secret_is_in_a_command(places: Places) -> None:
    secret_files.keep_database(places, "postgresql+psycopg2://me:pass4you@host/runs")
    keep(places, AWS_SECRET_ACCESS_KEY="key4you", PATH=os.defpath)
    settings = ServiceSettings(artifacts="/a", database="postgresql+psycopg2://me@host/runs")
    for program in PROGRAMS:
        started = programs.started(program, places, settings)
        secrets = ("pass4you", "key4you", secret_files.admin_password(places), secret_files.flask_key(places))
        assert not any(secret in json.dumps(started.command) for secret in secrets)
        assert "key4you" in started.environment.values()
