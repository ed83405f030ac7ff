"""Published splits: recognised however their folders and files are named, or asked for; never a silent new cut."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import pytest

from fvae import ConfigError
from pipelines.data.sources import open_source
from pipelines.data.sources.base import LEFT_OUT
from pipelines.data.sources.splits.names import listed_splits, read_name, read_names
from tests.pipelines.data.source_builders import PACKERS, files_of, folder, png, pngs, splits_and_classes

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("name", "split", "part"),
    [
        ("train", "train", ""),
        ("TRAINING", "train", ""),
        ("Validation", "val", ""),
        ("train_64x64", "train", ""),
        ("valid_64x64", "val", ""),
        ("train2017", "train", ""),
        ("trainA", "train", "A"),
        ("testB", "test", "B"),
        ("train_a", "train", "a"),
        ("partial-train", "train", ""),
        ("train-00000-of-00002", "train", "0000000002"),
        ("TrainingSet", "train", ""),
        ("Test Images", "test", ""),
        ("testset", "test", ""),
        ("images.train", "train", ""),
        ("01_train", "train", "01"),
        ("trainval", "train", ""),
        ("t10k", "test", ""),
    ],
)
def test_names_that_mean_a_split(name: str, split: str, part: str) -> None:
    found = read_name(name)
    assert found is not None
    assert (found.split, found.part) == (split, part)


@pytest.mark.parametrize(
    "name", ["test_tube", "train_station", "validity", "trains", "contest", "latest", "cat", "train_test", "", "2017"]
)
def test_names_that_mean_something_else(name: str) -> None:
    assert read_name(name) is None


def test_names_side_by_side_explain_each_other() -> None:
    def splits(*names: str) -> dict[str, str]:
        return {name: found.split for name, found in read_names(names).items()}

    assert splits("DIV2K_train_HR", "DIV2K_valid_HR") == {"DIV2K_train_HR": "train", "DIV2K_valid_HR": "val"}
    assert splits("seg_train", "seg_test", "seg_pred") == {"seg_train": "train", "seg_test": "test"}
    assert splits("train", "dev", "eval") == {"train": "train", "dev": "val", "eval": "test"}
    assert splits("dev", "eval") == {}
    assert splits("blood_test", "x_ray") == {}
    assert splits("blood_test", "steam_train") == {}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            pngs(*(f"home/ann/data/birds/{s}/{c}/1.png" for s in ("train", "val", "test") for c in ("robin", "wren"))),
            [(s, c) for s in ("test", "train", "val") for c in ("robin", "wren")],
        ),
        (pngs("train_64x64/1.png", "valid_64x64/2.png"), [("train", None), ("val", None)]),
        (
            pngs("coco/images/train2017/1.png", "coco/images/val2017/2.png", "coco/images/test2017/3.png"),
            [("test", None), ("train", None), ("val", None)],
        ),
        (
            pngs("h2z/testA/1.png", "h2z/testB/2.png", "h2z/trainA/3.png", "h2z/trainB/4.png"),
            [("test", "A"), ("test", "B"), ("train", "A"), ("train", "B")],
        ),
        (pngs("a/birds_test/1.png", "a/birds_train/2.png"), [("test", None), ("train", None)]),
        (pngs("dev/1.png", "train/2.png"), [("val", None), ("train", None)]),
        (
            pngs("bottle/test/good/1.png", "bottle/train/good/2.png", "cable/test/3.png", "cable/train/4.png"),
            [("test", "bottle"), ("train", "bottle"), ("test", "cable"), ("train", "cable")],
        ),
        (
            pngs("t/test/images/1.png", "t/train/n01/images/2.png", "t/train/n02/images/3.png", "t/val/images/4.png"),
            [("test", None), ("train", "n01"), ("train", "n02"), ("val", None)],
        ),
        (
            pngs("seg_test/seg_test/sea/1.png", "seg_train/seg_train/ice/2.png", "seg_train/seg_train/sea/3.png"),
            [("test", "sea"), ("train", "ice"), ("train", "sea")],
        ),
        (pngs("train/images/cat/1.png", "val/images/cat/2.png"), [("train", "cat"), ("val", "cat")]),
        (pngs("all/test_1.png", "all/train_1.png", "all/train_2.png"), [("test", None), *[("train", None)] * 2]),
        (pngs("img_test_1.png", "img_train_1.png"), [("test", None), ("train", None)]),
        (pngs("test.png", "train.png"), [(None, None)] * 2),
        (pngs("0-test.png", "1-train.png"), [("test", None), ("train", None)]),
        (pngs("home/test/set/train/1.png", "home/test/set/val/2.png"), [("train", None), ("val", None)]),
        (pngs("test/train/1.png", "train/train/2.png", "train/apple/3.png"), None),
        (pngs("test/apple/0.png", "test/train/1.png", "train/apple/2.png", "train/train/3.png"), None),
        (pngs("vehicles/test_1.png", "vehicles/car.png"), [(None, None)] * 2),
        (pngs("steam_train/1.png", "tube/2.png"), [(None, "steam_train"), (None, "tube")]),
        (pngs("Xtest/a/1.png", "Xtrain/a/2.png"), [("test", "a"), ("train", "a")]),
        (pngs("carstest/1.png", "carstrain/2.png"), [("test", None), ("train", None)]),
        (pngs("trn/1.png", "tst/2.png"), [("train", None), ("test", None)]),
        (pngs("te/1.png", "tr/2.png", "va/3.png"), [("test", None), ("train", None), ("val", None)]),
        (pngs("de/1.png", "en/2.png", "te/3.png", "tr/4.png"), [(None, name) for name in ("de", "en", "te", "tr")]),
        (pngs("test_a1b2c3/1.png", "train_b42b775f/2.png"), [("test", None), ("train", None)]),
        (pngs("all/testA_001.png", "all/trainA_001.png"), [("test", None), ("train", None)]),
        (pngs("img (test) 1.png", "img (train) 1.png"), [("test", None), ("train", None)]),
        (pngs("a/eval_1.png", "a/train_1.png"), [("test", None), ("train", None)]),
        (pngs("Xtest_1.png", "Xtrain_1.png"), [("test", None), ("train", None)]),
        (pngs("carstest1.png", "carstrain1.png"), [("test", None), ("train", None)]),
        (pngs("te_1.png", "tr_1.png"), [("test", None), ("train", None)]),
        (pngs("de_1.png", "te_1.png", "tr_1.png"), [(None, None)] * 3),
        (pngs("contest_1.png", "strain_1.png", "oval.png"), [(None, None)] * 3),
        (pngs("hold_out/1.png", "train/2.png"), [("test", None), ("train", None)]),
        (pngs("a/cat_dev_1.png", "a/cat_dev_2.png"), [(None, None)] * 2),
        (pngs("test/1.png", "train/2.png", "train/train_3.png"), [("test", None), ("train", None), ("train", None)]),
        (pngs("test/1.png", "train/train/2.png", "train/val/3.png"), [("test", None), ("train", None), ("val", None)]),
        (
            pngs("d/Testing/cat/1.png", "d/Training/Train/cat/2.png", "d/Training/Validation/cat/3.png"),
            [("test", "cat"), ("train", "cat"), ("val", "cat")],
        ),
        (
            pngs("test_set/a/test/1.png", "test_set/a/train/2.png", "test_set/b/train/3.png"),
            [("test", "a"), ("train", "a"), ("train", "b")],
        ),
    ],
)
def test_splits_at_any_depth_with_the_usual_affixes(
    tmp_path: Path, packing: str, tree: dict[str, bytes], expected: list[tuple[str | None, str | None]] | None
) -> None:
    source = open_source(PACKERS[packing](tmp_path, tree))
    found = splits_and_classes(source)
    if expected is None:  # the classes are called like splits, and the folders above them are splits
        expected = [(path.split("/")[0], path.split("/")[1]) for path in sorted(tree)]
    assert [found[path] for path in sorted(found)] == expected
    assert set(source.origins) == {split for split, _ in expected if split}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("tree", "said", "answer", "expected"),
    [
        (
            pngs("My Test Photos (final)/1.png", "My Train Photos/2.png"),
            "My Train Photos and My Test Photos (final) may be published splits",
            "train=My Train Photos,test=My Test Photos (final)",
            {"My Test Photos (final)/1.png": "test", "My Train Photos/2.png": "train"},
        ),
        (
            pngs("a/My Train Photos/cat/1.png", "b/The Test (final)/cat/2.png"),
            "may be published splits",
            "train=My Train Photos,test=The Test (final)",
            {"a/My Train Photos/cat/1.png": "train", "b/The Test (final)/cat/2.png": "test"},
        ),
        (
            pngs("train/1.png", "a\nb/2.png"),
            "a\\nb/2.png lies beside the split folders (train)",
            "none",
            {"train/1.png": None, "a\\nb/2.png": None},
        ),
        (
            pngs("final_test_v2a/1.png", "final_train_v2b/2.png"),
            "may be published splits",
            "none",
            {"final_test_v2a/1.png": None, "final_train_v2b/2.png": None},
        ),
        (
            pngs("steam_train/1.png", "test_tube/2.png"),
            "may be published splits",
            "none",
            {"steam_train/1.png": None, "test_tube/2.png": None},
        ),
        (
            pngs("ilsv_img_test_v1019/1.png", "ilsv_img_train/2.png", "ilsv_img_val/3.png"),
            "move it, name the splits (--splits train=ilsv_img_train,val=ilsv_img_val,test=ilsv_img_test_v1019)",
            "train=ilsv_img_train,val=ilsv_img_val,test=ilsv_img_test_v1019",
            {"ilsv_img_test_v1019/1.png": "test", "ilsv_img_train/2.png": "train", "ilsv_img_val/3.png": "val"},
        ),
        (
            pngs("test_1/1.png", "oak/2.png"),
            "move it, or take such folders for classes (--splits none)",
            "none",
            {"test_1/1.png": None, "oak/2.png": None},
        ),
        (
            pngs("test/1.png", "train/test_1.png", "train/train_1.png"),
            "train/test_1.png lies in train (train), but its name says test",
            "train=train,test=test",
            {"test/1.png": "test", "train/test_1.png": "train", "train/train_1.png": "train"},
        ),
        (
            pngs("train/images/cat/1.png", "train/test/cat/2.png"),
            "train/test/cat/2.png lies in train/test, whose name says test, inside train, which is another split",
            "train=train,test=test",
            {"train/images/cat/1.png": "train", "train/test/cat/2.png": "test"},
        ),
        (
            pngs("train/cat/1.png", "train/train/2.png", "train/val/3.png"),
            "train/cat/1.png lies beside the split folders (train/train)",
            "train=train/train,val=val",
            {"train/cat/1.png": LEFT_OUT, "train/train/2.png": "train", "train/val/3.png": "val"},
        ),
        (
            pngs("test_cats/1.png", "test_dogs/2.png", "train_cats/3.png", "train_dogs/4.png"),
            "or be its parts",
            "train=train_*,test=test_*",
            {f"{name}.png": name[:5].strip("_") for name in ("test_cats/1", "test_dogs/2")}
            | {f"{name}.png": "train" for name in ("train_cats/3", "train_dogs/4")},
        ),
        (
            pngs("test/1.png", "train_32/2.png", "train_64/3.png"),
            "train_32 and train_64 both name the train split",
            "train=train_32,train=train_64,test=test",
            {"test/1.png": "test", "train_32/2.png": "train", "train_64/3.png": "train"},
        ),
        (
            pngs("test_1/1.png", "test_2/2.png", "train/3.png"),
            "test_1 and test_2 both name the test split",
            "train=train,test=test_2",
            {"test_1/1.png": LEFT_OUT, "test_2/2.png": "test", "train/3.png": "train"},
        ),
        (
            pngs("test/1.png", "train [2014], a/2.png", "train [2017]/3.png"),
            "both name the train split",
            "train=train [2014], a,test=test",
            {"test/1.png": "test", "train [2014], a/2.png": "train", "train [2017]/3.png": LEFT_OUT},
        ),
        (
            pngs("train2014/1.png", "train2017/2.png", "val2017/3.png"),
            "train2014 and train2017 both name the train split",
            "train=train2017,val=val2017",
            {"train2014/1.png": LEFT_OUT, "train2017/2.png": "train", "val2017/3.png": "val"},
        ),
        (
            pngs("a/train_32x32/1.png", "a/train_64x64/2.png", "a/valid_64x64/3.png"),
            "both name the train split",
            "train=*_64x64",
            {"a/train_32x32/1.png": LEFT_OUT, "a/train_64x64/2.png": "train", "a/valid_64x64/3.png": "train"},
        ),
        (
            pngs("seg_pred/1.png", "seg_test/2.png", "seg_train/3.png"),
            "seg_pred/1.png lies beside the split folders",
            "train=seg_train,test=seg_test",
            {"seg_pred/1.png": LEFT_OUT, "seg_test/2.png": "test", "seg_train/3.png": "train"},
        ),
        (
            pngs("car/1.png", "train/2.png"),
            "car/1.png lies beside the split folders (train)",
            "none",
            {"car/1.png": None, "train/2.png": None},
        ),
        (
            pngs("test_1.png", "train_1.png", "logo.png"),
            "the names of files say train, test (test_1.png), but not that of logo.png",
            "none",
            {"test_1.png": None, "train_1.png": None, "logo.png": None},
        ),
        (
            pngs("images/1.png", "images/2.png") | {"meta/train.txt": b"1", "meta/test.txt": b"2"},
            "meta/test.txt, meta/train.txt may list published splits",
            "none",
            {"images/1.png": None, "images/2.png": None},
        ),
    ],
)
def test_what_cannot_be_told_is_asked_and_the_option_answers(
    tmp_path: Path, packing: str, tree: dict[str, bytes], said: str, answer: str, expected: dict[str, str | None]
) -> None:
    place = PACKERS[packing](tmp_path, tree)
    with pytest.raises(ConfigError) as caught:
        list(open_source(place).items())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--splits" in str(caught.value)
    found = {path: split for path, (split, _) in splits_and_classes(open_source(place, answer)).items()}
    if packing in ("folder", "zip"):  # there, what is left out is not even read
        expected = {path: split for path, split in expected.items() if split != LEFT_OUT}
    assert found == expected
    options = [shlex.split(option)[0] for option in re.findall(r"--splits ((?:'[^']*'|[^\s')])+)", str(caught.value))]
    assert options
    for option in options:  # whatever the line proposes
        taken = set(splits_and_classes(open_source(place, option)).values())
        assert option == "none" or {split for split, _ in taken} >= {"train"}


def test_direction_marks_and_odd_spaces_in_names_are_escaped_where_they_are_shown(tmp_path: Path) -> None:
    names = ["cat\u202e", "dog\xa0a", "\u732b\u3000a", "\u0646\u200c\u0645"]  # the last two need their own characters
    place = folder(tmp_path / "set", pngs(*(f"{name}/1.png" for name in names)))
    escaped = {"cat\\u202e", "dog\\xa0a", *names[2:]}
    assert {label for _, label in splits_and_classes(open_source(place)).values()} == set(names)  # data, kept as it is
    assert {path.removesuffix("/1.png") for path in files_of(open_source(place))} == escaped


def test_the_line_proposes_one_variant_of_each_split_and_all(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", pngs("a/train2014/1.png", "a/train2017/2.png", "a/val2017/3.png"))
    with pytest.raises(ConfigError, match="both name the train split") as caught:
        open_source(place)
    assert "take one of them (--splits train=train2017,val=val2017) or all (--splits" in str(caught.value)


def test_without_splits_their_folders_name_no_class(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", pngs("test/cat/1.png", "train/cat/2.png", "train/dog/3.png"))
    assert sorted(splits_and_classes(open_source(place, "none")).values()) == [
        (None, "cat"),
        (None, "cat"),
        (None, "dog"),
    ]


@pytest.mark.parametrize(
    ("paths", "splits", "expected"),
    [
        ("images/cat/1.png images/test/2.png", "train=images,test=images/test", ["train", "test"]),
        ("bar/1.png foo/2.png", "train=*,test=foo", ["train", "test"]),
        ("bar/a/1.png foo/a/2.png", "train=*,test=foo", ["train", "test"]),
        ("test/1.png train/2.png", "train=t*,test=test", ["test", "train"]),
        ("test/1.png train/2.png", "train=train*,test=t*", ["test", "train"]),
        ("d/test/1.png d/train/2.png", "train=./d/train,test=d/test/", ["test", "train"]),
        ("t[1]/1.png t1/2.png", "train=t1,test=t[1]", ["test", "train"]),
    ],
)
def test_the_most_specific_pattern_wins(tmp_path: Path, paths: str, splits: str, expected: list[str]) -> None:
    place = folder(tmp_path / "set", pngs(*paths.split()))
    found = splits_and_classes(open_source(place, splits))
    assert [found[path][0] for path in sorted(found, key=paths.index)] == expected


def test_an_image_that_two_splits_claim_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", pngs("foo/cat/1.png", "cow/2.png"))
    with pytest.raises(ConfigError, match=r"foo/cat/1.png lies in c\* \(train\) and in foo \(test\)") as caught:
        open_source(place, "train=c*,test=foo")
    option = shlex.split(str(caught.value).partition("--splits ")[2])[0]
    found = splits_and_classes(open_source(place, option))
    assert {path: split for path, (split, _) in found.items()} == {"foo/cat/1.png": "test", "cow/2.png": "train"}


@pytest.mark.parametrize("linked", ["all", "test", "folder"])
def test_splits_of_symbolic_links_in_an_archive_are_asked_for(tmp_path: Path, linked: str) -> None:
    links = {f"{split}/{n}.png": f"../blobs/{n}" for split in ("train", "test") for n in range(3)}
    links = {"test": "blobs"} if linked == "folder" else links
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path in [f"blobs/{n}" for n in range(3)] * (linked == "all") + ["train/a.png"] * (linked != "all"):
            member, content = tarfile.TarInfo(path), png(len(path))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for path, target in links.items():
            if linked != "test" or path.startswith("test"):
                member = tarfile.TarInfo(path)
                member.type, member.linkname = tarfile.SYMTYPE, target
                archive.addfile(member)
    there = r".* \(--splits train=train\)" if linked != "all" else ""
    with pytest.raises(ConfigError, match=f"is a symbolic link, which is not read from an archive{there}"):
        list(open_source(str(tmp_path / "set.tar")).items())
    assert {split for split, _ in splits_and_classes(open_source(str(tmp_path / "set.tar"), "none")).values()} == {None}


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ("yes", "auto, none, or folders such as train=train2017"),
        ("train=", "auto, none"),
        ("holdout=x", "auto, none"),
        ("val=val2017", "names no train split"),
        ("train=trian", "no folder with images has this name"),
        ("train=val,train=train,test=t*", "every image there goes to another split"),
        ("train=train,test=train", "train is in train and in test"),
    ],
)
def test_splits_that_cannot_be_are_said(tmp_path: Path, splits: str, said: str) -> None:
    place = folder(tmp_path / "set", pngs("train/1.png", "val/2.png"))
    with pytest.raises(ConfigError, match=said) as caught:
        open_source(place, splits)
    assert "\n" not in str(caught.value)


def test_splits_by_folder_are_for_folders() -> None:
    with pytest.raises(ConfigError, match="digits holds digits, which name their splits in their own way"):
        open_source("digits", "train=a")


def test_backslashes_of_old_windows_programs_are_separators(tmp_path: Path) -> None:
    names = [f"photos\\{split}\\cat\\1.png" for split in ("train", "val", "test")]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            member = zipfile.ZipInfo("x")
            member.filename = name
            archive.writestr(member, png(len(name)))
    place = folder(tmp_path / "set", {name: png(len(name)) for name in names})  # as a careless unpacker leaves it
    for source in (open_source(str(tmp_path / "a.zip")), open_source(place)):
        assert {(split, label) for _, split, label in files_of(source).values()} == {
            (split, "cat") for split in ("train", "val", "test")
        }


def test_lists_of_splits_are_known_by_their_names() -> None:
    for name, splits in {
        "train.txt": {"train"},
        "a/test.csv": {"test"},
        "train_test_split.txt": {"train", "test"},
        "list_eval_partition.txt": {"train", "val", "test"},
        "val-images.json": {"val"},
    }.items():
        assert listed_splits(name) == splits, name
    for name in ("labels.txt", "test.md", "train_classes_of_birds.txt", "readme", "train/classes.txt"):
        assert not listed_splits(name), name


def test_one_list_alone_is_no_published_split(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", pngs("1.png", "2.png") | {"train.csv": b"1", "notes/train.txt": b"2"})
    assert set(splits_and_classes(open_source(place)).values()) == {(None, None)}
