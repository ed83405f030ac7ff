"""How often test images have decided: what is kept of it, and what is said where a gain may be chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvae.config import ConfigError
from pipelines.data.datasets import load_dataset
from pipelines.retraining import job
from pipelines.retraining.champion_rule import compare
from pipelines.retraining.holdout_reuse import (
    Look,
    Looks,
    explained_by_looking,
    image_hashes,
    in_part,
    overlap,
    require_parts,
    sketch,
)
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import StorageError, open_storage

pytestmark = pytest.mark.core

IMAGES = np.random.default_rng(0).integers(0, 256, (2000, 1, 4, 4), dtype=np.uint8)
HASHES = image_hashes(IMAGES)


def look(hashes: np.ndarray, pair: str = "a-1", part: int = 0, parts: int = 1) -> Look:
    return Look(pair=pair, time=0.0, part=part, parts=parts, images=len(hashes), sketch=sketch(hashes))


@settings(deadline=None, max_examples=50)
@given(st.integers(50, 1000), st.floats(0, 1), st.integers(50, 1000))
def test_the_share_that_was_read_before_is_known(count: int, share: float, earlier: int) -> None:
    common = min(int(share * count), earlier)
    mine = HASHES[:count]
    theirs = np.concatenate([HASHES[:common], HASHES[1000 : 1000 + earlier - common]])
    assert overlap(look(mine), look(theirs)) == pytest.approx(common / count, abs=0.3)
    assert overlap(look(mine), look(mine)) == pytest.approx(1)
    assert overlap(look(mine), look(HASHES[1000:])) == 0


def test_looks_add_up_and_survive(tmp_path: Path) -> None:
    place = open_storage(tmp_path)
    counts = [Looks(place).add(look(HASHES, f"challenger-{number}")) for number in range(4)]
    assert counts == pytest.approx([1, 2, 3, 4])
    assert Looks(place).add(look(HASHES, "challenger-3")) == pytest.approx(4)  # an interrupted job that looks again
    assert Looks(None).add(look(HASHES)) == 1


def test_a_look_is_kept_only_by_who_holds_the_place(tmp_path: Path) -> None:
    def lost() -> None:
        raise StorageError("the lock was lost")

    with pytest.raises(StorageError):
        Looks(open_storage(tmp_path), lost).add(look(HASHES))
    assert list(tmp_path.iterdir()) == []


def test_parts_take_turns_and_are_apart(tmp_path: Path) -> None:
    place, parts = open_storage(tmp_path), 3
    chosen, counts = [], []
    for number in range(6):
        looks = Looks(place)
        part = looks.turn(f"pair-{number}", parts)
        mask = in_part(HASHES, part, parts)
        counts.append(looks.add(look(HASHES[mask], f"pair-{number}", part, parts)))
        assert Looks(place).turn(f"pair-{number}", parts) == part
        chosen.append(mask)
    assert (np.sum(chosen[:3], axis=0) == 1).all()  # each image in one part
    assert (chosen[0] == chosen[3]).all()
    assert counts == pytest.approx([1, 1, 1, 2, 2, 2])
    grown = image_hashes(np.concatenate([IMAGES, 255 - IMAGES]))
    assert (in_part(grown, 1, parts)[: len(IMAGES)] == in_part(HASHES, 1, parts)).all()


def test_a_gain_that_many_looks_explain_is_said() -> None:
    rng = np.random.default_rng(1)
    champion = rng.normal(3, 0.3, (1, 400))
    noise = rng.normal(0, 0.1, (1, 400))
    small = compare(champion - 0.012 + noise - noise.mean(), champion)
    large = compare(champion - 0.2 + rng.normal(0, 0.1, (1, 400)), champion)
    worse = compare(champion + 0.2, champion)
    assert small.better_by(0) and large.better_by(0)
    assert explained_by_looking(small, 1, 0) is None
    line = explained_by_looking(small, 30, 0)
    assert line is not None and "have decided about 30 times" in line and "--rotate N" in line and "\n" not in line
    assert explained_by_looking(large, 30, 0) is None
    assert explained_by_looking(worse, 30, 0) is None


def test_with_as_many_looks_as_nights_chance_is_warned_of() -> None:
    """Equal models, a look a night: of the gains that pass at one look, hardly any passes without the warning."""
    rng = np.random.default_rng(2)
    passed = unwarned = 0
    for _ in range(40):
        champion = rng.normal(3, 0.3, (1, 50))
        for night in range(1, 101):
            found = compare(champion + rng.normal(0, 0.1, (1, 50)), champion)
            if found.better_by(0):
                passed += 1
                unwarned += explained_by_looking(found, night, 0) is None
    assert passed > 60
    assert unwarned < passed / 3


@settings(deadline=None)
@given(images=st.integers(1, 400), parts=st.integers(1, 60), seed=st.integers(0, 9))
def test_parts_that_are_too_small_are_refused_with_a_number_that_works(images: int, parts: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, images, dtype=np.uint64)
    least = min(int(in_part(hashes, part, parts).sum()) for part in range(parts))
    if parts == 1 or least >= 10:
        require_parts(hashes, parts)
        return
    with pytest.raises(ConfigError, match=f"^--rotate={parts}: .* has {least}, ") as failure:
        require_parts(hashes, parts)
    works = int(str(failure.value).rpartition("--rotate=")[2])
    assert 1 <= works < parts
    require_parts(hashes, works)


def test_parts_are_looked_at_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "train", lambda *_: pytest.fail("trained"))
    night = RetrainSettings(model="fvae-digits", dataset="digits", rotate=500, storage=str(tmp_path))
    waiting = job.Job.__new__(job.Job)
    waiting._settings, waiting._trained, waiting._dataset = night, None, load_dataset("digits")
    with pytest.raises(ConfigError, match="--rotate=500: "):
        waiting._decide(None)


@pytest.mark.parametrize("content", ["{}", '{"looks": 3}', '{"looks": [3]}', "[]", "{"])
def test_a_damaged_ledger_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "looks.json").write_text(content)
    with pytest.raises(ConfigError, match=r"looks\.json: damaged, .*; restore it or remove it$"):
        Looks(open_storage(tmp_path))
