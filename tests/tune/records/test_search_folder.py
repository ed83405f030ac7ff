"""A run's folder is always the same search: same images, same order of them, same budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fvae import ConfigError
from pipelines.cli.progress import Steps
from pipelines.data.datasets import load_dataset
from pipelines.data.ingest import ingest
from pipelines.data.settings import IngestSettings
from pipelines.storage import open_storage
from tests.commands import call
from tune.records.search_folder import open_search, validation_samples
from tune.search_run import main
from tune.settings import SearchSettings

pytestmark = pytest.mark.core


def test_streamed_and_in_memory_do_not_mix(tmp_path: Path) -> None:
    settings = IngestSettings(source="digits", dest=str(tmp_path / "set"))
    ingest(settings, lambda line: None, Steps(Console(quiet=True)))
    whole, streamed = (load_dataset(str(tmp_path / "set"), mode) for mode in ("never", "always"))
    assert whole.content_hash() == streamed.content_hash()
    for first, other, option in ((whole, streamed, "never"), (streamed, whole, "always")):
        run = open_storage(tmp_path / option)
        search = open_search(run, SearchSettings(), first)
        assert open_search(run, SearchSettings(), first) == search
        with pytest.raises(ConfigError, match=f"give --streaming {option} or another --name"):
            open_search(run, SearchSettings(), other)


def test_a_search_of_an_earlier_version_is_not_extended(tmp_path: Path) -> None:
    run = open_storage(tmp_path)
    run.write("search.json", b'{"format": 1}')
    with pytest.raises(ConfigError, match="a search of another version of this software"):
        open_search(run, SearchSettings(), load_dataset("digits"))


def test_a_search_validates_all_its_trials_alike(tmp_path: Path) -> None:
    """One that was begun when each validation image had one noise sample goes on so."""
    run, digits = open_storage(tmp_path), load_dataset("digits")
    search = open_search(run, SearchSettings(), digits)
    assert search["validation_samples"] == 3
    del search["validation_samples"]
    run.write("search.json", json.dumps(search).encode())
    assert open_search(run, SearchSettings(), digits)["validation_samples"] == 1


def test_a_dry_run_refuses_what_the_command_would(tmp_path: Path) -> None:
    runs = open_storage(tmp_path)
    open_search(runs.child("mine"), SearchSettings(batch_size=64), load_dataset("digits"))
    for options in ((), ("--dry-run",)):
        done = call(main, SearchSettings, "--storage", str(tmp_path), "--name", "mine", "--batch-size", "8", *options)
        assert done.status == 2 and "was searched with --batch-size 64, not 8" in done.err
    done = call(main, SearchSettings, "--storage", str(tmp_path), "--name", "new", "--dry-run")
    assert done.status == 0 and not (tmp_path / "new/search.json").exists()


@pytest.mark.parametrize(
    ("train", "val", "samples"),
    [(1257, 180, 3), (50_000, 180, 4), (50_000, 5_000, 1), (100, 100, 1), (900, 600, 1), (10, 1, 4)],
)
def test_few_validation_images_have_several_noise_samples(train: int, val: int, samples: int) -> None:
    assert validation_samples({"train": train, "val": val, "test": 1}) == samples
