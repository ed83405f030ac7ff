"""A search's trials as Optuna's, and the database that its dashboard opens."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState

from fvae.epoch_metrics import EpochMetrics
from pipelines.storage import open_storage
from tests.tune.curves import REST
from tests.tune.real_search import ROOT
from tests.tune.small_space import DIGITS, SOURCE, SPACE, trial
from tune.propose.optuna_study import FrozenTrials, write_studies
from tune.records.attempts import Attempt
from tune.records.ledger import TrialRecord
from tune.records.scores import TestResult
from tune.stats.pareto import fronts

pytestmark = pytest.mark.core

STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def curve(*bits: float) -> tuple[EpochMetrics, ...]:
    return tuple(
        EpochMetrics(epoch=epoch, val_bpd=each, images=epoch, seconds=1.0, **REST)  # type: ignore[arg-type]
        for epoch, each in enumerate(bits, start=1)
    )


def searched() -> list[TrialRecord]:
    """Ten trials of all families, in all states."""
    counts = {"flow": 5, "fvae": 3, "vae": 2}
    drawn = [each for family, count in counts.items() for each in SOURCE.draw(family, count, np.random.default_rng(0))]
    statuses = ["complete", "complete", "stopped", "failed", "running", "complete", "complete", "stopped"]
    statuses += ["complete", "failed"]
    ended = Attempt(started_ms=1_700_000_000_000, ended_ms=1_700_000_060_000, cpus=1.0, gpus=0.0, ended="done")
    return [
        trial(number, each, status, history=curve(3.5, 3.0), attempts=(ended,), reason="because")
        for number, (each, status) in enumerate(zip(drawn, statuses, strict=True))
    ]


def frozen(records: list[TrialRecord]) -> list[optuna.trial.FrozenTrial]:
    made = FrozenTrials(SPACE, DIGITS)
    return [made.of(record) for record in records]


def test_every_trial_has_its_true_state_its_curve_and_its_point() -> None:
    records = searched()
    for record, one in zip(records, frozen(records), strict=True):
        assert one.state == STATES[record.status]
        assert one.values == ([record.params, record.val_bpd] if record.status == "complete" else None)
        assert one.params == record.suggestion
        assert one.intermediate_values == {1: 3.5, 2: 3.0}
        assert one.user_attrs["id"] == record.id
        assert one.user_attrs["reason"] == "because"
        assert one.datetime_start is not None
        if one.state.is_finished():
            assert one.datetime_complete is not None
            assert (one.datetime_complete - one.datetime_start).total_seconds() == 60


def test_one_that_has_not_changed_is_made_once() -> None:
    (record, *_) = searched()
    made = FrozenTrials(SPACE, DIGITS)
    assert made.of(record) is made.of(record)
    test = TestResult(bpd=2.5, bpd_iwae64=2.4, standard_error=0.1, standard_error_iwae64=0.1, seed=0)
    later = dataclasses.replace(record, test=test)
    assert made.of(later).user_attrs["test_bpd"] == 2.5


def test_a_model_of_another_versions_space_has_what_the_space_can_say_of_it() -> None:
    record = searched()[0]
    beyond = dataclasses.replace(record, suggestion=record.suggestion | {"learning_rate": 5.0})
    (one,) = frozen([beyond])
    assert one.params["learning_rate"] == 5.0
    assert one.distributions["learning_rate"]._contains(5.0)
    fewer = dataclasses.replace(SPACE, coupling=("additive",))
    gone = FrozenTrials(fewer, DIGITS).of(
        dataclasses.replace(record, suggestion=record.suggestion | {"coupling": "affine"})
    )
    assert gone.params == {}
    unknown = dataclasses.replace(record, suggestion={"odd": 1}, config={"family": "flow", "odd": 1})
    (one,) = frozen([unknown])
    assert one.params == {}
    assert one.values is not None


def test_the_database_holds_a_study_for_each_family_and_one_of_all(tmp_path: Path) -> None:
    records = searched()
    write_studies(open_storage(tmp_path), "digits", frozen(records))
    url = f"sqlite:///{tmp_path}/optuna.db"
    assert optuna.get_all_study_names(url) == ["digits/vae", "digits/flow", "digits/fvae", "digits"]
    for name, family in (("digits", "all"), ("digits/flow", "flow"), ("digits/fvae", "fvae")):
        study = optuna.load_study(study_name=name, storage=url)
        assert study.metric_names == ["parameters", "validation bits/dim"]
        wanted = [record for record in records if family in ("all", record.family)]
        assert [each.state for each in study.trials] == [STATES[record.status] for record in wanted]
        assert {each.user_attrs["id"] for each in study.best_trials} == set(fronts(records)[family])
    every = optuna.load_study(study_name="digits", storage=url).trials
    assert [each.params for each in every] == [record.suggestion | {"family": record.family} for record in records]
    importance = optuna.importance.get_param_importances(study, target=lambda each: each.values[1])
    assert importance


def test_it_is_written_anew_whole(tmp_path: Path) -> None:
    records = searched()
    for count in (3, len(records)):
        write_studies(open_storage(tmp_path), "digits", frozen(records[:count]))
        study = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path}/optuna.db")
        assert len(study.trials) == count


def test_a_finished_search_writes_them_without_a_word(tmp_path: Path) -> None:
    """In a process that has not searched, and has imported nothing else of Optuna's."""
    program = "from pipelines.storage import open_storage; from tune.propose.optuna_study import write_studies; "
    program += f"write_studies(open_storage({str(tmp_path)!r}), 'digits', [])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_search_without_trials_leaves_an_empty_study(tmp_path: Path) -> None:
    write_studies(open_storage(tmp_path), "digits", [])
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/optuna.db") == ["digits"]


class Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def dashboard(database: Path) -> Iterator[str]:
    """Optuna Dashboard's own pages over HTTP."""
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{database}"))
    with make_server("127.0.0.1", 0, app, handler_class=Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def read(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def test_the_dashboard_shows_fronts_history_and_curves(tmp_path: Path) -> None:
    records = searched()
    write_studies(open_storage(tmp_path), "digits", frozen(records))
    with dashboard(tmp_path / "optuna.db") as url:
        studies = {each["study_name"]: each for each in read(f"{url}/api/studies")["study_summaries"]}
        assert set(studies) == {"digits", "digits/flow", "digits/fvae", "digits/vae"}
        shown = read(f"{url}/api/studies/{studies['digits/flow']['study_id']}?after=0")
        assert shown["directions"] == ["minimize", "minimize"]
        assert shown["objective_names"] == ["parameters", "validation bits/dim"]
        assert [each["state"] for each in shown["trials"]] == ["Complete", "Complete", "Pruned", "Fail", "Running"]
        assert {trial["number"] for trial in shown["best_trials"]} == {
            records.index(record) for record in records if record.id in fronts(records)["flow"]
        }
        assert [step["value"] for step in shown["trials"][0]["intermediate_values"]] == [3.5, 3.0]
