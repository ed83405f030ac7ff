"""Any source by its name or place, as a data set that a search can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvae import ConfigError
from fvae.data.images import ImageDataset
from fvae.data.streaming import StreamedDataset
from pipelines.data.datasets import load_dataset
from tests.pipelines.data.bad_inputs import mnist
from tests.pipelines.data.test_ingest import make, pixels, tree

pytestmark = pytest.mark.core


def test_the_embedded_sets() -> None:
    digits = load_dataset("digits")
    assert (digits.shape, digits.bins) == ((1, 8, 8), 17)
    assert digits.counts() == {"train": 1257, "val": 180, "test": 360}
    assert digits.content_hash() == "6e488d75142b8351"  # the figures of earlier searches rest on this split
    photos = load_dataset("photos")
    assert (photos.shape, photos.bins) == ((3, 16, 16), 256)
    assert sum(photos.counts().values()) > 1900


def test_what_does_not_fit_in_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tree(tmp_path / "mine", pixels(40)), tmp_path / "set")
    whole = load_dataset(str(tmp_path / "set"))
    assert isinstance(whole, ImageDataset)
    streamed = load_dataset(str(tmp_path / "set"), "always")
    assert isinstance(streamed, StreamedDataset)
    assert (streamed.shape, streamed.counts(), streamed.content_hash()) == (
        whole.shape,
        whole.counts(),
        whole.content_hash(),
    )
    monkeypatch.setattr("pipelines.data.datasets.MEMORY_SHARE", 0.0)
    assert isinstance(load_dataset(str(tmp_path / "set")), StreamedDataset)
    assert isinstance(load_dataset(str(tmp_path / "set"), "never"), ImageDataset)


def test_one_bad_file_is_too_many_for_a_folder_taken_directly(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(120))
    (folder / "bad.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"1 of 121 files.*bad\.png.*python -m pipelines\.ingest .* DEST"):
        load_dataset(str(folder))


def test_decisions_about_a_folder_taken_directly_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    load_dataset(str(tree(tmp_path / "mine", pixels(40))), say=said.append)
    assert any("val split: 4 images" in line for line in said)


def test_a_folder_taken_directly_and_its_data_set_are_the_same(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    make(folder, tmp_path / "set", name="mine")
    direct, ingested = load_dataset(str(folder)), load_dataset(str(tmp_path / "set"))
    assert (direct.name, direct.shape, direct.counts()) == (ingested.name, ingested.shape, ingested.counts())
    assert all((direct.splits()[split] == images).all() for split, images in ingested.splits().items())


def test_the_mnist_files(tmp_path: Path) -> None:
    loaded = load_dataset(str(mnist(tmp_path / "m")))
    assert (loaded.name, loaded.shape, loaded.bins) == ("m", (1, 8, 8), 256)
    assert loaded.counts()["test"] == 30


def test_pixels_that_do_not_hash_to_the_manifest_are_refused(tmp_path: Path) -> None:
    make(tree(tmp_path / "mine", pixels(40)), tmp_path / "set")
    manifest = tmp_path / "set" / "manifest.json"
    text = manifest.read_text()
    start = text.index('"hash": "') + 9
    manifest.write_text(text[:start] + "0" * 16 + text[start + 16 :])
    with pytest.raises(ConfigError, match="its manifest says 0000000000000000; ingest it again"):
        load_dataset(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("", "empty"),
        ("nowhere/at-all", "no such file or folder"),
        ("x" * 5000, "cannot be read|no such file"),
        ("s3://UPPER/x", "UPPER"),
        ("ftp://host/x", "ftp://"),
    ],
)
def test_a_place_that_is_none_is_said_in_one_line(location: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load_dataset(location)
    assert len(str(error.value).splitlines()) == 1


def test_streaming_needs_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"make one with python -m pipelines\.ingest"):
        load_dataset("digits", "always")


def test_a_question_names_the_command_that_has_the_option(tmp_path: Path) -> None:
    source = tree(tmp_path / "train", pixels(40)).parent
    (source / "extra").mkdir()
    (source / "extra" / "0.png").write_bytes(next((source / "train").rglob("*.png")).read_bytes())
    with pytest.raises(ConfigError, match=r"--splits none\): options of python -m pipelines.ingest .* DEST") as error:
        load_dataset(str(source))
    assert len(str(error.value).splitlines()) == 1
