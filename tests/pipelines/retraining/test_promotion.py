"""Decisions carried out on a real registry: once, wholly, the alias last, whatever happens on the way."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvae import ConfigError
from pipelines.retraining.decision import Decision
from pipelines.retraining.promotion import PENDING, Promoter, previous_of
from pipelines.retraining.registered_model import CHAMPION, PREVIOUS, ROLLED_BACK, RegisteredModel
from pipelines.storage import Storage, StorageError, open_storage
from pipelines.storage.lease import exclusive
from pipelines.tracking.settings import default_tracking_uri
from tests.pipelines.retraining.retrainings import MODEL, NAME, Registry

pytestmark = pytest.mark.core

DATA = {"name": NAME, "hash": "6e488d75142b8351", "train": 10, "val": 2, "test": 3}


class Died(BaseException):
    """What a killed process does next: nothing."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A registered model with four versions, of which the first is the champion."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    shutil.copyfile(empty_database, path)
    client = Registry(f"sqlite:///{path}").client
    client.create_registered_model(MODEL)
    for number in range(1, 5):
        client.create_model_version(MODEL, f"/nowhere/{number}", await_creation_for=0)
    client.set_registered_model_alias(MODEL, CHAMPION, "1")
    return path


class Place:
    """Runs with that registry, and as many processes as are asked for."""

    def __init__(self, runs: Storage, uri: str) -> None:
        self.runs, self.uri = runs, uri
        self.registry = Registry(uri)
        self.said: list[str] = []
        self.reported: list[Decision] = []

    @property
    def pending(self) -> Path:
        assert self.runs.local_path is not None
        return self.runs.local_path / f"retrain-{MODEL}" / "decision" / PENDING

    def registered(self) -> RegisteredModel:
        return RegisteredModel(MODEL, NAME, self.uri, self.runs)

    def promoter(self, registered: RegisteredModel | None = None, wait_seconds: float = 60.0) -> Promoter:
        return Promoter(
            self.runs.child(f"retrain-{MODEL}"),
            registered or self.registered(),
            None,
            wait_seconds=wait_seconds,
            say=self.said.append,
            report=self.reported.append,
        )


@pytest.fixture
def place(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = open_storage(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    shutil.copyfile(database, tmp_path / "runs/mlflow.db")
    return Place(runs, default_tracking_uri(runs))


def promotion(**changes: Any) -> Decision:
    values: dict[str, Any] = {"model": MODEL, "outcome": "promoted", "reasons": ("better by far",), "before": 1}
    values |= {"after": 2, "challenger": 2, "dataset": DATA, "settled": True, "figures": {"difference/bpd": -0.5}}
    return Decision(**(values | changes))


KEPT = {"outcome": "kept", "after": 1, "reasons": ("not better",)}
FAILED = {"outcome": "failed", "after": 1, "reasons": ("step 1: loss nan",)}
BACK = {"outcome": "rolled-back", "before": 2, "after": 1, "reasons": ("blurred",), "figures": {}}


def test_a_promotion_is_a_run_with_its_reasons_and_figures_and_moves_the_alias(place: Place) -> None:
    decision = promotion()
    run_id = place.promoter().carry_out(decision)
    (run,) = place.registry.decisions()
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    assert place.registry.alias() == 2
    assert place.registry.tags(2)[PREVIOUS] == "1"
    wanted = {"decision": "promoted", "reason": "better by far", "champion.before": "1", "champion.after": "2"}
    wanted |= {"challenger": "2", "model": MODEL, "data.hash": DATA["hash"], "data.test": "3", "settled": "True"}
    assert wanted.items() <= run.data.tags.items()
    assert run.data.metrics == {"difference/bpd": -0.5}
    assert not place.pending.exists() and place.reported == [decision]


@pytest.mark.parametrize("changes", [KEPT, FAILED], ids=["kept", "failed"])
def test_what_promotes_nothing_moves_nothing(place: Place, changes: dict[str, Any]) -> None:
    assert place.promoter().carry_out(promotion(**changes))
    assert place.registry.alias() == 1
    assert place.registry.outcomes() == [changes["outcome"]]
    assert PREVIOUS not in place.registry.tags(2)


def test_a_champion_that_was_changed_by_hand_is_left_alone(place: Place) -> None:
    place.registry.client.set_registered_model_alias(MODEL, CHAMPION, "3")
    assert place.promoter().carry_out(promotion()) is None
    assert place.registry.alias() == 3
    assert place.registry.decisions() == [] and not place.pending.exists() and place.reported == []


def test_what_may_be_done_is_asked_before_anything_is(place: Place) -> None:
    def check() -> None:
        raise StorageError("the lock was lost")

    with pytest.raises(StorageError, match="the lock was lost"):
        place.promoter().carry_out(promotion(), check)
    assert place.registry.alias() == 1 and place.registry.decisions() == [] and not place.pending.exists()


# --- a process that dies ---------------------------------------------------------------------------------------------

STEPS = ("write", "set_tag", "set_alias", "finish", "report")
"""In their order; between two of them, and within each, the process may die."""


class Dying(RegisteredModel):
    """Dies before or after a step."""

    def __init__(self, *arguments: Any, step: str, when: str) -> None:
        super().__init__(*arguments)
        for name in STEPS[:-1]:
            if name == step:
                setattr(self, name, self._around(getattr(self, name), when))

    @staticmethod
    def _around(method: Callable[..., Any], when: str) -> Callable[..., Any]:
        def dying(*arguments: Any) -> Any:
            if when == "after":
                method(*arguments)
            raise Died

        return dying


def die(place: Place, decision: Decision, step: str, when: str) -> None:
    """Carry ``decision`` out up to there."""
    registered = Dying(MODEL, NAME, place.uri, place.runs, step=step, when=when)
    promoter = place.promoter(registered)
    if step == "report":

        def report(_: Decision) -> None:
            raise Died

        promoter._report = report
    with pytest.raises(Died):
        promoter.carry_out(decision)


MOMENTS = [*((step, when) for step in STEPS[:-1] for when in ("before", "after")), ("report", "before")]


@pytest.mark.parametrize(("step", "when"), MOMENTS)
def test_whatever_a_dead_process_has_begun_is_completed_once(place: Place, step: str, when: str) -> None:
    decision = promotion()
    die(place, decision, step, when)
    moved = (STEPS.index(step), when) >= (STEPS.index("set_alias"), "") and (step, when) != ("set_alias", "before")
    assert place.registry.alias() == (2 if moved else 1)
    if moved:  # whoever follows the alias finds the whole record of it
        (run,) = place.registry.decisions()
        assert run.data.tags["decision"] == "promoted" and run.data.metrics == {"difference/bpd": -0.5}
        assert place.registry.tags(2)[PREVIOUS] == "1"
    assert place.promoter().complete() == decision
    assert place.registry.alias() == 2 and place.registry.tags(2)[PREVIOUS] == "1"
    assert place.registry.outcomes() == ["promoted"]
    assert place.reported == [decision] and not place.pending.exists()
    assert place.promoter().complete() is None
    assert place.registry.outcomes() == ["promoted"]


def test_a_run_whose_creation_was_not_answered_is_no_second_one(place: Place) -> None:
    decision = promotion()
    first, second = place.registered().write(decision), place.registered().write(decision)
    assert first == second and len(place.registry.decisions()) == 1


@pytest.mark.parametrize(("step", "when"), [("write", "before"), ("write", "after"), ("set_alias", "before")])
def test_a_hand_that_was_faster_than_the_completion_wins(place: Place, step: str, when: str) -> None:
    die(place, promotion(), step, when)
    place.registry.client.set_registered_model_alias(MODEL, CHAMPION, "3")
    assert place.promoter().complete() is None  # decide again
    assert place.registry.alias() == 3
    (run,) = place.registry.decisions()
    assert run.data.tags["decision"] == "kept" and run.data.tags["champion.after"] == "3"
    assert "the champion was set to version 3 by hand" in run.data.tags["reason"]
    assert run.data.tags["settled"] == "False"
    assert not place.pending.exists()


def test_a_version_that_was_deleted_meanwhile_is_forgotten(place: Place) -> None:
    die(place, promotion(), "write", "before")
    place.registry.client.delete_model_version(MODEL, "2")
    assert place.promoter().complete() is None
    assert place.registry.alias() == 1 and place.registry.decisions() == [] and not place.pending.exists()


def test_a_rollback_before_the_alias_has_moved_ends_the_promotion(place: Place) -> None:
    die(place, promotion(), "set_alias", "before")
    assert place.promoter().complete(promote=False) is None
    assert place.registry.alias() == 1
    assert place.registry.outcomes() == ["kept"]
    (run,) = place.registry.decisions()
    assert "a rollback came first" in run.data.tags["reason"]


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_back_and_back_again(place: Place) -> None:
    registered, promoter = place.registered(), place.promoter()
    assert promoter.carry_out(promotion()) and promoter.carry_out(promotion(before=2, after=3, challenger=3))
    assert previous_of(registered.champion(), registered) == 2
    assert promoter.carry_out(promotion(**BACK | {"before": 3, "after": 2, "challenger": 3}))
    assert previous_of(registered.champion(), registered) == 1
    assert promoter.carry_out(promotion(**BACK))
    assert place.registry.alias() == 1
    assert place.registry.outcomes() == ["promoted", "promoted", "rolled-back", "rolled-back"]
    assert [ROLLED_BACK in place.registry.tags(number) for number in (1, 2, 3)] == [False, True, True]
    assert place.registry.tags(2)[ROLLED_BACK].startswith("blurred (run ")
    with pytest.raises(ConfigError, match="version 1 of fvae-scans took no other's place"):
        previous_of(registered.champion(), registered)


def test_a_rollback_that_died_is_completed_and_not_done_twice(place: Place) -> None:
    assert place.promoter().carry_out(promotion())
    assert place.promoter().carry_out(promotion(before=2, after=3, challenger=3))
    back = promotion(**BACK | {"before": 3, "after": 2, "challenger": 3})
    die(place, back, "finish", "before")
    assert place.registry.alias() == 2
    assert place.promoter().complete(promote=False) == back
    assert place.registry.alias() == 2
    assert place.registry.outcomes() == ["promoted", "promoted", "rolled-back"]


def test_there_is_nothing_to_go_back_to(place: Place) -> None:
    registered = place.registered()
    with pytest.raises(ConfigError, match="took no other's place"):
        previous_of(registered.champion(), registered)
    with pytest.raises(ConfigError, match="has no champion"):
        previous_of(None, registered)
    assert place.promoter().carry_out(promotion())
    place.registry.client.delete_model_version(MODEL, "1")
    with pytest.raises(ConfigError, match="version 1 of fvae-scans, the champion before, was deleted"):
        previous_of(registered.champion(), registered)


# --- the registry and what is known of data sets ----------------------------------------------------------------------


def test_a_data_set_is_done_with_once_a_decision_says_so(place: Place) -> None:
    registered, promoter = place.registered(), place.promoter()
    assert registered.settled(DATA["hash"]) is None
    promoter.carry_out(promotion(**KEPT, settled=False))
    assert registered.settled(DATA["hash"]) is None
    promoter.carry_out(promotion(**KEPT))
    found = registered.settled(DATA["hash"])
    assert found is not None and (found["decision"], found["reason"]) == ("kept", "not better")
    assert registered.settled("another") is None
    assert RegisteredModel("fvae-other", NAME, place.uri, place.runs).settled(DATA["hash"]) is None


def test_what_is_not_there_is_none(place: Place) -> None:
    registered = place.registered()
    assert registered.version(9) is None
    assert registered.of_alias("challenger") is None
    assert RegisteredModel("fvae-other", "other", place.uri, place.runs).champion() is None


def test_a_decision_travels_as_json(place: Place) -> None:
    decision = promotion(reasons=("a", "b"), about={"split": "test"})
    assert Decision.from_json(decision.to_json(), "x") == decision
    with pytest.raises(ConfigError, match="x: damaged"):
        Decision.from_json(b"half", "x")
    assert promotion(figures={"a": float("nan"), "b": float("inf"), "c": 1.0}).metrics() == {"c": 1.0}
    assert len(promotion(reasons=("long " * 5000,)).tags()["reason"]) <= 4000


# --- who waits --------------------------------------------------------------------------------------------------------


def test_two_that_decide_at_once_do_it_one_after_the_other(place: Place) -> None:
    results: dict[str, str | None] = {}
    with exclusive(place.runs.child(f"retrain-{MODEL}").child("decision")):
        threads = [
            threading.Thread(target=lambda each=each: results.update({each.id: place.promoter().carry_out(each)}))
            for each in (promotion(), promotion(after=3, challenger=3))
        ]
        for thread in threads:
            thread.start()
        while len(place.said) < 2:
            for thread in threads:
                thread.join(0.05)
        assert place.registry.decisions() == []
    for thread in threads:
        thread.join(60)
    assert sorted(run_id is None for run_id in results.values()) == [False, True]
    assert place.registry.outcomes() == ["promoted"]
    assert any("Waiting for another decision about fvae-scans: " in line for line in place.said)


def test_waiting_has_an_end(place: Place) -> None:
    with (
        exclusive(place.runs.child(f"retrain-{MODEL}").child("decision")),
        pytest.raises(StorageError, match="another decision about fvae-scans still runs after .* of waiting"),
    ):
        place.promoter(wait_seconds=0.2).carry_out(promotion())
    assert place.registry.alias() == 1
