"""What cannot work is one line that says what would, before anything is started."""

from __future__ import annotations

import os
import socket

import pytest

from pipelines.services import boot
from tests.services.head import Head, until

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "0"], "--port=0: must be an integer of at least 1"),
        (["--port", "70000"], "--port=70000: must be from 1 to 65535"),
        (["--port", "http"], "--port"),
        (["--log-size", "much"], "--log-size='much': give a size such as"),
        (["--log-copies", "0"], "--log-copies=0: must be an integer of at least 1"),
        (["--patience", "0"], "--patience=0.0: must be a finite number above 0"),
        (["--programs", "mlfow"], "--programs"),
        (["--programs"], "--programs: name at least one"),
        (["--host", "0.0.0.0"], "--host=0.0.0.0: others could reach it, and passwords would cross the network"),
        (["--host", "example.org"], "--host=example.org: must be an IPv4 address of this machine"),
        (["--public-names", "http://a.example"], "--public-names=http://a.example: must be plain host names"),
        (["--public-names", "*"], "--public-names=*: must be plain host names"),
        (["--artifacts", "gs://bucket"], "gs://bucket: cannot use gs://"),
        (["--artifacts", "s3://B"], "s3://B: 'B' is no bucket name"),
        (["--artifacts", "/dev/null/artifacts"], "--artifacts=/dev/null/artifacts: cannot be made (Not a directory)"),
        (["--database", "mysql://me@host/runs"], "--database=mysql://me@host/runs: must be postgresql://"),
        (["--database", "runs.db"], "--database: not a URI; use postgresql://USER@HOST/NAME"),
        (["--database", "postgresql://me@host"], "names no database"),
        (["--database", "postgresql://me@127.0.0.1:9/runs"], "cannot be used (connection to server at"),
    ],
)
def test_an_option_that_cannot_work(head: Head, options: list[str], said: str) -> None:
    check(head, options, said)


def check(head: Head, options: list[str], said: str) -> None:
    """``up`` with ``options`` ends with status 2 and one line that has ``said`` in it, and nothing runs."""
    result = head.run("up", *options)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert head.processes() == []


def test_a_password_on_the_command_line_is_refused_and_not_repeated(head: Head) -> None:
    check(head, ["--database", "postgresql://me:pass4you@host/runs"], "put it into ~/.pgpass")
    result = head.run("up", "--database", "postgresql://me:pass4you@host/runs")
    assert "pass4you" not in result.stdout + result.stderr
    query = head.run("up", "--database", "postgresql://me@host/runs?password=pass4you")
    assert query.returncode == 2
    assert "pass4you" not in query.stdout + query.stderr


def test_a_data_folder_that_cannot_be_made(head: Head) -> None:
    head.data.write_text("a file")
    check(head, [], f"--data={head.data}: cannot be written")


@pytest.mark.parametrize(
    ("name", "said"),
    [("x" * 120, "too long by"), ("a;b", "may hold letters"), ("50%", "may hold letters"), ("a'b", "may hold letters")],
)
def test_a_data_folder_whose_name_cannot_serve(head: Head, name: str, said: str) -> None:
    head.data = head.home / name
    check(head, [], said)
    assert not head.data.exists()


def test_a_port_that_is_taken(head: Head) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", head.port))
        other.listen()
        check(head, ["--port", str(head.port)], f"--port={head.port}: cannot listen on 127.0.0.1:{head.port}")


def test_a_bucket_that_is_not_there(head: Head, s3: str) -> None:
    head.environment |= {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
    check(head, ["--artifacts", "s3://no-such-bucket/mlflow"], "no-such-bucket")


def test_without_systemd_and_cron_the_command_for_the_boot_is_in_the_message(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "_SYSTEMD", head.home / "no systemd")
    head.environment["PATH"] = str(head.home)
    result = head.run("up", "--programs", "scheduler", "--at-boot")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "neither systemd nor crontab" in line
    assert str(head.data / "supervisor" / "supervisord.conf") in line
    until(head.well, "the services run until then")


def test_a_damaged_settings_file_is_said(head: Head) -> None:
    head.data.mkdir()
    for text in ("{", '{"artifacts": 3}', '{"nonsense": 1}'):
        (head.data / "services.json").write_text(text)
        for command in ("up", "status", "down"):
            result = head.run(command)
            assert result.returncode == 2, (command, text)
            assert "services.json" in result.stderr
            assert len(result.stderr.splitlines()) == 1
