"""The reader of a source is chosen by its content; what cannot be read raises an error of one line."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fvae import ConfigError
from pipelines.data.sources import open_source
from tests.pipelines.data.source_builders import folder, idx, png, pngs, tar, zipped

pytestmark = pytest.mark.core


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 8, 8), np.uint8))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (lambda root: Path(tar(root / "x", pngs("1.png"), "w")).read_bytes(), "tar archive"),
        (lambda root: Path(tar(root / "x", pngs("1.png"), "w:gz")).read_bytes(), "tar archive"),
        (lambda root: Path(tar(root / "x", pngs("PK\x03\x04.png"), "w")).read_bytes(), "tar archive"),
        (lambda root: Path(zipped(root / "x", pngs("1.png"))).read_bytes(), "zip archive"),
        (lambda root: npy(), "NumPy arrays"),
        (lambda root: idx(np.zeros((5, 8, 8), np.uint8)), "IDX files"),
        (lambda root: bz2.compress(idx(np.zeros((5, 8, 8), np.uint8))), "IDX files"),
    ],
)
@pytest.mark.parametrize("name", ["data", "data.txt", "data.png", "data.tar.gz"])
def test_content_decides_and_not_the_name(
    tmp_path: Path, content: Callable[[Path], bytes], kind: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content(tmp_path))
    assert open_source(str(path)).kind == kind


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10-jpeg.tar.gz", "cifar10-jpeg"),
        ("a.b.tgz", "a.b"),
        ("v1.5.tar", "v1.5"),
        ("train-images-idx3-ubyte.gz", "train-images"),
        (".tar", ".tar"),
        ("größe.tar", "größe"),
    ],
)
def test_short_names(tmp_path: Path, name: str, expected: str) -> None:
    content = Path(tar(tmp_path / "x", pngs("1.png"), "w")).read_bytes()
    (tmp_path / name).write_bytes(content)
    assert open_source(str(tmp_path / name)).name == expected


def test_a_folder_keeps_its_name_and_may_be_the_present_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "photos.v1.5", pngs("1.png"))
    assert open_source(root).name == open_source(root + "/").name == "photos.v1.5"
    monkeypatch.chdir(root)
    assert open_source(".").name == "photos.v1.5"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/photos.v1.5").count() == 1


def written(name: str, content: bytes) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        return f"{folder(root, {name: content})}/{name}"

    return build


BAD = [
    ("a text file", written("notes.txt", b"hello\n"), "notes.txt: a text file; give a folder"),
    ("an empty file", written("a.tar.gz", b""), "an empty file"),
    ("random bytes", written("a.bin", bytes(range(255, 0, -1)) * 9), "a.bin: not recognised"),
    ("zeros", written("a.tar", bytes(10240)), "not recognised"),
    ("a RAR archive", written("a.rar", b"Rar!\x1a\x07\x01\0"), "a RAR archive; pack it as"),
    ("a 7z archive", written("a.7z", b"7z\xbc\xaf\x27\x1c\0\4"), "a 7z archive; pack it as"),
    ("a zstd archive", written("a.tar.zst", b"\x28\xb5\x2f\xfd123"), "zstd; pack it as"),
    ("an HDF5 file", written("a.h5", b"\x89HDF\r\n\x1a\n"), "HDF5"),
    ("a MATLAB file", written("a.mat", b"MATLAB 5.0 MAT-file"), "MATLAB"),
    ("one image", written("a.png", png()), "one image; give the folder"),
    ("a GIF", written("a.gif", b"GIF89a"), "a GIF"),
    ("a pickle", written("data_batch_1", pickle.dumps({}, 2)), "a pickle; only CIFAR's"),
    ("a packed text", written("a.txt.gz", gzip.compress(b"hello")), "a text file"),
    ("a packed array", written("a.npy.gz", gzip.compress(npy())), "a packed .npy file; unpack it"),
    ("a damaged gzip", written("a.gz", gzip.compress(bytes(99999))[:30]), "not recognised|damaged"),
    ("an empty gzip", written("a.gz", gzip.compress(b"")), "not recognised"),
    ("a gzip of nothing", written("a.gz", b"\x1f\x8b"), "damaged or cut short"),
    ("an empty folder", lambda root: str(root), "empty; needs image files"),
    ("a system's file only", lambda root: folder(root, {"Thumbs.db": png()}), "empty; needs image files"),
    ("only films", lambda root: folder(root, {"a.mp4": b"", "b.mp4": b""}), "no images in it; it holds .mp4 ×2"),
    ("a folder of a damaged archive", lambda root: folder(root, {"a.tar.gz": b"x"}), "a.tar.gz: a text file"),
    ("a folder of two kinds", lambda root: folder(root, {"a.npz": b"x", "b.zip": b"x"}), "give the folder of one kind"),
    ("an empty zip", lambda root: zipped(root / "a.zip", {}), "a.zip: empty"),
    ("a zip of text", lambda root: zipped(root / "a.zip", {"a.txt": b"hello"}), "a.zip: no images in it"),
    ("a tar of zips", lambda root: tar(root / "a.tar", {"b.zip": b"x"}), "it holds .zip ×1"),
    ("a missing path", lambda root: str(root / "nothing"), "no such file or folder; give a folder, .tar"),
    ("a slip", lambda root: f"{folder(root, {'photographs/1.png': png()})}/photograhps", "did you mean photographs?"),
    ("a slip in a name", lambda root: str(root / "digitss"), "did you mean digits?"),
    ("an endless path", lambda root: "x" * 5000, "x…: cannot be read .File name too long"),
    ("a path in a file", lambda root: written("a", b"x")(root) + "/b", "no such file or folder|cannot be read"),
    ("a null byte", lambda root: "a\0b", "no path|no such"),
    ("nothing", lambda root: "", "give a folder"),
    ("a device", lambda root: "/dev/null", "neither a file nor a folder"),
    ("another store", lambda root: "gs://bucket/x", "gs://"),
    ("no bucket", lambda root: "s3://", "bucket"),
]


@pytest.mark.parametrize(("build", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, build: Callable[[Path], str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_source(build(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_loop_of_links_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="no such file|cannot be read"):
        open_source(str(tmp_path / "a"))


def test_names_need_nothing_but_the_package(tmp_path: Path) -> None:
    """A decoding process imports ``pipelines.data.sources``: no reader comes with it."""
    foreign = ("pyarrow", "boto3", "sklearn", "PIL")
    code = f"import sys, pipelines.data.sources; print([m for m in {foreign} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
