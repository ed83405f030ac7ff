"""``python -m pipelines.services status``: what runs, since when, and where its log is."""

from __future__ import annotations

import time

from fvae.files import read_json
from pipelines.services import health, supervision
from pipelines.services.settings import ServiceSettings, Status
from pipelines.services.supervision import SUPERVISOR, Process


def run(options: Status) -> int:
    """Print a table; returns 1 where something is down, else 0."""
    places = options.places()
    if not places.settings.exists():
        print(f"no services in {places.data}; start them with `python -m pipelines.services up --data {places.data}`")
        return 1
    settings = ServiceSettings.from_dict(read_json(places.settings))
    supervisor = supervision.supervisor_pid(places)
    known = supervision.processes(places)
    rows: list[tuple[str, ...]] = [("program", "state", "pid", "since", "log")]
    rows.append(
        _row(SUPERVISOR, "down" if supervisor is None else "running", supervisor or 0, 0, places.log(SUPERVISOR))
    )
    well = supervisor is not None
    for program in settings.programs:
        process = known.get(program, Process("DOWN", 0, 0))
        state = process.state.lower()
        if program == "mlflow" and process.state in {"RUNNING", "STARTING"}:
            state = "running" if health.answers(settings.url) else "no answer"
        well = well and state == "running"
        rows.append(_row(program, state, process.pid, process.since if process.pid else 0, places.log(program)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if well else 1


def _row(program: str, state: str, pid: int, since: int, log: object) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if since else "-"
    return program, state, str(pid or "-"), when, str(log)
