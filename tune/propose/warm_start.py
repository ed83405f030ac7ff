"""``--warm-start``: learn from the trials of an earlier search.

- **The same images and budget** (the data set's hash; epochs, batch size, precision): the earlier trials are
  observations. They are no trials of this search and never on its fronts. Their configs are not proposed again, except
  those of the earlier fronts, which are trained first: the new map holds figures of its own.
- **Other images or another budget**: bits/dim do not compare, but what was good is likely to be good again. The earlier
  fronts' configs, brought into this search's space, are trained first and take the place of its initial designs.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from fvae.config import ConfigError, require
from fvae.flops import parameters_and_flops
from pipelines.storage import Storage, open_storage
from pipelines.storage.json_objects import read_json
from tune.propose.candidates import Candidate, SpaceCandidates, point_of
from tune.records.ledger import Ledger, TrialRecord
from tune.records.search_folder import FORMAT, SEARCH
from tune.space import suggestion_of
from tune.stats.pareto import complete_trials, fronts

MLFLOW = "mlflow:"
NAME = re.compile(r"\w[\w.-]*")
"""Name of a run, as ``--name`` takes it; anything else is a folder or a URI."""


class TrainingSetup(NamedTuple):
    """Images and training budget, which must be the same for bits/dim to compare."""

    hash: str
    """Hash of the data set's pixels."""
    epochs: int
    batch_size: int
    precision: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What was taken from earlier trials."""

    observed: tuple[TrialRecord, ...]
    """Ended trials that compare, for the proposer; their ids name where they come from."""
    fronts: dict[str, list[Candidate]]
    """What to train first, by family, by ascending size."""
    summary: str
    """One line for the user."""


def warm_start(
    location: str,
    *,
    storage: Storage,
    run: Storage,
    dataset_hash: str,
    source: SpaceCandidates,
    families: Sequence[str],
) -> WarmStart:
    """Read earlier trials.

    Args:
        location: a search's name in ``storage``; the folder or ``s3://`` URI of its run; ``mlflow:EXPERIMENT``.
        storage: of all runs.
        run: the new search's own.
        dataset_hash: of its images.
        source: its space and training.
        families: that are searched.

    Raises ``ConfigError``, one line, where there is no such run, nothing in it, or nothing that the space holds;
    ``StorageError`` where a store or MLflow does not answer.
    """
    try:
        if location.startswith(MLFLOW):
            groups = _from_mlflow(location.removeprefix(MLFLOW), storage, source)
        else:
            groups = _from_search(location, storage, run)
        return _taken(location, groups, _setup_of(source.train, dataset_hash), source, families)
    except ConfigError as error:
        raise ConfigError(f"--warm-start {location}: {error}") from error


Groups = dict[TrainingSetup, list[TrialRecord]]
"""Ended trials by what their bits/dim compare within."""


def _from_search(location: str, storage: Storage, run: Storage) -> Groups:
    earlier = storage.child(location) if NAME.fullmatch(location) else open_storage(location)
    require(earlier.uri != run.uri, "that is this search itself; name another, or leave the option out")
    try:
        search = read_json(earlier, SEARCH)
    except FileNotFoundError:
        raise ConfigError(
            f"no search in {earlier.uri}; name one, its folder or s3:// URI, or mlflow:EXPERIMENT"
        ) from None
    require(search.get("format") == FORMAT, "a search of another version of this software")
    ended = [record for record in Ledger(earlier).ended() if record.replicate_of is None]
    require(len(ended) > 0, f"no trial has ended in {earlier.uri}")
    groups: Groups = {}
    for record in ended:
        renamed = dataclasses.replace(record, id=f"{record.id}@{location}")
        groups.setdefault(_setup_of(record.train, search["dataset"]["hash"]), []).append(renamed)
    return groups


def _from_mlflow(experiment: str, storage: Storage, source: SpaceCandidates) -> Groups:
    from pipelines.tracking.registry import finished_runs, tracking_uri_of  # MLflow takes a second to import

    groups: Groups = {}
    seen: set[Any] = set()
    for run in finished_runs(experiment, tracking_uri_of(storage)):
        train = run.train.to_dict()
        budget = _setup_of(train, run.data.get("hash", ""))
        known = (budget, run.model, dataclasses.replace(run.train, seed=0))
        if known in seen:
            continue  # another seed of it
        seen.add(known)
        params, flops = parameters_and_flops(run.model)
        record = TrialRecord(
            id=f"{len(seen) - 1:04d}-{run.model.family}@{run.run_id}",
            family=run.model.family,
            config=run.model.to_dict(),
            train=train,
            params=params,
            flops_per_image=flops,
            suggestion=suggestion_of(run.model, train, source.space),
            status="complete",
            val_bpd=run.val_bpd,
        )
        groups.setdefault(budget, []).append(record)
    require(len(groups) > 0, f"no finished trial or training in experiment {experiment}")
    return groups


def _taken(
    location: str, groups: Groups, mine: TrainingSetup, source: SpaceCandidates, families: Sequence[str]
) -> WarmStart:
    """From trials that compare where there are any, else from the largest group that compares within itself."""
    same = mine in groups
    records = groups[mine] if same else max(groups.values(), key=lambda each: (len(complete_trials(each)), len(each)))
    theirs = next(budget for budget, each in groups.items() if each is records)
    models = {family: _front_models(records, family, source) for family in families}
    observed = tuple(record for record in records if same and record.family in families and _inside(record, source))
    if not observed and not any(models.values()):
        raise ConfigError(
            f"of its {len(records)} trials none is within this search's space and of a family that is searched here "
            f"({', '.join(families)})"
        )
    count = sum(map(len, models.values()))
    first = f"{count} {'model' if count == 1 else 'models'} of its fronts {'is' if count == 1 else 'are'} tried first"
    if same:
        states = Counter(record.status for record in observed)
        observations = f"{len(observed)} trials of the same images and budget observed ({states['complete']} complete)"
        summary = f"Warm start from {location}: {observations}, {first}"
    else:
        summary = f"Warm start from {location}: {_difference(mine, theirs)}, so its bits/dim do not compare; {first}"
    return WarmStart(observed=observed, fronts=models, summary=summary)


def _front_models(records: Sequence[TrialRecord], family: str, source: SpaceCandidates) -> list[Candidate]:
    trials = {record.id: record for record in records}
    models: dict[str, Candidate] = {}
    for trial_id in fronts(records)[family]:
        try:
            candidate = source.near(family, point_of(trials[trial_id], source.space, source.images))
        except ConfigError:
            continue  # no possible model for these images, or a choice that this space lacks
        models.setdefault(candidate.key, candidate)
    return sorted(models.values(), key=lambda candidate: candidate.params)


def _inside(record: TrialRecord, source: SpaceCandidates) -> bool:
    try:
        source.at(record.family, point_of(record, source.space, source.images))
    except ConfigError:
        return False
    return True


def _setup_of(train: dict[str, Any], dataset_hash: str) -> TrainingSetup:
    return TrainingSetup(dataset_hash, train["epochs"], train["batch_size"], train["precision"])


def _difference(mine: TrainingSetup, theirs: TrainingSetup) -> str:
    """What differs, in a few words."""
    if mine.hash != theirs.hash:
        return "other images"
    name = next(name for name in ("epochs", "batch_size", "precision") if getattr(mine, name) != getattr(theirs, name))
    return f"--{name.replace('_', '-')} {getattr(theirs, name)} there, {getattr(mine, name)} here"
