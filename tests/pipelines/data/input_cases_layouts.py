"""The layouts in which images are published."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.images import saved
from tests.pipelines.data.input_builders import (
    jpeg,
    npy,
    npz,
    tar_bytes,
    zip_bytes,
)
from tests.pipelines.data.input_case import (
    BINARY,
    DIGITS,
    FLAT,
    FORTY,
    GREY,
    NO_CLASSES,
    ROWS,
    TWICE,
    WHOLE,
    Case,
    Made,
    flat,
    of_files,
    of_one,
    saved_to_disk,
    shards,
    table,
)

CASES = [
    # --- published layouts
    Case(
        "published layouts",
        "npz of ImageNet: flat rows, labels, mean",
        of_files(
            {
                "train_data_batch_1.npz": npz(data=FLAT[:15], labels=np.arange(15), mean=np.zeros(768)),
                "train_data_batch_2.npz": npz(data=FLAT[15:30], labels=np.arange(15), mean=np.zeros(768)),
                "val_data.npz": npz(data=FLAT[30:], labels=np.arange(10), mean=np.zeros(768)),
            }
        ),
        Made((24, 10, 6), "read as 3×16×16, one channel after the other", tuple(map(str, range(15))), FORTY),
    ),
    Case(
        "published layouts",
        "npz with objects beside the images",
        of_one("in.npz", npz(imgs=np.stack(BINARY), metadata=np.array({"a": 1}, object), latents=np.zeros((40, 6)))),
        Made(WHOLE, "neither images nor labels ignored: metadata, latents", NO_CLASSES, BINARY, bins=2),
    ),
    Case(
        "published layouts",
        "np.savez(path, images, labels)",
        of_one("in.npz", npz(np.stack(FORTY), np.arange(40) % 10)),
        Made(WHOLE, "10 classes", DIGITS, FORTY),
    ),
    Case(
        "published layouts",
        "a .npy for each class, flat rows",
        of_files(
            {"cat.npy": npy(np.stack(GREY[:20]).reshape(20, -1)), "dog.npy": npy(np.stack(GREY[20:]).reshape(20, -1))}
        ),
        Made(WHOLE, "rows of 256 values read as 16×16", ("cat", "dog"), GREY),
    ),
    Case(
        "published layouts",
        "a .npy in Fortran order",
        of_one("in.npy", npy(np.asfortranarray(np.stack(FORTY)))),
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "flat rows of colours that may be meant in two ways",
        of_one("in.npy", npy(FLAT)),
        Made(None, "may be 16×16×3 or 3×16×16; save x.reshape(-1, 16, 16, 3)"),
    ),
    Case(
        "published layouts",
        "WebDataset shards with classes",
        of_files(shards(classes=True)),
        Made(WHOLE, "10 classes", DIGITS, FORTY),
    ),
    Case(
        "published layouts",
        "WebDataset shards beside tables of captions",
        of_files(shards(classes=False, tables_too=True)),
        Made(WHOLE, "tables without images ignored: .parquet ×2", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "train.zip and test.tar side by side",
        of_files(
            {
                "train.zip": zip_bytes(flat(FORTY[:30], "train/{}.png")),
                "test.tar": tar_bytes(flat(FORTY[30:], "test/{}.png")),
            }
        ),
        Made((27, 3, 10), "train = train; test = test", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "a tar of a tar for each class",
        of_one("in.tar", tar_bytes({f"n0144{k}.tar": tar_bytes(flat(FORTY[10 * k :][:10])) for k in range(4)})),
        Made(WHOLE, "4 classes: n01440, n01441", ("n01440", "n01441", "n01442", "n01443"), FORTY),
    ),
    Case(
        "published layouts",
        "a Parquet column called jpg",
        table(__key__=[str(n) for n in range(40)], jpg=ROWS, txt=["c"] * 40),
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "a Parquet column of lists of images",
        table(images=[ROWS[n : n + 2] for n in range(0, 40, 2)]),
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "Arrow files as save_to_disk writes them",
        saved_to_disk,
        Made(WHOLE, "", NO_CLASSES, FORTY),
    ),
    Case(
        "published layouts",
        "every IDX file twice, loose and in a folder",
        of_files(TWICE),
        Made((27, 3, 10), "files that lie there twice read once", DIGITS, GREY),
    ),
    Case(
        "published layouts",
        "a photo of 61 million pixels, with --size",
        of_files(
            {f"{n}.jpg": jpeg(i) for n, i in enumerate(FORTY)}
            | {"camera.jpg": saved(Image.new("RGB", (9504, 6336), (10, 200, 30)), "JPEG", quality=50)},
            "--size",
            "16",
        ),
        Made((27, 5, 9), "1 image larger than asked"),
    ),
]
