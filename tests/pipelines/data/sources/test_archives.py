"""Archives: every dialect of tar, and nothing half-taken of what is damaged."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.data.sources import BadFile, ImageFile, open_source, webdataset
from pipelines.data.sources.archives import archive_folders
from pipelines.data.sources.tars import TarReader
from tests.pipelines.data.input_builders import tar_bytes, zip_bytes
from tests.pipelines.data.source_builders import (
    PACKERS,
    TREE,
    files_of,
    folder,
    png,
    pngs,
    split_of,
    tar,
    zipped,
)

pytestmark = pytest.mark.core

# --- archives that are damaged ------------------------------------------------------------------------


def test_a_tar_cut_anywhere_is_refused_and_never_taken_for_whole(tmp_path: Path) -> None:
    content = Path(tar(tmp_path / "a.tar", pngs(*(f"{n:02}.png" for n in range(20))), "w")).read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512  # the last member, padded; all after it is the end mark
    path = tmp_path / "cut.tar"
    for length in [*range(512, end, 331), end - 1, end + 511]:
        path.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=r"damaged or cut short after \d+ entries .*get a complete copy"):
            list(open_source(str(path)).items())
    path.write_bytes(content[: end + 512])  # half an end mark will do
    source = open_source(str(path))
    assert len(files_of(source)) == 20
    assert source.notes == []
    path.write_bytes(content[:end])  # of a writer that was not closed, or cut just there: read, and noted
    source = open_source(str(path))
    assert len(files_of(source)) == 20
    assert source.notes == [
        "cut.tar ends without tar's end mark, behind a whole member: all that was written, or a copy cut short there"
    ]


@pytest.mark.parametrize("packing", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_packed_tar_cut_or_damaged_anywhere_is_refused(tmp_path: Path, packing: str) -> None:
    path = Path(PACKERS[packing](tmp_path, pngs(*(f"{n:02}.png" for n in range(300)))))
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.9999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConfigError, match="damaged or cut short"):
            list(open_source(str(path)).items())
    for share in (0.3, 0.9):
        damaged = bytearray(content)
        damaged[int(share * len(content))] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged or cut short"):
            list(open_source(str(path)).items())


def test_a_cut_archive_says_how_far_it_got(tmp_path: Path) -> None:
    path = Path(tar(tmp_path / "a.tar.gz", pngs(*(f"{n:03}.png" for n in range(900)))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError) as caught:
        list(open_source(str(path)).items())
    reached = int(str(caught.value).split("after ")[1].split(" entries")[0])
    assert 350 < reached < 550


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = Path(tar(tmp_path / "a.tar", pngs("1.png", "2.png", "3.png"), "w"))
    content = bytearray(path.read_bytes())
    content[content.index(b"2.png")] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as lenient:
        assert len(lenient.getmembers()) == 1  # what the standard library makes of it
    with pytest.raises(ConfigError, match="after 1 entries.*checksum"):
        list(open_source(str(path)).items())


def test_zip_members_that_cannot_be_read_are_named_and_the_others_taken(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path / "a.zip", pngs("1.png", "2.png", "3.png")))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        second, third = archive.getinfo("2.png"), archive.getinfo("3.png")
    content[second.header_offset + 60] ^= 0x55
    content[third.header_offset + 6] |= 1  # encrypted
    directory = content.rindex(b"3.png") - 46
    assert content[directory : directory + 4] == b"PK\x01\x02"
    content[directory + 8] |= 1
    path.write_bytes(content)
    items = list(open_source(str(path)).items())
    assert [item.path for item in items] == ["1.png", "2.png", "3.png"]
    assert [isinstance(item, BadFile) for item in items] == [False, True, True]
    assert "damaged" in items[1].cause  # type: ignore[union-attr]
    assert items[2].cause == "encrypted"  # type: ignore[union-attr]


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path / "a.zip", TREE))
    content = path.read_bytes()
    for length in (30, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(ConfigError, match="not a complete zip archive"):
            open_source(str(path))


def test_names_that_climb_are_only_names(tmp_path: Path) -> None:
    tree = pngs("../../cat/1.png", "/abs/2.png")
    before = sorted(tmp_path.rglob("*"))
    for pack, name in ((tar, "a.tar.gz"), (zipped, "a.zip")):
        path = tmp_path / name
        assert {content for content, _, _ in files_of(open_source(pack(path, tree))).values()} == set(tree.values())
        path.unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("packing", ["tar", "tar.gz"])
def test_a_member_that_stands_in_a_tar_twice_is_refused(tmp_path: Path, packing: str) -> None:
    root = tmp_path / "set"
    folder(root, pngs("cat/1.png", "cat/2.png") | {"notes.txt": b"1"})
    path = tmp_path / "a.tar"
    command = ["tar", "-C", str(root), "-rf", str(path)]
    subprocess.run([*command, "cat/1.png", "cat/2.png", "notes.txt"], check=True)
    subprocess.run([*command, "notes.txt"], check=True)  # no image: nothing that would count twice
    assert len(files_of(open_source(str(path)))) == 2
    (root / "cat" / "1.png").write_bytes(png(7))
    subprocess.run([*command, "cat/1.png" if packing == "tar" else "./cat/1.png"], check=True)
    if packing == "tar.gz":
        subprocess.run(["gzip", str(path)], check=True)
        path = path.with_name("a.tar.gz")
    with pytest.raises(ConfigError) as caught:
        list(open_source(str(path)).items())
    assert (
        str(caught.value)
        == f"{path}: {'' if packing == 'tar' else './'}cat/1.png is in the archive twice; pack it again"
    )


# --- archives inside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("00000.tar", "00001.tar"), ("", "")),
        (("shard-000000.tar", "shard-000001.tar"), ("shard/", "shard/")),
        (("train-0000.tar", "train-0001.tar", "val-0000.tar"), ("train/", "train/", "val/")),
        (("train/00000.tar", "val/00000.tar"), ("train/", "val/")),
        (("train.zip", "test.tar.gz"), ("train/", "test/")),
        (("n01440764.tar", "n01443537.tar"), ("n01440764/", "n01443537/")),
        (("0.zip", "1.zip"), ("0/", "1/")),
    ],
)
def test_archives_stand_for_folders_and_shards_for_none(names: tuple[str, ...], folders: tuple[str, ...]) -> None:
    assert archive_folders(names) == dict(zip(names, folders, strict=True))


def test_a_tar_of_packed_tars_is_read_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    inner = {name: Path(tar(tmp_path / "x", pngs(f"{name}.png"), mode)).read_bytes() for name, mode in
             (("a.tar", "w"), ("b.tar.gz", "w:gz"), ("c.tgz", "w:gz"))}  # fmt: skip
    path = tar(tmp_path / "outer.tar.gz", inner)
    source = open_source(path)
    found = files_of(source)
    assert [(name, label) for name, (_, _, label) in found.items()] == [
        ("a.tar: a.tar.png", "a"), ("b.tar.gz: b.tar.gz.png", "b"), ("c.tgz: c.tgz.png", "c")
    ]  # fmt: skip
    path = tar(tmp_path / "cut.tar", inner | {"c.tgz": inner["c.tgz"][:-30]}, "w")
    with pytest.raises(ConfigError, match="cut.tar: damaged or cut short"):
        list(open_source(path).items())


def test_a_tar_beside_images_is_a_file_like_others(tmp_path: Path) -> None:
    source = open_source(tar(tmp_path / "a.tar", {"notes.tar": b"x" * 600} | pngs("cat/1.png", "dog/2.png"), "w"))
    assert list(files_of(source)) == ["cat/1.png", "dog/2.png"]
    assert source.notes == ["1 file that is not an image ignored: .tar ×1"]


def test_classes_of_a_webdataset_lie_before_or_behind_their_images(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for number in range(6):
        image, text = {f"{number}.png": png(number)}, {f"{number}.cls": f"{number % 2}\n".encode()}
        files |= ({**image, f"{number}.json": b"{}", **text}, {**text, **image}, image)[number % 3]
    source = open_source(tar(tmp_path / "a.tar", files, "w"))
    assert [label for _, _, label in files_of(source).values()] == ["0", "1", None, "1", "0", None]


# --- tar's dialects ---------------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(blacklist_characters="/\0\n", blacklist_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and name.strip() == name)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(NAMES, min_size=1, max_size=6), min_size=1, max_size=5, unique_by=tuple),
    sizes=st.lists(st.integers(0, 1500), min_size=5, max_size=5),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(parts: list[list[str]], sizes: list[int], form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for names, size in zip(parts, sizes, strict=False):
            member = tarfile.TarInfo("/".join(names))
            member.size = size
            try:
                archive.addfile(member, io.BytesIO(bytes(size)))
            except ValueError:  # ustar has no place for such a name
                return
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
        expected = [(member.name, member.size) for member in archive]
    reader = TarReader(io.BytesIO(buffer.getvalue()))
    assert [(member.name, len(reader.read())) for member in reader] == expected
    assert not reader.trailing


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_paths(tmp_path: Path, form: int) -> None:
    tree = pngs("/".join(f"folder{n:02}" for n in range(20)) + "/1.png", "y" * 90 + "/2.png")
    assert {p: c for p, (c, _, _) in files_of(open_source(tar(tmp_path / "a.tar", tree, "w", form))).items()} == tree


def test_archives_of_gnu_tar_with_links_and_long_names(tmp_path: Path) -> None:
    long = "x" * 150
    root = tmp_path / "set"
    folder(root, pngs("cat/1.png", f"{long}/{long}.png"))
    (root / "cat" / "2.png").symlink_to("1.png")
    (root / "cat" / "3.png").hardlink_to(root / "cat" / "1.png")
    for form in ("gnu", "posix", "ustar", "v7"):
        if form in ("ustar", "v7"):
            shutil.rmtree(root / long, ignore_errors=True)
        path = tmp_path / f"{form}.tar.gz"
        command = ["tar", "-C", str(tmp_path), f"--format={form}", "--sort=name", "-czf", str(path), "set"]
        subprocess.run(command, check=True)
        source = open_source(str(path))
        found = files_of(source)
        assert found["set/cat/1.png"] == (png(0), None, "cat" if form in ("gnu", "posix") else None)
        assert (f"set/{long}/{long}.png" in found) == (form in ("gnu", "posix"))
        assert found["set/cat/3.png"] == found["set/cat/1.png"]
        assert source.notes == ["1 symbolic link in the archive skipped"]


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "1.png").open("wb") as file:
        file.seek(1 << 20)
        file.write(png())
    path = tmp_path / "a.tar"
    for form in ("gnu", "posix"):
        subprocess.run(["tar", "-C", str(tmp_path), f"--format={form}", "-Scf", str(path), "1.png"], check=True)
        with pytest.raises(ConfigError, match="sparse"):
            list(open_source(str(path)).items())


def test_joined_archives_are_read_on(tmp_path: Path) -> None:
    one, two = (Path(tar(tmp_path / f"{n}.tar", pngs(f"{n}.png"), "w")) for n in (1, 2))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    source = open_source(str(one))
    assert list(files_of(source)) == ["1.png", "2.png"]
    assert source.notes == []
    one.write_bytes(one.read_bytes()[:-700])
    assert len(files_of(open_source(str(one)))) == 2
    one.write_bytes(one.read_bytes() + b"something else" * 100)
    source = open_source(str(one))
    assert list(files_of(source)) == ["1.png", "2.png"]
    assert source.notes == ["bytes after the archive's end mark ignored"]


# --- links ------------------------------------------------------------------------------------------------


def test_a_tree_with_links_is_one_set_as_a_folder_and_as_a_tar(tmp_path: Path) -> None:
    root = Path(folder(tmp_path / "set", pngs("v1/0.png", "v1/1.png", "v2/2.png") | {"docs/README.md": b""}))
    (root / "latest").symlink_to("v1")
    (root / "README").symlink_to("docs/README.md")
    (root / "v1" / "cover.png").symlink_to("0.png")
    (root / "v2" / "3.png").hardlink_to(root / "v1" / "1.png")
    (root / "aaa.png").hardlink_to(root / "v2" / "2.png")
    expected = {"v1/0.png": 0, "v1/1.png": 1, "v2/2.png": 2, "v2/3.png": 1, "aaa.png": 2}
    as_folder = open_source(str(root))
    assert {path: content for path, (content, _, _) in files_of(as_folder).items()} == {
        path: png(seed) for path, seed in expected.items()
    }
    assert "1 link to a file in the same folder skipped" in as_folder.notes
    for form in ("gnu", "posix", "ustar"):
        for order in ("name", "none"):
            path = tmp_path / f"{form}-{order}.tar.gz"
            options = [f"--format={form}", f"--sort={order}", "-czf", str(path), "."]
            subprocess.run(["tar", "-C", str(root), *options], check=True)
            source = open_source(str(path))
            found = files_of(source)
            assert {name.removeprefix("./"): value for name, value in found.items()} == files_of(as_folder)
            assert source.notes[-1] == "3 symbolic links in the archive skipped"


def test_a_link_never_stands_in_for_an_image_or_a_split(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in pngs("train/1.png", "test/2.png").items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in (
            ("README", tarfile.SYMTYPE, "docs/README.md"),
            ("cover.png", tarfile.SYMTYPE, "train/1.png"),
            ("test/3.png", tarfile.LNKTYPE, "./train/1.png"),
            ("train/4.png", tarfile.LNKTYPE, "elsewhere/4.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    source = open_source(str(path))
    items = list(source.items())
    assert [item.path for item in items] == ["train/1.png", "test/2.png", "test/3.png", "train/4.png"]
    assert items[3] == BadFile("train/4.png", "a hard link to elsewhere/4.png, which is not there")
    assert isinstance(items[2], ImageFile)
    assert (items[2].content, split_of(source, items[2])) == (png(0), "test")
    assert source.notes == ["2 symbolic links in the archive skipped"]


# --- archives that are odd on purpose ----------------------------------------------------------------------


def nested(depth: int, kind: str) -> bytes:
    """An image in so many archives, one inside the other."""
    content, name = png(), "1.png"
    for _ in range(depth):
        content = zip_bytes({name: content}) if kind == "zip" else tar_bytes({name: content})
        name = f"a.{kind}"
    return content


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_in_archives_end_at_a_depth(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"set.{kind}"
    path.write_bytes(nested(4, kind))
    assert len(files_of(open_source(str(path)))) == 1
    for depth in (6, 300):
        path.write_bytes(nested(depth, kind))
        with pytest.raises(ConfigError, match="archives more than 4 deep inside one another; unpack the outer ones$"):
            list(open_source(str(path)).items())


@pytest.mark.parametrize("packed", ["tar", "zips"])
def test_of_a_large_file_that_is_no_image_only_the_head_is_held(tmp_path: Path, packed: str) -> None:
    files = pngs("a/1.png", "b/2") | {"weights.unknown": bytes(64 << 20), "b/3": png(3)}
    if packed == "tar":
        path = tar(tmp_path / "set.tar", files, "w")
    else:
        (tmp_path / "set").mkdir()
        zipped(tmp_path / "set" / "x.zip", files)
        zipped(tmp_path / "set" / "y.zip", pngs("4.png"))
        path = str(tmp_path / "set")
    source = open_source(path)
    tracemalloc.start()
    found = [item for item in source.items() if isinstance(item, ImageFile)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    contents = {item.content for item in found}
    assert {png(0), png(1), png(3)} <= contents
    assert most < 16 << 20


def test_every_image_of_a_sample_has_its_class(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for number in range(3):
        text = {f"{number}.cls": str(number).encode()}
        one, two = {f"{number}.a.png": png(2 * number)}, {f"{number}.b.png": png(2 * number + 1)}
        files |= ({**one, **two, **text}, {**one, **text, **two}, {**text, **one, **two})[number]
    found = files_of(open_source(tar(tmp_path / "a.tar", files | pngs("x.a.png", "x.b.png"), "w")))
    assert [label for _, _, label in found.values()] == ["0", "0", "1", "1", "2", "2", None, None]


def test_images_that_wait_for_a_class_fill_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "SAMPLE_BYTES", 600)
    files = pngs(*(f"frame.{number:03}.png" for number in range(20)))
    source = open_source(tar(tmp_path / "a.tar", files, "w"))
    assert {path: content for path, (content, _, _) in files_of(source).items()} == files
    source = open_source(tar(tmp_path / "b.tar", files | {"frame.cls": b"3"}, "w"))
    with pytest.raises(ConfigError, match=r"frame.cls names the class of images of more than 600 bytes before it"):
        list(source.items())


def test_a_hard_link_may_lead_to_a_hard_link(tmp_path: Path) -> None:
    links = [("d/2.png", tarfile.LNKTYPE, "d/1.png"), ("d/1.png", tarfile.LNKTYPE, "c/1.png"),
             ("e/3.png", tarfile.LNKTYPE, "./e/link"), ("e/link", tarfile.LNKTYPE, "c/1.png")]  # fmt: skip
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"c/1.png": png()}, links))
    found = files_of(open_source(str(path)))
    assert {name: label for name, (_, _, label) in found.items()} == {
        "c/1.png": "c", "d/1.png": "d", "d/2.png": "d", "e/3.png": "e", "e/link": "e"
    }  # fmt: skip
    assert {content for content, _, _ in found.values()} == {png()}
    circle = [("d/1.png", tarfile.LNKTYPE, "d/2.png"), ("d/2.png", tarfile.LNKTYPE, "d/1.png")]
    path.write_bytes(tar_bytes({"c/1.png": png()}, circle))
    assert [type(item) for item in open_source(str(path)).items()] == [ImageFile, BadFile, BadFile]


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-1", "x"])
def test_a_size_that_is_no_number_is_damage(tmp_path: Path, size: str) -> None:
    member = tarfile.TarInfo("1.png")
    member.pax_headers = {"size": size}
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(pngs("0.png"), closed=False) + member.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(ConfigError, match=r"a.tar: damaged or cut short after \d entries \(an extended header"):
        list(open_source(str(path)).items())
