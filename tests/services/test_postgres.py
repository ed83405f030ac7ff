"""MLflow's server on a real PostgreSQL: runs and users in it, its password nowhere to be read, its absence survived."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.services.head import Head, lives, until
from tests.services.postgres import PASSWORD, Postgres, postgres_server

pytestmark = pytest.mark.system

DEFAULT = "/api/2.0/mlflow/experiments/get?experiment_id=0"
CREATE = "/api/2.0/mlflow/experiments/create"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


def test_runs_and_users_are_in_postgresql_and_its_absence_is_survived(head: Head, postgres: Postgres) -> None:
    path = head.home / ".pgpass"
    path.write_text(postgres.pgpass)
    path.chmod(0o600)
    head.first_up("--database", postgres.uri)
    assert head.request(CREATE, head.admin, b'{"name": "in PostgreSQL"}')[0] == 200
    assert sorted(postgres.column("SELECT name FROM experiments")) == ["Default", "in PostgreSQL"]
    assert postgres.column("SELECT username FROM users") == ["admin"]
    assert list(head.data.rglob("*.db")) == []
    before = head.pids()
    assert "mlflow: unchanged" in head.up()  # the same database, which need not be named again
    assert "mlflow: unchanged" in head.up("--database", postgres.uri)

    postgres.stop()
    result = head.run("up")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"127.0.0.1:{postgres.port}/runs: cannot be used (connection to server at" in line
    assert head.pids() == before
    (listener,) = head.children(before["mlflow"])
    os.kill(before["mlflow"], signal.SIGKILL)  # it cannot start now, and is tried again for ever
    until(lambda: not lives(listener), "what the killed one had left is ended")
    until(lambda: head.status()[1]["mlflow"][1] not in (0, before["mlflow"]), "MLflow is tried again")
    postgres.start()
    until(head.well, "MLflow is back")
    assert head.request(DEFAULT, head.admin)[0] == 200

    # A restart of the database below a server that goes on costs nothing but what was asked meanwhile.
    before = head.pids()
    postgres.stop()
    assert head.request(DEFAULT, head.admin)[0] in {500, 503}
    postgres.start()
    assert head.request(DEFAULT, head.admin)[0] == 200
    assert head.pids() == before


def test_a_new_head_finds_the_runs_and_says_that_the_password_is_another(
    make_head: Callable[..., Head], postgres: Postgres
) -> None:
    uri = postgres.uri.replace("fvae@", f"fvae:{quote(PASSWORD, safe='')}@")
    lost = make_head(MLFLOW_BACKEND_STORE_URI=uri)
    lost.first_up()
    assert lost.request(CREATE, lost.admin, b'{"name": "of the lost head"}')[0] == 200
    readable = [path for path in lost.data.rglob("*") if path.is_file() and path.parent.name != "secrets"]
    texts = [path.read_bytes() for path in readable]
    texts += [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in lost.processes()]
    assert len(texts) > 6
    for part in (b"p@ss", b"p%40ss"):  # however the rest is quoted
        assert part.decode() in PASSWORD or part.decode() in quote(PASSWORD)
        assert not any(part in text for text in texts)
    assert "mlflow: unchanged" in lost.up()
    del lost.environment["MLFLOW_BACKEND_STORE_URI"]
    assert "mlflow: unchanged" in lost.up()  # it is kept
    assert lost.run("down").returncode == 0

    new = make_head(MLFLOW_BACKEND_STORE_URI=uri)
    result = new.run("up", "--port", str(new.port), "--programs", "mlflow")
    assert result.returncode == 2
    assert "is not that of MLflow's user admin: put it there, or add --reset-password" in result.stderr
    assert PASSWORD not in result.stderr
    new.up("--reset-password")
    by_name = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=of%20the%20lost%20head"
    assert new.request(by_name, new.admin)[0] == 200
    assert new.request(by_name, lost.admin)[0] == 401


def test_a_wrong_password_is_one_line(head: Head, postgres: Postgres) -> None:
    head.environment["PGPASSWORD"] = "wrong"
    result = head.run("up", "--database", postgres.uri)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "cannot be used" in line
    assert "password authentication failed" in line
    assert head.processes() == []
