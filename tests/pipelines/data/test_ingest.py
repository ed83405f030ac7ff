"""Ingest from end to end: real files in, a data set out; the same pixels always give the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fvae import ConfigError
from fvae.data.manifest import SPLITS, Manifest
from fvae.data.shards import load_images
from pipelines.cli import command_line
from pipelines.cli.progress import Steps
from pipelines.data import ingest as ingest_module
from pipelines.data import writer as dataset_writer
from pipelines.data.datasets import load_dataset
from pipelines.data.ingest import class_line, ingest, summary
from pipelines.data.preparation import prepare
from pipelines.data.settings import IngestSettings, bad_limit
from pipelines.data.sources import open_source
from pipelines.data.spool import Spool
from pipelines.ingest import main
from pipelines.storage import StorageError, open_storage
from pipelines.storage.lease import Lease
from tests.pipelines.data.bad_inputs import CASES, Case, idx
from tests.pipelines.dying import Death, Died, die_at

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[3]


def make(source: Path | str, dest: Path | str, **options: object) -> tuple[Manifest, list[str]]:
    """The manifest, and what was said."""
    said: list[str] = []
    settings = IngestSettings(source=str(source), dest=str(dest), **options)  # type: ignore[arg-type]
    manifest = ingest(settings, said.append, Steps(Console(quiet=True)))
    return manifest, said


def pixels(count: int, channels: int = 3, side: int = 8, seed: int = 0) -> np.ndarray:
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def tree(folder: Path, images: np.ndarray, test: int = 0) -> Path:
    """The images as PNGs in class folders; the last ``test`` of them below test/, the others below train/."""
    for number, image in enumerate(images):
        split = ("test/" if number >= len(images) - test else "train/") if test else ""
        path = folder / f"{split}class{number % 2}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    """The shards' bytes by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def loaded(dest: Path | str) -> dict[str, np.ndarray]:
    storage = open_storage(dest)
    manifest = Manifest.from_json(storage.read("manifest.json"))
    return {split: load_images(manifest, split, storage.read) for split in SPLITS}


# --- the same pixels, the same bytes ------------------------------------------------------------------------


def test_packing_order_and_file_format_change_nothing(tmp_path: Path) -> None:
    images = pixels(60)
    folder = tree(tmp_path / "mine", images, test=10)
    first, _ = make(folder, tmp_path / "a")
    paths = sorted(path for path in folder.rglob("*.png"))
    random.Random(1).shuffle(paths)
    with tarfile.open(tmp_path / "mine.tar.gz", "w:gz") as tar, zipfile.ZipFile(tmp_path / "mine.zip", "w") as zipped:
        for path in paths:
            tar.add(path, arcname=str(path.relative_to(tmp_path)))
            zipped.write(path, arcname=str(path.relative_to(tmp_path)))
    for path in paths:  # the same pixels in another format
        with Image.open(path) as image:
            other = tmp_path / "bmp" / path.relative_to(folder).with_suffix(".bmp")
            other.parent.mkdir(parents=True, exist_ok=True)
            image.save(other)
    for name, source in (("b", "mine.tar.gz"), ("c", "mine.zip"), ("d", "bmp")):
        manifest, _ = make(tmp_path / source, tmp_path / name)
        assert (manifest.hash, manifest.shards) == (first.hash, first.shards)
        assert stored(tmp_path / name) == stored(tmp_path / "a")
    assert first.classes == ("class0", "class1")
    assert first.counts == {"train": 45, "val": 5, "test": 10}


def test_mnist_files_and_pngs_of_the_same_pixels_have_one_hash(tmp_path: Path) -> None:
    train, test = pixels(40, 1), pixels(10, 1, seed=1)
    (tmp_path / "idx").mkdir()
    for name, images in (("train", train), ("t10k", test)):
        (tmp_path / "idx" / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    tree(tmp_path / "png", np.concatenate((train, test)), test=10)
    first, _ = make(tmp_path / "idx", tmp_path / "a")
    second, _ = make(tmp_path / "png", tmp_path / "b")
    assert first.hash == second.hash
    assert first.counts == second.counts == {"train": 36, "val": 4, "test": 10}


def test_every_image_arrives_to_the_pixel_with_its_label(tmp_path: Path) -> None:
    images = pixels(50)
    make(tree(tmp_path / "mine", images), tmp_path / "set")
    found = np.concatenate(list(loaded(tmp_path / "set").values()))
    assert sorted(map(bytes, found.transpose(0, 2, 3, 1))) == sorted(map(bytes, images))
    assert load_dataset(str(tmp_path / "set")).content_hash() == load_dataset(str(tmp_path / "mine")).content_hash()


def test_many_shards_hold_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(tmp_path / "mine", pixels(60))
    one, _ = make(folder, tmp_path / "one")
    monkeypatch.setattr(dataset_writer, "SHARD_BYTES", 5 * 8 * 8 * 3)
    many, _ = make(folder, tmp_path / "many")
    assert (len(one.shards), len(many.shards)) == (3, 9 + 2 + 3)
    assert one.hash == many.hash
    assert all((loaded(tmp_path / "one")[s] == loaded(tmp_path / "many")[s]).all() for s in SPLITS)


# --- what happens to images ---------------------------------------------------------------------------------


def test_conversions_are_counted_and_said(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    grey = pixels(1, 1)[0]
    (folder / "grey.png").write_bytes(png(grey))
    half = Image.fromarray(pixels(1, seed=5)[0]).convert("RGBA")
    half.putalpha(128)
    half.save(folder / "half.png")
    Image.fromarray(pixels(1, seed=6)[0]).convert("P").save(folder / "palette.png")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(folder / "deep.png")
    manifest, _ = make(folder, tmp_path / "set")
    said = "\n".join(manifest.decisions)
    for part in ("1 image with transparency", "1 image with a palette", "1 image of 16 bits", "2 grey images"):
        assert part in said, said
    found = {bytes(image) for split in loaded(tmp_path / "set").values() for image in split}
    assert bytes(np.stack([grey] * 3)) in found
    dataset = load_dataset(str(tmp_path / "set"))
    assert dataset.content_hash() == manifest.hash  # of the pixels as they are stored


def test_size_crops_and_averages(tmp_path: Path) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 2:6] = 100
    image[:, 6:10] = 200
    for number in range(20):
        image[0, 0] = number  # outside the square
        (tmp_path / "mine").mkdir(exist_ok=True)
        image[:, 2:6] = 80 + number
        (tmp_path / "mine" / f"{number}.png").write_bytes(png(image))
    manifest, _ = make(tmp_path / "mine", tmp_path / "set", size=2)
    assert manifest.shape == (3, 2, 2)
    found = np.concatenate(list(loaded(tmp_path / "set").values()))
    assert sorted(found[:, 0, 0, 0].tolist()) == list(range(80, 100))
    assert (found[:, :, :, 1] == 200).all()
    assert any("lossy" in line for line in manifest.decisions)


def test_leaks_are_dropped_from_train_with_their_count(tmp_path: Path) -> None:
    images = pixels(40)
    folder = tree(tmp_path / "mine", np.concatenate((images, images[:3])), test=3)
    manifest, _ = make(folder, tmp_path / "set")
    assert manifest.duplicates_dropped == 3
    assert manifest.counts == {"train": 33, "val": 4, "test": 3}
    assert "3 images dropped from train: exact duplicates of test images (leakage)" in manifest.decisions


# --- bad files ----------------------------------------------------------------------------------------------


def with_bad(folder: Path, good: int = 40) -> Path:
    tree(folder, pixels(good))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"not an image")
    (folder / "cut.png").write_bytes(png(pixels(1)[0])[:100])
    (folder / "wide.png").write_bytes(png(np.zeros((8, 16, 3), np.uint8)))
    return folder


def test_bad_files_are_reported_and_max_bad_decides(tmp_path: Path) -> None:
    folder = with_bad(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"4 of 44 files cannot be used: .*; more than --max-bad 1%"):
        make(folder, tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").iterdir() if path.name != ".lock"] == ["bad-files-refused.csv"]
    with pytest.raises(ConfigError, match="more than --max-bad 3"):
        make(folder, tmp_path / "set", max_bad="3")
    manifest, _ = make(folder, tmp_path / "set", max_bad="10%")
    assert (manifest.bad_files, sum(manifest.counts.values())) == (4, 40)
    rows = list(csv.DictReader((tmp_path / "set" / "bad-files.csv").open()))
    causes = {row["path"]: row["cause"] for row in rows}
    assert not (tmp_path / "set" / "bad-files-refused.csv").exists()
    assert set(causes) == {"empty.png", "text.jpg", "cut.png", "wide.png"}
    assert "16×8 where most images are 8×8" in causes["wide.png"]
    with pytest.raises(ConfigError, match="4 of 44 files cannot be used; more than --max-bad 0"):
        make(folder, tmp_path / "set", max_bad="0")  # though nothing else has changed
    for name in causes:
        (folder / name).unlink()
    make(folder, tmp_path / "set")
    assert not (tmp_path / "set" / "bad-files.csv").exists()


@pytest.mark.parametrize(
    ("text", "files", "limit"), [("1%", 1000, 10), ("0.01", 1000, 10), ("0", 50, 0), ("5", 50, 5), ("100%", 7, 7)]
)
def test_max_bad_is_a_share_or_a_number(text: str, files: int, limit: int) -> None:
    assert bad_limit(text, files) == limit


@pytest.mark.parametrize("case", CASES, ids=[case.given for case in CASES])
def test_a_mistake_is_one_line_and_status_2(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = case.build(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pipelines.ingest", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(main, IngestSettings)
    captured = capsys.readouterr()
    assert exit_.value.code == 2, captured
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert case.said in lines[0]
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert not Path("pwned").exists()


# --- the same command again ---------------------------------------------------------------------------------


def test_unchanged_input_is_a_no_op_that_says_so(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    first, said = make(folder, tmp_path / "set")
    assert said == []
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    again, said = make(folder, tmp_path / "set")
    assert "Unchanged" in said[0]
    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}


def test_touched_files_with_the_same_pixels_keep_shards_and_hash(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    first, _ = make(folder, tmp_path / "set")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.parquet")}
    os.utime(next(folder.rglob("*.png")), (1, 1))
    again, said = make(folder, tmp_path / "set")
    assert "content hash is unchanged" in said[0]
    assert (again.hash, again.source["fingerprint"] == first.source["fingerprint"]) == (first.hash, False)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.parquet")}


def test_changed_input_or_settings_replace_the_set_and_leave_nothing_old(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    first, _ = make(folder, tmp_path / "set")
    (folder / "new.png").write_bytes(png(pixels(1, seed=9)[0]))
    second, _ = make(folder, tmp_path / "set")
    third, _ = make(folder, tmp_path / "set", size=4)
    assert len({first.hash, second.hash, third.hash}) == 3
    names = {path.name for path in (tmp_path / "set").iterdir()} - {".lock"}
    assert names == {"manifest.json", *(shard.key for shard in third.shards)}


def test_a_lost_or_cut_shard_is_made_again(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    manifest, _ = make(folder, tmp_path / "set")
    whole = stored(tmp_path / "set")
    (tmp_path / "set" / manifest.shards[0].key).unlink()
    (tmp_path / "set" / manifest.shards[1].key).write_bytes(b"cut")
    make(folder, tmp_path / "set")
    assert stored(tmp_path / "set") == whole


MOMENTS = {
    "an image is decoded": (Spool, "add", "before", 1),
    "the fifth shard is written": (dataset_writer, "encode_shard", "before", 5),
    "the manifest is written": (ingest_module, "put_in_place", "before", 1),
    "the manifest is there": (ingest_module, "put_in_place", "after", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_death_and_the_same_command_again(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """See also ``test_ingest_faults.py``, where a process is killed."""
    monkeypatch.setattr(dataset_writer, "SHARD_BYTES", 5 * 8 * 8 * 3)
    folder, (owner, name, when, call) = tree(tmp_path / "mine", pixels(60)), MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at(patch, owner, name, when, Death(), call=call)
        make(folder, tmp_path / "set")
    assert (tmp_path / "set" / "manifest.json").exists() == (when == "after")
    manifest, _ = make(folder, tmp_path / "set")
    check_fresh(manifest, tmp_path)


def check_fresh(manifest: Manifest, folder: Path) -> None:
    """``set`` is what the same command makes of ``mine`` in an empty place, and nothing else is there."""
    make(folder / "mine", folder / "fresh")
    assert stored(folder / "set") == stored(folder / "fresh")
    names = {path.name for path in (folder / "set").iterdir()} - {".lock"}
    assert names == {"manifest.json", *(shard.key for shard in manifest.shards)}


def test_the_command_as_a_user_runs_it(tmp_path: Path) -> None:
    tree(tmp_path / "mine", pixels(60))
    command = [sys.executable, "-m", "pipelines.ingest", "mine", "set"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_fresh(Manifest.from_json((tmp_path / "set" / "manifest.json").read_text()), tmp_path)


def test_a_dry_run_says_the_same_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "mine", pixels(60), test=10)
    (folder / "train" / "class0" / "notes.mat").write_text("")
    said = []
    for options in (["--dry-run"], []):
        monkeypatch.setattr(sys, "argv", ["pipelines.ingest", str(folder), str(tmp_path / "set"), *options])
        with pytest.raises(SystemExit) as exit_:
            command_line.run(main, IngestSettings)
        assert exit_.value.code == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if " images in " not in line])
        assert (tmp_path / "set").exists() != bool(options)
    rehearsed, made = said
    assert rehearsed[-1] == f"Nothing was written; without --dry-run the data set goes to {tmp_path / 'set'}"
    assert [line for line in made if " bytes per image in " not in line][:-1] == rehearsed[:-1]
    for part in (
        "mine: 45 train, 5 val, 10 test images of 8×8×3, 256 levels",
        "2 classes: class0, class1",
        "splits as the source names them: train = train; test = test",
        "1 file that is not an image ignored: .mat ×1",
        "values 0 … 255 of 256 levels",
    ):
        assert any(part in line for line in rehearsed), part
    monkeypatch.setattr(sys, "argv", ["pipelines.ingest", str(folder), str(tmp_path), "--dry-run"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(main, IngestSettings)
    assert exit_.value.code == 2
    assert "which is no part of a data set" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/set"])
def test_a_dry_run_refuses_a_destination_that_is_a_file_as_the_real_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    folder = tree(tmp_path / "mine", pixels(60), test=10)
    (tmp_path / "file").write_text("")
    said = []
    for options in (["--dry-run"], []):
        monkeypatch.setattr(sys, "argv", ["pipelines.ingest", str(folder), f"{tmp_path}/file{below}", *options])
        with pytest.raises(SystemExit) as exit_:
            command_line.run(main, IngestSettings)
        assert exit_.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "cannot be made" in said[0]


def test_a_dry_run_promises_the_decisions_that_do_not_fit_the_screen(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(60), test=10)
    settings = IngestSettings(source=str(folder), dest=str(tmp_path / "set"))
    decisions = tuple(f"decision {number}" for number in range(30))
    with Spool() as spool:
        planned = prepare(spool, open_source(str(folder)), settings, Steps(Console(quiet=True)), lambda bad: "")
        lines = list(summary(settings, dataclasses.replace(planned, decisions=decisions)))
    assert any(line.endswith("and 10 more decisions, which manifest.json will hold") for line in lines)
    manifest, _ = make(folder, tmp_path / "set")
    lines = list(summary(settings, dataclasses.replace(manifest, decisions=decisions)))
    assert any(line.endswith("and 10 more decisions, in manifest.json") for line in lines)


def test_what_systems_leave_in_a_finished_set_changes_nothing(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    first, _ = make(folder, tmp_path / "set")
    (tmp_path / "set" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "set" / "@eaDir").mkdir()
    (tmp_path / "set" / "@eaDir" / "manifest.json").write_bytes(b"x")
    again, said = make(folder, tmp_path / "set")
    assert "Unchanged" in said[0]
    assert again == first
    make(folder, tmp_path / "set", size=4)
    assert (tmp_path / "set" / ".DS_Store").exists()


def test_many_classes_and_many_decisions_fit_one_screen() -> None:
    names = [f"class{number}" for number in range(40_000)]
    assert class_line(names) == (
        "40,000 classes: class0, class1, class2, class3, class4, class5, class6, …, class39999"
    )
    assert class_line(["cat"]) == "1 class: cat"
    assert class_line([]) == "no classes"
    assert len(class_line(["x" * 500, "y"])) < 60


def test_a_set_of_an_earlier_reader_is_made_again(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    first, _ = make(folder, tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(path.read_text().replace(f'"reader": {ingest_module.READER}', '"reader": 1'))
    again, said = make(folder, tmp_path / "set")
    assert said == ["The same images as before, to the pixel: the content hash is unchanged."]
    assert again == first


# --- found by others ----------------------------------------------------------------------------------------


def test_a_shard_changed_without_a_change_of_size_is_made_again(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    manifest, _ = make(folder, tmp_path / "set")
    whole = stored(tmp_path / "set")
    shard = tmp_path / "set" / manifest.shards[0].key
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    _, said = make(folder, tmp_path / "set")
    assert "Unchanged" not in said[0]
    assert stored(tmp_path / "set") == whole


def test_a_refused_destination_is_left_as_it_was(tmp_path: Path) -> None:
    draft = tmp_path / "home" / "sub" / f".draft.{'0' * 32}"  # looks like a temporary file of ours
    draft.parent.mkdir(parents=True)
    draft.write_text("years of work")
    (tmp_path / "home" / "thesis.doc").write_text("")
    with pytest.raises(ConfigError, match="give an empty place"):
        make("digits", tmp_path / "home")
    assert draft.read_text() == "years of work"


def test_an_ingest_that_lost_the_lease_writes_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "lost", property(lambda lease: True))
    with pytest.raises(StorageError, match="the lock was lost"):
        make(tree(tmp_path / "mine", pixels(40)), tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_what_an_ended_ingest_left_goes_with_the_next_command(tmp_path: Path) -> None:
    folder = tree(tmp_path / "mine", pixels(40))
    make(folder, tmp_path / "set")
    (tmp_path / "set" / "train-00007-deadbeef.parquet").write_bytes(b"old")
    _, said = make(folder, tmp_path / "set")
    assert "Unchanged" in said[0]
    assert not (tmp_path / "set" / "train-00007-deadbeef.parquet").exists()


def test_labels_of_equal_pixels_do_not_depend_on_the_packing(tmp_path: Path) -> None:
    images = pixels(40)
    shards = []
    for names in ("ab", "ba"):
        with tarfile.open(tmp_path / f"{names}.tar", "w") as tar:
            for name in names:
                for number, image in enumerate(images):
                    member = tarfile.TarInfo(f"set/{name}/{number}.png")
                    content = png(image)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        manifest, _ = make(tmp_path / f"{names}.tar", tmp_path / f"set-{names}")
        shards.append(manifest.shards)
    assert shards[0] == shards[1]


def test_a_full_temporary_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines.ingest", "photos", str(tmp_path / "set")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SystemExit) as exit_:
            command_line.run(main, IngestSettings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "TMPDIR" in said
