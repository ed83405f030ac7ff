"""Identity of a search or a training in MLflow: kept with its files, so that its runs are found again.

A folder that was moved keeps its identity; a copy gets one of its own where its original is still there.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from fvae.config import ConfigError
from pipelines.storage import Storage, StorageError, open_storage

_IDENTITY = "tracking.json"


def run_identity(storage: Storage, name: str, *, own_database: bool) -> str:
    """Return the identity by which MLflow's runs of ``name`` are found: made once, kept and deleted with the files.

    The identity names its place. A folder that was moved keeps its identity; a copy whose original is still there is
    another search or training and gets an identity of its own, so that the two never write to the same runs.

    Args:
        storage: the storage of all runs.
        name: the name of the run's folder there.
        own_database: MLflow's database lies beside the runs: a copy of all of them has a database of its own, and
            only a copy under another name shares one with its original.
    """
    place = storage.child(name)
    here = {"storage": storage.uri, "name": name}
    try:
        content = place.read(_IDENTITY)
    except FileNotFoundError:
        place.create(_IDENTITY, json.dumps({"search_id": uuid.uuid4().hex, **here}).encode())
        content = place.read(_IDENTITY)
    known = _parsed(content, place)
    identity = str(known["search_id"])
    if not here.keys() <= known.keys():  # of an earlier version; from now on a copy differs from its original
        if _a_neighbour_has(place, identity):
            identity = uuid.uuid4().hex  # either may be the original, and the other keeps the runs
        place.write(_IDENTITY, json.dumps({"search_id": identity, **here}).encode())
        return identity
    was_in, was_called = str(known["storage"]), str(known["name"])
    if was_called == name and (own_database or was_in == storage.uri):
        return identity
    original = (storage if own_database else open_storage(was_in)).child(was_called)
    if _is_another(original, place) and _has_identity(original, identity):
        identity = uuid.uuid4().hex
    place.write(_IDENTITY, json.dumps({"search_id": identity, **here}).encode())
    return identity


def _is_another(original: Storage, place: Storage) -> bool:
    """Whether two places are two, and not one under two names."""
    first, second = original.local_path, place.local_path
    if first is None or second is None:
        return original.uri != place.uri
    return first.exists() and not first.samefile(second)


def _a_neighbour_has(place: Storage, identity: str) -> bool:
    """Whether a folder beside ``place`` has its identity. In S3, where that takes a listing of all, none is found."""
    if place.local_path is None:
        return False
    beside = [
        path for path in place.local_path.parent.iterdir() if path.is_dir() and path.name != place.local_path.name
    ]
    return any(_has_identity(open_storage(path), identity) for path in beside)


def _has_identity(place: Storage, identity: str) -> bool:
    try:
        return bool(_parsed(place.read(_IDENTITY), place)["search_id"] == identity)
    except (FileNotFoundError, StorageError, ConfigError):
        return False


def _parsed(content: bytes, place: Storage) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(content)
        known["search_id"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{place.uri}/{_IDENTITY}: damaged; remove it: MLflow gets new runs then") from error
    return known
