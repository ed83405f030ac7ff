"""What folders, archives and names may hold: links, splits, clutter, odd entries, images under other names."""

from __future__ import annotations

import tarfile

from tests.images import saved
from tests.pipelines.data.input_builders import (
    bmp_with_empty_alpha,
    jpeg,
    png,
    tar_bytes,
    zip_bytes,
)
from tests.pipelines.data.input_case import (
    CATS_AND_DOGS,
    CLUTTER,
    COUNTS,
    FORTY,
    HORSES,
    NO_CLASSES,
    ROWS,
    SPLIT,
    USUAL,
    WHOLE,
    Case,
    Made,
    clutter_at_the_destination,
    deep_path,
    flat,
    of_files,
    of_one,
    split_tree,
    tables,
    with_link,
)

CASES = [
    # --- links in archives
    Case(
        "links in archives",
        "a tar with a link to a folder and one to a photo",
        of_one(
            "in.tar",
            tar_bytes(
                flat(FORTY, "v1/{:02}.png"),
                [("latest", tarfile.SYMTYPE, "v1"), ("v1/c.png", tarfile.SYMTYPE, "00.png")],
            ),
        ),
        Made(WHOLE, "2 symbolic links in the archive skipped", NO_CLASSES, FORTY),
    ),
    Case(
        "links in archives",
        "a tar of train/ and test/ with a link at its top",
        of_one(
            "in.tar",
            tar_bytes(
                flat(FORTY[:30], "train/{:02}.png") | flat(FORTY[30:], "test/{:02}.png"),
                [("README", tarfile.SYMTYPE, "docs/README.md")],
            ),
        ),
        Made((27, 3, 10), "1 symbolic link in the archive skipped", NO_CLASSES, FORTY),
    ),
    Case(
        "links in archives",
        "a tar with hard links",
        of_one("in.tar", tar_bytes(flat(FORTY, "{:02}.png"), [("copy.png", tarfile.LNKTYPE, "00.png")])),
        Made((27, 5, 9), "1 images are exact duplicates within their split", NO_CLASSES, [*FORTY, FORTY[0]]),
    ),
    # --- published splits
    Case(
        "published splits",
        "a tar of a whole path, splits four folders down",
        of_one("in.tar", tar_bytes(split_tree(USUAL, classes=("robin", "wren"), top="home/ann/data/birds/"))),
        Made(COUNTS, "train = home/ann/data/birds/train", ("robin", "wren"), FORTY),
    ),
    Case(
        "published splits",
        "a folder of splits three folders down",
        of_files(split_tree(USUAL, classes=("robin", "wren"), top="raw/v2/birds/")),
        Made(COUNTS, "2 classes: robin, wren", ("robin", "wren"), FORTY),
    ),
    Case(
        "published splits",
        "train_64x64/ and valid_64x64/",
        of_files(flat(FORTY[:30], "train_64x64/{:02}.png") | flat(FORTY[30:], "valid_64x64/{:02}.png")),
        Made((24, 10, 6), "train = train_64x64; val = valid_64x64", NO_CLASSES, FORTY),
    ),
    Case(
        "published splits",
        "train2017/, val2017/ and test2017/",
        of_files(split_tree({split: f"{split}2017" for split in SPLIT}, top="coco/images/")),
        Made(COUNTS, "val = coco/images/val2017", NO_CLASSES, FORTY),
    ),
    Case(
        "published splits",
        "trainA/, trainB/, testA/ and testB/",
        of_files({f"h2z/{HORSES[n // 10]}/{n}.png": png(i) for n, i in enumerate(FORTY)}),
        Made((18, 2, 20), "test = h2z/testA, h2z/testB", ("A", "B"), FORTY),
    ),
    Case(
        "published splits",
        "a zip with backslashes",
        of_one("in.zip", zip_bytes(split_tree(USUAL, classes=("cat", "dog"), top="photos/"), backslashes=True)),
        Made(COUNTS, "train = photos/train", ("cat", "dog"), FORTY),
    ),
    Case(
        "published splits",
        "files called train_00.png, test_00.png",
        of_files(flat(FORTY[:30], "train_{:02}.png") | flat(FORTY[30:], "test_{:02}.png")),
        Made((27, 3, 10), "test = files called test…", NO_CLASSES, FORTY),
    ),
    Case(
        "published splits",
        "partial-train/ and partial-test/ of Parquet",
        tables({"default/partial-train/0000.parquet": ROWS[:30], "default/partial-test/0000.parquet": ROWS[30:]}),
        Made((27, 3, 10), "test = default/partial-test", NO_CLASSES, FORTY),
    ),
    Case(
        "published splits",
        "bottle/train, bottle/test, cable/train, cable/test",
        of_files(
            {
                f"{('bottle', 'cable')[n % 2]}/{'train' if n < 30 else 'test'}/good/{n}.png": png(i)
                for n, i in enumerate(FORTY)
            }
        ),
        Made((27, 3, 10), "2 classes: bottle, cable", ("bottle", "cable"), FORTY),
    ),
    Case(
        "published splits",
        "train/CLASS/images, val/images, test/images",
        of_files(
            {f"t/train/n{n % 2}/images/{n}.png": png(i) for n, i in enumerate(FORTY[:25])}
            | flat(FORTY[25:33], "t/val/images/{}.png")
            | flat(FORTY[33:], "t/test/images/{}.png")
        ),
        Made(COUNTS, "2 classes: n0, n1", ("n0", "n1"), FORTY),
    ),
    Case(
        "published splits",
        "train2014/ beside train2017/",
        of_files(flat(FORTY[:20], "train2014/{}.png") | flat(FORTY[20:], "train2017/{}.png")),
        Made(
            None,
            "or be its parts; take one of them (--splits train=train2014) or all (--splits train=",
        ),
    ),
    Case(
        "published splits",
        "train2014/ beside train2017/, answered",
        of_files(
            flat(FORTY[:20], "train2014/{}.png") | flat(FORTY[20:], "train2017/{}.png"), "--splits", "train=train2017"
        ),
        Made((14, 2, 4), "20 images in no folder that --splits names: left out", NO_CLASSES, FORTY[20:]),
    ),
    Case(
        "published splits",
        "images/ beside lists train.txt and test.txt",
        of_files(flat(FORTY, "images/{}.png") | {"meta/train.txt": b"0", "meta/test.txt": b"1"}),
        Made(None, "meta/test.txt, meta/train.txt may list published splits"),
    ),
    Case(
        "published splits",
        "classes called car and train",
        of_files(flat(FORTY[:20], "car/{}.png") | flat(FORTY[20:], "train/{}.png")),
        Made(None, "or take such folders for classes (--splits none)"),
    ),
    Case(
        "published splits",
        "classes called car and train, answered",
        of_files(flat(FORTY[:20], "car/{}.png") | flat(FORTY[20:], "train/{}.png"), "--splits", "none"),
        Made(WHOLE, "2 classes: car, train", ("car", "train"), FORTY),
    ),
    # --- alpha, clutter, bad entries
    Case(
        "alpha of zero",
        "BMPs of 32 bits with an empty fourth byte, and PNGs",
        of_files({f"{n}.bmp": bmp_with_empty_alpha(i) for n, i in enumerate(FORTY[:9])} | flat(FORTY[9:], "p{}.png")),
        Made(WHOLE, "9 images with an alpha channel of zero everywhere: the colours kept", NO_CLASSES, FORTY),
    ),
    Case(
        "what systems leave",
        "recycle bins, thumbnails and lost+found beside the classes",
        of_files(CATS_AND_DOGS | CLUTTER),
        Made(WHOLE, "10 system or hidden files and folders ignored", ("cats", "dogs"), FORTY),
    ),
    Case(
        "what systems leave",
        "clutter at the destination",
        clutter_at_the_destination,
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "one bad entry",
        "a link that leads to itself",
        with_link("latest", "latest"),
        Made(None, "1 of 41 files cannot be used: latest: a link that leads back to itself; more than --max-bad 1%"),
    ),
    Case(
        "one bad entry",
        "a link to a disk that is not there",
        with_link("horses", "/mnt/unmounted/horses"),
        Made(None, "1 of 41 files cannot be used: horses: a link that leads nowhere"),
    ),
    Case("one bad entry", "a path longer than the system takes", deep_path, Made(WHOLE, "", ("d" * 240,), FORTY)),
    # --- images that were left out
    Case(
        "left out as no images",
        ".jfif, .jpe, GIF and AVIF beside PNGs",
        of_files(
            flat(FORTY[:24])
            | {f"j{n}.jfif": jpeg(i) for n, i in enumerate(FORTY[24:30])}
            | {f"k{n}.jpe": jpeg(i) for n, i in enumerate(FORTY[30:34])}
            | {f"g{n}.gif": saved(i, "GIF") for n, i in enumerate(FORTY[34:37])}
            | {f"a{n}.avif": saved(i, "AVIF") for n, i in enumerate(FORTY[37:])}
        ),
        Made(WHOLE, "3 images with a palette"),
    ),
    Case(
        "left out as no images",
        "HEIC photos beside PNGs",
        of_files(flat(FORTY) | {"a.HEIC": b"\0\0\0\x18ftypheic" + bytes(200)}),
        Made(None, "a.HEIC: HEIF (HEIC), not one of PNG, JPEG"),
    ),
    Case(
        "left out as no images",
        "names without suffixes",
        of_files(flat(FORTY, "{:032x}") | {"README": b"hello"}),
        Made(WHOLE, "1 file that is not an image ignored: no suffix ×1", NO_CLASSES, FORTY),
    ),
    Case(
        "left out as no images",
        "all in a hidden folder",
        of_one("in.tar", tar_bytes(flat(FORTY, ".dataset/{}.png"))),
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "left out as no images",
        "two tars joined",
        of_one("in.tar", tar_bytes(flat(FORTY[:20])) + tar_bytes(flat(FORTY[20:], "b{}.png"))),
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "left out as no images",
        "a tar without an end mark",
        of_one("in.tar", tar_bytes(flat(FORTY), closed=False)),
        Made(WHOLE, "in.tar ends without tar's end mark", NO_CLASSES, FORTY),
    ),
]
