"""Every kind of input that people have: what becomes of it, to the pixel, or the one line that asks."""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import numpy as np
import pytest

from fvae.data.manifest import SPLITS, Manifest
from fvae.data.shards import load_images
from pipelines.cli import command_line
from pipelines.data.settings import IngestSettings
from pipelines.ingest import main
from pipelines.storage import open_storage
from tests.pipelines.data.input_cases import CASES, Case

pytestmark = pytest.mark.core


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.given}" for case in CASES])
def test_an_input_of_this_kind_ends_right(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *options = case.build(tmp_path)
    arguments = ["pipelines.ingest", str(tmp_path / source), str(tmp_path / "out"), "--processes", "1", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        command_line.run(main, IngestSettings)
    captured = capsys.readouterr()
    if case.right.counts is None:
        assert exit_.value.code == 2, captured
        assert len(captured.err.splitlines()) == 1
        assert case.right.said in captured.err
        assert not (tmp_path / "out" / "manifest.json").exists()
        return
    assert exit_.value.code == 0, captured
    assert case.right.said in captured.out
    assert len(captured.out.splitlines()) <= 24
    manifest = Manifest.from_json((tmp_path / "out" / "manifest.json").read_text())
    assert tuple(manifest.counts.values()) == case.right.counts
    assert (manifest.classes, manifest.bins) == (case.right.classes, case.right.bins)
    if len(case.right.pixels):
        storage = open_storage(tmp_path / "out")
        found = [image for split in SPLITS for image in load_images(manifest, split, storage.read)]
        assert multiset(found) == multiset([channels_first(image) for image in case.right.pixels])


def channels_first(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint8)[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def multiset(images: list[np.ndarray]) -> collections.Counter[bytes]:
    return collections.Counter(np.ascontiguousarray(image).tobytes() for image in images)
