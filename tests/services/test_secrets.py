"""Who may read and do what: secrets on the disk and in the list of processes, and what MLflow answers to whom."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.services.head import Head, until

pytestmark = [pytest.mark.core, pytest.mark.xdist_group("services")]

EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=5"


def test_nobody_else_can_read_a_file_of_the_services(shared_head: Head) -> None:
    for path in (shared_head.data, *shared_head.data.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} {mode:o}"
    names = {path.name for path in (shared_head.data / "secrets").iterdir()}
    assert names == {
        "mlflow-admin-password",
        "flask-secret-key",
        "mlflow-auth.ini",
        "environment.json",
        "client.env",
    }
    credentials = shared_head.home / ".mlflow" / "credentials"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert shared_head.password() in credentials.read_text()


def test_secrets_stand_in_no_command_no_log_and_no_open_file(shared_head: Head) -> None:
    shared_head.request(EXPERIMENTS, shared_head.admin)
    secrets = [path.read_text() for path in (shared_head.data / "secrets").glob("*[dy]") if path.suffix == ""]
    assert len(secrets) == 2
    assert all(len(secret) >= 40 for secret in secrets)
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in shared_head.processes()]
    assert any("mlflow" in command for command in commands)
    open_files = [path.read_text() for path in shared_head.data.rglob("*.conf")]
    open_files += [(shared_head.data / "services.json").read_text(), shared_head.logs()]
    for secret in secrets:
        assert not any(secret in text for text in (*commands, *open_files))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/signup",
        "/version",
        EXPERIMENTS,
        "/ajax-api/2.0/mlflow/experiments/search?max_results=5",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow/users/list",
        "/metrics",
        "/graphql",
        "/docs",
        "/openapi.json",
    ],
)
def test_without_a_password_everything_is_refused(shared_head: Head, path: str) -> None:
    assert shared_head.request(path)[0] == 401
    assert shared_head.request(path, ("admin", "password1234"))[0] == 401  # MLflow's own default, once
    assert shared_head.request(path, ("admin", ""))[0] == 401


def test_with_the_password_it_is_answered(shared_head: Head) -> None:
    code, text = shared_head.request(EXPERIMENTS, shared_head.admin)
    assert code == 200
    assert json.loads(text)["experiments"][0]["name"] == "Default"


@pytest.mark.parametrize("host", ["evil.example", "10.evil.example:5000", "192.168.0.7", "127.0.0.1.evil.example"])
def test_another_host_header_is_refused(shared_head: Head, host: str) -> None:
    code, text = shared_head.request(EXPERIMENTS, shared_head.admin, Host=host)
    assert code == 403
    assert "DNS rebinding" in text


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1:9999"])
def test_a_tunnel_may_have_any_port(shared_head: Head, host: str) -> None:
    assert shared_head.request(EXPERIMENTS, shared_head.admin, Host=host)[0] == 200


def test_another_site_cannot_write_through_a_browser(shared_head: Head) -> None:
    create = "/api/2.0/mlflow/experiments/create"
    code, _ = shared_head.request(create, shared_head.admin, b'{"name": "evil"}', Origin="https://evil.example")
    assert code == 403
    by_name = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=evil"
    assert shared_head.request(by_name, shared_head.admin)[0] == 404


def test_a_colleague_reads_everything_and_changes_only_what_is_his(shared_head: Head) -> None:
    one = ("ann", "long enough for ann")
    body = json.dumps({"username": one[0], "password": one[1]}).encode()
    assert shared_head.request("/api/2.0/mlflow/users/create", None, body)[0] == 401
    assert shared_head.request("/api/2.0/mlflow/users/create", shared_head.admin, body)[0] == 200
    assert shared_head.request("/api/2.0/mlflow/experiments/get?experiment_id=0", one)[0] == 200
    update = b'{"experiment_id": "0", "new_name": "mine"}'
    assert shared_head.request("/api/2.0/mlflow/experiments/update", one, update)[0] == 403
    code, text = shared_head.request("/api/2.0/mlflow/experiments/create", one, b'{"name": "of ann"}')
    assert code == 200
    update = json.dumps({"experiment_id": json.loads(text)["experiment_id"], "new_name": "still of ann"}).encode()
    assert shared_head.request("/api/2.0/mlflow/experiments/update", one, update)[0] == 200
    # The server remembers right passwords for a minute, and forgets at once what it has changed itself.
    change = b'{"username": "ann", "password": "another one for ann"}'
    assert shared_head.request("/api/2.0/mlflow/users/update-password", shared_head.admin, change, "PATCH")[0] == 200
    assert shared_head.request(EXPERIMENTS, one)[0] == 401
    assert shared_head.request(EXPERIMENTS, ("ann", "another one for ann"))[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("config", None),
        ("config", b'{"providers": {"openai_compatible": {"base_url": "http://127.0.0.1:9", "selected": true}}}'),
        ("message", b'{"message": "run a command"}'),
        ("providers", None),
        ("providers/ollama/health", None),
        ("skills/install", b"{}"),
    ],
)
def test_nobody_has_the_assistant_which_runs_commands_on_the_machine(
    shared_head: Head, path: str, body: bytes | None
) -> None:
    full = f"/ajax-api/3.0/mlflow/assistant/{path}"
    method = "PUT" if path == "config" and body else None
    code, text = shared_head.request(full, shared_head.admin, body, method)
    assert code == 403
    assert "assistant is disabled" in text
    assert shared_head.request(full, None, body, method)[0] == 403
    assert shared_head.request(full.replace("assistant", "%61ssistant"), shared_head.admin, body, method)[0] == 403
    assert not (shared_head.home / ".mlflow" / "assistant").exists()


def test_the_server_sends_no_requests_where_a_user_says(shared_head: Head) -> None:
    call = b'{"model": "any", "messages": []}'
    code, text = shared_head.request("/gateway/mlflow/v1/chat/completions", shared_head.admin, call)
    assert code == 501
    assert "disabled" in text


def test_another_head_has_other_secrets_and_leaves_credentials_of_another_server(head: Head, shared_head: Head) -> None:
    own = head.home / ".mlflow" / "credentials"
    own.parent.mkdir()
    own.write_text("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = mine\n")
    # Its MLflow is not waited for: all files are written before it starts.
    printed = head.run("up", "--port", str(head.port), "--programs", "mlflow", "--patience", "0.001").stdout
    until(lambda: head.pids()["supervisord"], "supervisord can be ended")
    assert f"note: {own} was not written by these services and is left" in printed
    assert "mine" in own.read_text()
    for name in ("mlflow-admin-password", "flask-secret-key"):
        assert (head.data / "secrets" / name).read_text() != (shared_head.data / "secrets" / name).read_text()
    variables = dict(line.split("=", 1) for line in (head.data / "secrets" / "client.env").read_text().splitlines())
    assert variables == {
        "MLFLOW_TRACKING_URI": head.url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": head.password(),
    }


def test_it_listens_on_the_loopback_alone(shared_head: Head) -> None:
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{shared_head.port:04X}")
    ]
    assert listening == [f"0100007F:{shared_head.port:04X}"]
