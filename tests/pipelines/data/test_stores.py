"""Stores as they are: archives, public buckets, odd keys, writes without conditions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.cli import command_line
from pipelines.data.settings import IngestSettings
from pipelines.data.sources import open_source
from pipelines.ingest import main
from pipelines.storage import ArchivedError, open_storage
from tests.pipelines.data.source_builders import bad_of, files_of, folder, png, pngs, stored
from tests.s3 import FaultProxy

pytestmark = pytest.mark.core


def put(client: Any, uri: str, key: str, content: bytes, **options: str) -> None:
    """An object with any key."""
    client.put_object(Bucket=uri.removeprefix("s3://").partition("/")[0], Key=key, Body=content, **options)


def ingest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Status and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["pipelines.ingest", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(main, IngestSettings)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().err


def test_an_archived_object_is_said_to_be_archived(bucket: str, s3_client: Any) -> None:
    stored(f"{bucket}/set", pngs("1.png", "2.png"))
    put(s3_client, bucket, "set/3.png", png(3), StorageClass="GLACIER")
    source = open_source(f"{bucket}/set")
    assert bad_of(source) == {"3.png": "archived by the store: restore it first"}
    assert len(list(source.items())) == 3
    with pytest.raises(ArchivedError, match=r"set/3.png: archived by the store \(403 InvalidObjectState.*restore it"):
        open_storage(f"{bucket}/set").read("3.png")
    put(s3_client, bucket, "set.tar", b"x" * 999, StorageClass="DEEP_ARCHIVE")
    with pytest.raises(ConfigError, match=r"set.tar: archived by the store") as caught:
        open_source(f"{bucket}/set.tar")
    assert "\n" not in str(caught.value)


def test_keys_that_are_no_paths_are_skipped_by_name(bucket: str, s3_client: Any) -> None:
    stored(f"{bucket}/set", pngs("cat/1.png", "dog/2.png"))
    for number, key in enumerate(("set//top.png", "set/cat//3.png", "set/../4.png", "set/./5.png")):
        put(s3_client, bucket, key, png(9 + number))
    source = open_source(f"{bucket}/set")
    cause = "a key with an empty, '.' or '..' part, which is no path"
    assert bad_of(source) == dict.fromkeys(("/top.png", "cat//3.png", "../4.png", "./5.png"), cause)
    assert {item.path for item in source.items()} >= {"cat/1.png", "dog/2.png"}
    put(s3_client, bucket, "/set/6.png", png(6))
    assert bad_of(open_source(bucket))["/set/6.png"] == cause


@pytest.mark.parametrize("answer", ["501", "400"])
def test_a_store_without_conditional_writes_is_said_to_lack_them(
    s3: str,
    bucket: str,
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = folder(tmp_path / "set", pngs(*(f"{number}.png" for number in range(20))))
    with FaultProxy(s3) as proxy:
        proxy.conditions = answer
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        status, said = ingest(monkeypatch, capsys, source, f"{bucket}/out")
    assert status == 2
    assert said.startswith(f"error: {bucket}/out: the store at {proxy.url} has no conditional writes ({answer} ")
    assert len(said.splitlines()) == 1


def test_a_store_that_ignores_conditions_is_noticed(
    s3: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "set", pngs(*(f"{number}.png" for number in range(20))))
    with FaultProxy(s3) as proxy:
        proxy.conditions = "ignored"
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        status, said = ingest(monkeypatch, capsys, source, f"{bucket}/out")
    assert status == 2
    assert "ignores the conditions of writes, which keep two commands from writing to one place" in said
    assert len(said.splitlines()) == 1
    assert list(open_storage(f"{bucket}/out").list()) == []  # nor is a lock left


def public(client: Any, uri: str, tree: dict[str, bytes]) -> str:
    """The files below a prefix of a public bucket."""
    for name, content in tree.items():
        put(client, uri, f"set/{name}", content, ACL="public-read")
    return f"{uri}/set"


def test_without_credentials_a_public_bucket_is_read(
    bucket: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = pngs("cat/1.png", "dog/2.png")
    uri = public(s3_client, bucket, tree)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert {path: content for path, (content, _, _) in files_of(open_source(uri)).items()} == tree


def test_anonymous_sends_no_credentials(
    bucket: str,
    s3: str,
    s3_client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = pngs(*(f"{number:02}.png" for number in range(20)))
    uri = public(s3_client, bucket, tree)
    assert len(files_of(open_source(uri, anonymous=True))) == 20
    status, said = ingest(monkeypatch, capsys, uri, str(tmp_path / "out"), "--anonymous")
    assert (status, said) == (0, "")
    private = stored(f"{bucket}/private", tree)
    with pytest.raises(ConfigError, match=rf"{bucket} is not public \(403 .*\); give credentials"):
        files_of(open_source(private, anonymous=True))
    with FaultProxy(s3, strict=True) as proxy:  # refuses what is not signed
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert open_source(uri).count() == 20
        with pytest.raises(ConfigError, match=rf"{bucket} is not public \(403 .*\); give credentials") as caught:
            open_source(uri, anonymous=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--anonymous: .* lies on this machine"):
        open_source(folder(tmp_path / "set", tree), anonymous=True)
