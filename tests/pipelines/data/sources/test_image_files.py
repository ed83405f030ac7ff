"""Trees of image files: every byte, the right split and class, however they are packed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.data.sources import ImageFile, archives, base, files, folders, open_source, zips
from pipelines.data.sources.file_names import is_clutter
from tests.pipelines.data.source_builders import (
    CLUTTER,
    PACKERS,
    TREE,
    bad_of,
    files_of,
    folder,
    png,
    pngs,
    splits_and_classes,
)

pytestmark = pytest.mark.core

EXPECTED = {
    "train/cat/1.png": ("train", "cat"),
    "train/cat/2.PNG": ("train", "cat"),
    "train/dog/a/3.jpeg": ("train", "dog"),
    "val/cat/4.webp": ("val", "cat"),
    "test/dog/5.bmp": ("test", "dog"),
    "test/6.tiff": ("test", None),
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("top", ["", "./", "photos/", "photos/2024/"])
def test_every_file_arrives_whole_with_its_split_and_class(tmp_path: Path, packing: str, top: str) -> None:
    tree = {top + name: content for name, content in (TREE | CLUTTER).items()}
    source = open_source(PACKERS[packing](tmp_path, tree))
    found = files_of(source)
    shown = top if packing in ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip") else top.removeprefix("./")
    assert {path: content for path, (content, _, _) in found.items()} == {shown + n: c for n, c in TREE.items()}
    assert {path.removeprefix(shown): (split, label) for path, (_, split, label) in found.items()} == EXPECTED
    assert source.name == "set"
    assert source.kind == {"folder": "image folder", "zip": "zip archive"}.get(packing, "tar archive")
    assert source.notes == [
        *(["3 files that are not images ignored: .txt ×2, .md ×1"] if packing.startswith("tar") else []),
        "4 system or hidden files and folders ignored: .DS_Store, .hidden.png, Thumbs.db, __MACOSX",
        *([] if packing.startswith("tar") else ["3 files that are not images ignored: .txt ×2, .md ×1"]),
    ]
    assert {split: list(found) for split, found in source.origins.items()} == {
        split: [f"{top.removeprefix('./')}{split}"] for split in ("train", "val", "test")
    }
    assert source.count() == (None if packing.startswith("tar") else 6)
    assert list(source.items()) == list(source.items())


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (pngs("cat/1.png", "dog/2.png"), [(None, "cat"), (None, "dog")]),
        (pngs("top/cat/1.png", "top/dog/x/2.png"), [(None, "cat"), (None, "dog")]),
        (
            pngs("pets/cat/1.png", "pets/dog/2.png", "plants/rose/3.png"),
            [(None, c) for c in ("pets", "pets", "plants")],
        ),
        (pngs("1.png", "2.png"), [(None, None)] * 2),
        (pngs("all/1.png", "all/2.png"), [(None, None)] * 2),
        (pngs("1.png", "cat/2.png"), [(None, None), (None, "cat")]),
        (pngs("Training/1.png", "TEST/2.png"), [("test", None), ("train", None)]),
        (pngs("train/1.png", "valid/2.png"), [("train", None), ("val", None)]),
        (pngs("train/1.png", "validation/2.png"), [("train", None), ("val", None)]),
        (pngs("top/train/a/1.png"), [("train", "a")]),
        (pngs("cat/1.png", "dog/2.png", "dog/test_tube/3.png"), [(None, "cat"), (None, "dog"), (None, "dog")]),
    ],
)
def test_folders_name_splits_and_classes(
    tmp_path: Path, packing: str, tree: dict[str, bytes], expected: list[tuple[str | None, str | None]]
) -> None:
    found = splits_and_classes(open_source(PACKERS[packing](tmp_path, tree)))
    assert [found[path] for path in sorted(found)] == expected


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (pngs("train/1.png", "extra.png"), "extra.png lies beside the split folders"),
        (pngs("train/1.png", "cat/2.png"), "cat/2.png lies beside the split folders"),
        (pngs("cat/2.png", "train/1.png"), "cat/2.png lies beside the split folders"),
        (pngs("top/train/1.png", "top/test/2.png", "extra.png"), "extra.png lies beside the split folders"),
        (pngs("extra.png", "top/train/1.png", "top/test/2.png"), "extra.png lies beside the split folders"),
        (pngs("cat/1.png", "dog/2.png", "dog/test/3.png"), "lies beside the split folders"),
        (pngs("train/1.png", "val/2.png", "validation/3.png"), "both name the val split"),
    ],
)
def test_strays_are_refused_by_name(tmp_path: Path, packing: str, tree: dict[str, bytes], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        list(open_source(PACKERS[packing](tmp_path, tree)).items())
    assert "\n" not in str(caught.value)
    if "beside" in said:
        assert str(caught.value).endswith("or take such folders for classes (--splits none)")


@pytest.mark.parametrize("packing", PACKERS)
def test_nothing_to_read_is_said(tmp_path: Path, packing: str) -> None:
    with pytest.raises(ConfigError, match=r"no images in it; it holds .mat ×2, .txt ×1, and .png"):
        open_source(PACKERS[packing](tmp_path, {"a.mat": b"GIF89a", "b.MAT": b"GIF89a", "c.txt": b""}))


@pytest.mark.parametrize("packing", PACKERS)
def test_order_is_fixed_and_the_fingerprint_follows_the_content(tmp_path: Path, packing: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = open_source(PACKERS[packing](tmp_path / "a", TREE))
    again = open_source(str(next((tmp_path / "a").iterdir())))
    assert first.fingerprint() == again.fingerprint()
    assert int(first.fingerprint(), 16) >= 0
    changed = open_source(PACKERS[packing](tmp_path / "b", TREE | {"train/cat/1.png": png(77)}))
    assert changed.fingerprint() != first.fingerprint()
    if packing == "folder":
        assert list(files_of(first)) == sorted(TREE)
    else:
        assert list(files_of(first)) == list(TREE)


# --- folders ---------------------------------------------------------------------------------------------


def test_links_are_followed_once_and_loops_are_not(tmp_path: Path) -> None:
    root = Path(folder(tmp_path / "set", pngs("cat/1.png", "dog/2.png")))
    elsewhere = Path(folder(tmp_path / "elsewhere", pngs("9.png")))
    (root / "cat" / "loop").symlink_to(root)
    (root / "aaa").symlink_to(root / "dog")
    (root / "bird").symlink_to(elsewhere)
    (root / "dog" / "3.png").symlink_to(elsewhere / "9.png")
    (root / "dog" / "4.png").symlink_to(tmp_path / "nowhere")
    source = open_source(str(root))
    assert [item.path for item in source.items()] == ["dog/4.png", "bird/9.png", "cat/1.png", "dog/2.png", "dog/3.png"]
    assert bad_of(source) == {"dog/4.png": "a link that leads nowhere"}
    assert source.notes == ["2 links to folders that are read anyway not followed"]


def test_a_file_that_went_away_or_is_no_file_is_named(tmp_path: Path) -> None:
    root = Path(folder(tmp_path / "set", pngs("1.png", "2.png")))
    os.mkfifo(root / "pipe.png")
    source = open_source(str(root))
    (root / "1.png").unlink()
    assert bad_of(source) == {"pipe.png": "neither a file nor a folder", "1.png": "No such file or directory"}


@pytest.mark.parametrize("packing", ["folder", "tar", "zip"])
def test_a_file_too_large_for_an_image_is_named(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, files, folders, zips, archives):
        monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    source = open_source(PACKERS[packing](tmp_path, {"a.png": bytes(1001), "b.png": png()}))
    assert [item.path for item in source.items()] == ["a.png", "b.png"]
    assert "too large" in bad_of(source)["a.png"]


def test_entries_that_cannot_be_followed_or_listed_are_bad_files(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # which another user may enter
        Path(place).chmod(0o755)
        root = Path(folder(Path(place) / "set", pngs("cat/1.png", "dog/2.png", "locked/3.png")))
        (root / "latest").symlink_to("latest")
        (root / "horse").symlink_to("/mnt/unmounted/horse")
        (root / "README.md").symlink_to("nowhere")
        (root / "locked").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:  # who may enter everything
                os.seteuid(65534)
            source = open_source(str(root))
            items = list(source.items())
        finally:
            os.seteuid(user)
            (root / "locked").chmod(0o755)
    assert bad_of(source) | {item.path: "" for item in items if isinstance(item, ImageFile)} == {
        "latest": "a link that leads back to itself",
        "horse": "a link that leads nowhere",
        "locked/": "a folder that cannot be listed (Permission denied)",
        "cat/1.png": "",
        "dog/2.png": "",
    }


def test_a_path_longer_than_the_system_takes_is_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 240, dir_fd=here)
        inner = os.open("d" * 240, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    for name in ("deep.png", "nameless"):
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(png(5))
    os.close(here)
    assert [content for content, _, _ in files_of(open_source(str(root))).values()] == [png(5)] * 2


@pytest.mark.parametrize("packing", PACKERS)
def test_hidden_files_are_the_images_where_nothing_else_is(tmp_path: Path, packing: str) -> None:
    tree = {f".set/{name}": content for name, content in pngs("1.png", "2.png").items()}
    source = open_source(PACKERS[packing](tmp_path, tree | {".DS_Store": b"x"}))
    assert {content for content, _, _ in files_of(source).values()} == set(tree.values())
    assert source.notes == ["1 system or hidden file or folder ignored: .DS_Store"]


@pytest.mark.parametrize("packing", PACKERS)
def test_images_are_known_by_their_content_where_names_do_not_tell(tmp_path: Path, packing: str) -> None:
    tree = pngs("a/0001", "a/photo.orig", "b/0002.1", "b/x.jfif", "b/y.gif")
    others = {"a/README": b"hello", "b/table.csv": png(9), "b/z.dat": b"II"}
    source = open_source(PACKERS[packing](tmp_path, tree | others))
    assert {path: content for path, (content, _, _) in files_of(source).items()} == tree
    assert any("3 files that are not images ignored" in note for note in source.notes)


def test_names_of_any_bytes_can_be_printed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    name = os.fsdecode(b"caf\xe9")
    (root / name).mkdir()
    (root / name / "1.png").write_bytes(png())
    (root / "größe").mkdir()
    (root / "größe" / "2.png").write_bytes(png())
    assert sorted(splits_and_classes(open_source(str(root)))) == ["caf\\xe9/1.png", "größe/2.png"]
    for label in {label for _, _, label in files_of(open_source(str(root))).values()}:
        assert label is not None
        label.encode()


@given(
    st.lists(st.sampled_from(["a", ".", "..", ".b", "...", "__MACOSX", "Thumbs.db", "x.png"]), min_size=1, max_size=4)
)
def test_clutter_is_what_is_hidden(parts: list[str]) -> None:
    clutter = any(
        part.startswith(".") and part not in (".", "..") or part in ("__MACOSX", "Thumbs.db") for part in parts
    )
    assert is_clutter("/".join(parts)) == clutter
