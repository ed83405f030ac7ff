"""Promotion: decisions are carried out one at a time, each completely, with the alias 'champion' moved last.

    STORAGE/retrain-fvae-NAME/decision/.lock            held for a few seconds
    STORAGE/retrain-fvae-NAME/decision/pending.json     the decision that is being carried out; removed afterwards

A process that dies on the way leaves ``pending.json``, and the next one completes it: the run in MLflow is found again
by the decision's id, so there is one. A rollback waits for no training, only for this.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from fvae.config import ConfigError
from pipelines.retraining.decision import Decision
from pipelines.retraining.lease_wait import waited_for
from pipelines.retraining.registered_model import CHAMPION, PREVIOUS, ROLLED_BACK, RegisteredModel, Version, put
from pipelines.storage import Storage
from pipelines.storage.lease import Lease
from pipelines.tracking.database import WorkingCopy

PENDING = "pending.json"


class Promoter:
    """Carries out decisions. Methods raise ``StorageError`` where the store or MLflow fails; the next start completes
    what was begun."""

    def __init__(
        self,
        place: Storage,
        registered: RegisteredModel,
        database: WorkingCopy | None,
        *,
        wait_seconds: float,
        say: Callable[[str], None],
        report: Callable[[Decision], None],
    ) -> None:
        """``report`` is called at least once with each decision that is carried out."""
        self._place = place.child("decision")
        self._registered, self._database = registered, database
        self._wait_seconds, self._say, self._report = wait_seconds, say, report

    def carry_out(self, decision: Decision, check: Callable[[], None] = lambda: None) -> str | None:
        """Carry out a decision; returns its run's id, or None where the champion is no longer ``decision.before``.

        ``check`` is called before anything is done, and may raise.
        """
        with self._held() as lease:
            check()
            if _number(self._registered.champion()) != decision.before:
                return None
            self._place.write(PENDING, decision.to_json())
            return self._do(decision, lease)

    def complete(self, *, promote: bool = True) -> Decision | None:
        """Complete the decision of a process that died; returns it, or None where there was none.

        None too where it can no longer be carried out; its run is ``kept`` then. That is so where the champion was set
        by hand meanwhile and, if the alias has not moved yet, without ``promote``.
        """
        with self._held() as lease:
            self._place.clean_up()
            try:
                content = self._place.read(PENDING)
            except FileNotFoundError:
                return None
            decision = Decision.from_json(content, f"{self._place.uri}/{PENDING}")
            now = self._as_it_is_now(decision, promote)
            if now is None:
                self._place.delete(PENDING)
                return None
            self._say(f"Completing a decision that was interrupted: {now.text()}")
            self._do(now, lease)
            return decision if now is decision else None

    def pending(self) -> Decision | None:
        """The decision of a process that died or is at work; None where there is none. Nothing is changed."""
        try:
            return Decision.from_json(self._place.read(PENDING), f"{self._place.uri}/{PENDING}")
        except FileNotFoundError:
            return None

    def _as_it_is_now(self, decision: Decision, promote: bool) -> Decision | None:
        """The decision as it can be carried out now; None where its version was deleted."""
        now = _number(self._registered.champion())
        if not decision.moves or now == decision.after:
            return decision
        assert decision.after is not None
        if self._registered.version(decision.after) is None:
            return None
        if now == decision.before and promote:
            return decision
        why = "a rollback came first" if now == decision.before else f"the champion was set to {_words(now)} by hand"
        return dataclasses.replace(
            decision,
            outcome="kept",
            before=now,
            after=now,
            settled=now == decision.before,
            reasons=(f"{why}, before {decision.headline()} could be carried out",),
        )

    def _do(self, decision: Decision, lease: Lease) -> str:
        registered = self._registered
        run_id = registered.write(decision)
        if decision.moves:
            assert decision.after is not None
            if decision.outcome == "rolled-back":
                assert decision.before is not None
                registered.set_tag(decision.before, ROLLED_BACK, f"{'; '.join(decision.reasons)} (run {run_id})")
            elif decision.before is not None:
                registered.set_tag(decision.after, PREVIOUS, str(decision.before))
            lease.check()  # another process may hold it by now, if the store took no renewal
            registered.set_alias(CHAMPION, decision.after)
        registered.finish(run_id)
        put(self._database)
        self._report(decision)
        self._place.delete(PENDING)
        return run_id

    @contextlib.contextmanager
    def _held(self) -> Iterator[Lease]:
        what = f"another decision about {self._registered.name}"
        with waited_for(self._place, what, self._wait_seconds, self._say) as lease:
            yield lease


def previous_of(champion: Version | None, registered: RegisteredModel) -> int:
    """The version that a rollback puts back into service. Raises ``ConfigError`` where there is none."""
    name = registered.name
    if champion is None:
        raise ConfigError(f"--rollback: {name} has no champion; set the alias 'champion' in MLflow, or train a model")
    tag = champion.tags.get(PREVIOUS, "")
    if not tag.isdecimal():
        raise ConfigError(
            f"--rollback: version {champion.number} of {name} took no other's place; set the alias 'champion' "
            "in MLflow to the version that you want"
        )
    if registered.version(int(tag)) is None:
        raise ConfigError(f"--rollback: version {tag} of {name}, the champion before, was deleted in MLflow")
    return int(tag)


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number


def _words(number: int | None) -> str:
    return "none" if number is None else f"version {number}"
