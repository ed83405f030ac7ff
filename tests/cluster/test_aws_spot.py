"""The watcher on spot notices, with a real metadata service over HTTP."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipelines.cluster import spot_watcher
from pipelines.cluster.spot_watcher import Metadata, WatcherSettings, read_notice
from tests.cluster.aws_account import ROOT
from tests.cluster.metadata_server import MetadataServer, metadata_server

pytestmark = pytest.mark.core

OURS = "i-0aaaaaaaaaaaaaaaa"


@pytest.fixture
def service() -> Iterator[MetadataServer]:
    """The metadata service of our instance."""
    with metadata_server(OURS) as service:
        yield service


class Clock:
    """A clock of which a second passes when somebody sleeps for a second."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.UTC).timestamp()

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def test_no_notice_is_no_notice(service: MetadataServer) -> None:
    assert read_notice(Metadata(service.url)) is None
    assert service.refused == 0, "the token was fetched before it was asked for"


def test_a_notice_is_read_with_its_time(service: MetadataServer) -> None:
    service.give_notice(120)
    notice = read_notice(Metadata(service.url))
    assert notice is not None
    assert notice.action == "terminate"
    given = json.loads(service.texts["spot/instance-action"])["time"]
    assert datetime.datetime.fromtimestamp(notice.time, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") == given


def test_a_token_that_expired_is_fetched_anew(service: MetadataServer) -> None:
    metadata = Metadata(service.url)
    assert metadata.get("instance-id") == OURS
    service.tokens.clear()
    assert metadata.get("instance-id") == OURS
    assert service.refused == 1


def test_no_metadata_service_is_one_line(service: MetadataServer) -> None:
    """As a command in a process of its own."""
    service.broken = True
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cluster.spot_watcher", "--address", "127.0.0.1:1"],
        cwd=ROOT,
        env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this is no EC2 instance: ")


def test_a_head_that_cannot_be_reached_is_tried_again_to_the_end(
    service: MetadataServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(spot_watcher, "time", clock)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    service.give_notice(60)
    end = datetime.datetime.fromisoformat(json.loads(service.texts["spot/instance-action"])["time"]).timestamp()
    clock.now = end - 60
    assert spot_watcher.main(WatcherSettings(address="127.0.0.1:1")) == 0
    assert end <= clock.now < end + spot_watcher.RETRY_SECONDS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"watching for a spot notice to {OURS}"
    assert lines[1].startswith(f"EC2 will terminate {OURS} in ")
    assert len(lines) == 2 + 60
    assert all(line.startswith("Ray at 127.0.0.1:1: ") and line.endswith("; trying again") for line in lines[2:])
