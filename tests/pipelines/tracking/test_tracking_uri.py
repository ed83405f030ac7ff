"""Where MLflow's runs are kept is settled before any work is done; the pages open, or say in one line why not."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from fvae.config import ConfigError
from pipelines import ui
from pipelines.cli.redaction import has_secret, without_secrets
from pipelines.storage import StorageError, open_storage
from pipelines.tracking import connection
from pipelines.tracking import tracking_uri as tracking_uris
from pipelines.tracking.connection import unreachable_for_now
from pipelines.tracking.settings import default_tracking_uri, sqlite_path
from pipelines.tracking.tracking_uri import tracking_uri
from tests.commands import call

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("uri", "said"),
    {
        "./mlruns": "a folder",
        "mlruns": "a folder",
        "file:///tmp/mlruns": "a folder",
        "databricks": "not a place that runs can be kept in",
        "databricks://profile": "not a place that runs can be kept in",
        "databricks-uc": "not a place that runs can be kept in",
        "localhost:5000": "not a place that runs can be kept in",
        "s3://bucket/runs": "not a place that runs can be kept in",
        "http://": "names no host",
        "sqlite://": "names no file",
        "sqlite:///": "names no file",
        "mysql://me:secret@host/mlflow": "no driver for mysql is installed; install one (pip install pymysql)",
        "postgresql+psycopg://me:secret@host/mlflow": "the driver psycopg is not installed; install one",
        "mysql://host/mlflow?user=me&password=secret": "no driver for mysql",
        "mysql://me:a/secret@host/mlflow": "no driver for mysql",
        "mysql://me:a secret@host/mlflow": "no driver for mysql",
        "mysql://me:a@secret@host/mlflow": "more than one @ before its host; in a user and a password, write / as %2F",
        "http://me:a/secret@host": "has no number as its port; in a user and a password, write / as %2F",
        "http://?token=secret": "names no host",
    }.items(),
)
def test_what_can_never_work_is_one_line(uri: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracking_uris, "_installed", lambda module: module == "psycopg2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as failure:
        tracking_uri(open_storage(tmp_path))
    line = str(failure.value)
    assert line.startswith("MLFLOW_TRACKING_URI=") and said in line
    assert "\n" not in line and "secret" not in line


def test_a_database_gets_the_driver_that_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def chosen(uri: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return tracking_uri(open_storage(tmp_path))

    assert chosen("postgresql://me@host/mlflow") == "postgresql+psycopg2://me@host/mlflow"  # the real installation
    assert chosen("postgres://me@host/mlflow") == "postgresql+psycopg2://me@host/mlflow"
    for uri in ("postgresql+psycopg2://host/mlflow", "https://me:secret@host/mlflow", "sqlite:///mlflow.db?timeout=9"):
        assert chosen(uri) == uri
    monkeypatch.setattr(tracking_uris, "_installed", lambda module: module in {"psycopg", "MySQLdb"})
    assert chosen("postgresql://host/mlflow") == "postgresql+psycopg://host/mlflow"
    assert chosen("mysql://host/mlflow") == "mysql+mysqldb://host/mlflow"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(open_storage(tmp_path)) == default_tracking_uri(open_storage(tmp_path))


def test_what_does_not_answer_now_is_one_line() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        port = silent.getsockname()[1]
        at = f"127.0.0.1:{port}"
        for uri in (
            f"http://me:secret@{at}",
            f"http://{at}/?token=secret",
            f"postgresql+psycopg2://me:secret@{at}/mlflow",
            f"postgresql+psycopg2://me:a/secret@{at}/mlflow",
            f"postgresql+psycopg2://{at}/mlflow?user=me&password=secret",
        ):
            note = unreachable_for_now(uri)
            assert note is not None and f"127.0.0.1:{port}" in note and "onnection refused" in note
            assert "\n" not in note and "secret" not in note


def changed(database: Path, version: str, path: Path) -> str:
    shutil.copyfile(database, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    return f"sqlite:///{path}"


def test_a_database_of_another_mlflow_is_one_line(empty_database: Path, tmp_path: Path) -> None:
    assert unreachable_for_now(f"sqlite:///{tmp_path}/missing.db") is None
    assert unreachable_for_now(f"sqlite:///{empty_database}") is None
    (tmp_path / "text.db").write_text("not a database" * 1000)
    for uri, said in {
        changed(empty_database, "ffffffffffff", tmp_path / "newer.db"): "install the MLflow that wrote it",
        changed(empty_database, "c48cb773bb87", tmp_path / "older.db"): f"mlflow db upgrade sqlite:///{tmp_path}/older",
        f"sqlite:///{tmp_path}/text.db": "file is not a database",
    }.items():
        with pytest.raises(ConfigError) as failure:
            unreachable_for_now(uri)
        assert said in str(failure.value) and "\n" not in str(failure.value)


def test_what_is_no_url_of_a_database_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg2://host:port/db: no URL of a database .*; use the URL"):
        unreachable_for_now("postgresql+psycopg2://me:secret@host:port/db")


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_database_that_another_process_has_locked_is_used_later(
    lock: str, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # MLflow's own retries
    path = tmp_path / "mlflow.db"
    if lock == "EXCLUSIVE":
        shutil.copyfile(empty_database, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE IF NOT EXISTS other (x)")
        writer.execute(f"BEGIN {lock}")  # the second lets others read, and MLflow has its tables to make
        note = unreachable_for_now(f"sqlite:///{path}?timeout=0.01")
    assert note is not None and "database is locked" in note and "\n" not in note


def test_the_advice_for_an_earlier_database_works(empty_database: Path, tmp_path: Path) -> None:
    uri = changed(empty_database, newest_schemas()[1], tmp_path / "my runs.db")
    with pytest.raises(ConfigError, match="keep a copy") as failure:
        unreachable_for_now(uri)
    command = shlex.split(str(failure.value).rpartition("with: ")[2])
    assert command[-3:] == ["db", "upgrade", uri]
    # The newest migration has been carried out on this database already, so the whole command would repeat it.
    assert subprocess.run([*command[:-1], "--help"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("variable", "uri"),
    [
        ("postgresql://me:it's $(a) secret@host/db", "postgresql+psycopg2://me:it's $(a) secret@host/db"),
        ("mysql+pymysql://host/db?password=secret", "mysql+pymysql://host/db?password=secret"),
    ],
)
def test_the_advice_has_the_secrets_of_the_environment(
    variable: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    word = connection._in_a_shell(uri)
    assert "secret" not in word
    assert subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, text=True).stdout == uri


def test_texts_lose_their_secrets_and_keep_the_rest() -> None:
    for text, shown in {
        "cannot read https://me:a@b/secret@h/x?token=secret (no)": "cannot read https://h/x (no)",
        "exceeded with url: /api?token=secret (Caused by x)": "exceeded with url: /api (Caused by x)",
        "sqlite:////home/me@work/my runs.db, s3://bucket/a@b": "sqlite:////home/me@work/my runs.db, s3://bucket/a@b",
        "http://host:5000/x: what? is = not": "http://host:5000/x: what? is = not",
    }.items():
        assert without_secrets(text) == shown
    for url in ("http://h/?api_key=x", "postgresql://h/db?sslmode=require&password=x", "http://me@h"):
        assert has_secret(url)
    assert not has_secret("postgresql://h/db?sslmode=require")


def newest_schemas() -> tuple[str, str]:
    """MLflow's newest schema, and the one before it."""
    import mlflow.store.db_migrations

    (folder,) = mlflow.store.db_migrations.__path__
    revisions = {}
    for path in Path(folder, "versions").glob("*.py"):
        found = dict(re.findall(r'^(revision|down_revision) = "(\w+)"$', path.read_text(), re.MULTILINE))
        if "revision" in found:
            revisions[found["revision"]] = found.get("down_revision", "")
    (newest,) = set(revisions) - set(revisions.values())
    return newest, revisions[newest]


# --- the pages --------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return folder


def test_a_port_in_use_is_one_line(runs: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        called = call(ui.main, ui.UISettings, "--runs", str(runs), "--port", str(port))
    assert called.status == 2
    assert called.err.startswith(f"error: --port={port}: cannot listen on 127.0.0.1:{port} (Address already in use)")
    assert called.err.count("\n") == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machine_s_is_one_line(runs: Path, host: str) -> None:
    called = call(ui.main, ui.UISettings, "--runs", str(runs), "--host", host)
    assert called.status == 2
    assert called.err.startswith(f"error: --host={host}: no address of this machine")


def test_pages_of_a_database_of_another_mlflow_are_one_line(runs: Path, empty_database: Path) -> None:
    changed(empty_database, "ffffffffffff", runs / "mlflow.db")
    called = call(ui.main, ui.UISettings, "--runs", str(runs), "--port", str(free_port()))
    assert called.status == 2
    assert "schema ffffffffffff" in called.err and called.err.count("\n") == 1


def test_pages_of_a_dead_database_are_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me@127.0.0.1:9/mlflow")
    with pytest.raises(StorageError, match="127.0.0.1:9/mlflow does not answer"):
        ui.main(ui.UISettings(runs=str(runs), port=free_port()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="http://127.0.0.1:9 does not answer"):
        ui.main(ui.UISettings(runs=str(runs), port=free_port()))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("name", ["runs", "my runs", "it's $HOME", "a#b", 'say "so"', "back`tick`", "100%; echo no"])
def test_the_command_that_opens_the_pages_works_when_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell and make hand the pages' command the folder, whatever its name is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(ui, "ROOT", tmp_path)
    (tmp_path / "Makefile").write_text("ui:\n\t@printf '<%s>' $(ARGS)\n")
    for folder in (tmp_path, Path("/")):
        monkeypatch.chdir(folder)
        command = ui.how_to_open(open_storage(tmp_path / name))
        shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
        assert ("<>" if name == "runs" else f"<--runs><{tmp_path / name}>") in shown


def test_where_a_server_keeps_the_runs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.lan:5000")
    assert ui.how_to_open(open_storage(tmp_path)) == "http://mlflow.lan:5000"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////runs/mlflow.db", "/runs/mlflow.db"),
        ("sqlite:///mlflow.db?timeout=5", "mlflow.db"),
        ("postgresql://host/mlflow", None),
        ("http://host:5000", None),
    ],
)
def test_the_file_of_a_database(uri: str, path: str | None) -> None:
    assert sqlite_path(uri) == (path and Path(path))


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no runs there: {tmp_path}/mlflow.db does not exist"):
        connection.connect(f"sqlite:///{tmp_path}/mlflow.db?timeout=5", create=False)
    assert not list(tmp_path.iterdir())
