"""What images and labels may hold: damage, ranges of values, alpha, labels that do not fit."""

from __future__ import annotations

import pickle

import numpy as np

from tests.images import saved, tiff
from tests.pipelines.data.input_builders import (
    bmp_of_16_bits,
    cut_inside,
    grey_palette,
    images,
    jpeg,
    npy,
    npz,
    packed_idx,
    png,
    png_of_4_bits,
    png_of_16_bit_grey,
    pnm,
)
from tests.pipelines.data.input_case import (
    BINARY,
    DIGITS,
    FORTY,
    FOUR,
    GREY,
    NO_CLASSES,
    ROWS,
    WHOLE,
    WIDE,
    Case,
    Made,
    cifar,
    of_files,
    of_one,
    table,
    tables,
)

MIXED = {
    f"{n}.png": saved(i.astype(np.uint16) * 16, "PNG") if n % 2 else png(i)  # of 12 bits in 16, and of 8
    for n, i in enumerate(GREY)
}
CASES = [
    # --- the decoder's warnings
    Case(
        "the decoder's warning",
        "a JPEG with half of its data and an end mark",
        of_files({f"{n}.jpg": jpeg(i) for n, i in enumerate(FORTY)} | {"half.jpg": cut_inside(jpeg(FORTY[0]))}),
        Made(None, "half.jpg: damaged JPEG: the data of its pixels end too early"),
    ),
    Case(
        "the decoder's warning",
        "JPEGs with bytes behind their ends",
        of_files({f"{n}.jpg": jpeg(i) + b"notes of a camera" for n, i in enumerate(FORTY)}),
        Made(WHOLE, "values 0 … 255"),
    ),
    # --- the range of values
    Case(
        "range of values",
        "8-bit values in a uint16 array",
        of_one("in.npy", npy(np.stack(GREY).astype(np.uint16))),
        Made(None, "--value-range 0:255, or --value-range 0:65535 to take them as they are"),
    ),
    Case(
        "range of values",
        "8-bit values in a uint16 array, answered",
        of_one("in.npy", npy(np.stack(GREY).astype(np.uint16)), "--value-range", "0:255"),
        Made(WHOLE, "values 0 … 255 spread over 256 levels", NO_CLASSES, GREY),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit PNGs",
        of_files({f"{n}.png": saved(i.astype(np.uint16) * 16, "PNG") for n, i in enumerate(GREY)}),
        Made(None, "the values are 0 … 4,080, less than an eighth of the 65,536 levels"),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit PNGs, answered",
        of_files(
            {f"{n}.png": saved(i.astype(np.uint16) * 16, "PNG") for n, i in enumerate(GREY)}, "--value-range", "0:4080"
        ),
        Made(WHOLE, "values 0 … 4,080 spread over 256 levels", NO_CLASSES, GREY),
    ),
    Case(
        "range of values",
        "8-bit values in an int32 array",
        of_one("in.npy", npy(np.stack(GREY).astype(np.int32))),
        Made(WHOLE, "values 0 … 255 of 256 levels", NO_CLASSES, GREY),
    ),
    Case(
        "range of values",
        "zeros and ones",
        of_one("in.npy", npy(np.stack(BINARY))),
        Made(WHOLE, "every value is 0 or 1: 2 levels", NO_CLASSES, BINARY, bins=2),
    ),
    Case(
        "range of values",
        "zeros and 255s",
        of_one("in.npy", npy(np.stack(BINARY) * np.uint8(255))),
        Made(WHOLE, "--bins 2 --value-range 0:255 makes", NO_CLASSES, [i * np.uint8(255) for i in BINARY]),
    ),
    Case(
        "range of values",
        "levels 0 to 16 in uint8",
        of_one("in.npy", npy(np.stack(GREY) // 16)),
        Made(None, "--bins 16 for 16 levels"),
    ),
    Case(
        "range of values",
        "levels 0 to 16 in uint8, answered",
        of_one("in.npy", npy(np.stack(GREY) // 16), "--bins", "17"),
        Made(WHOLE, "values 0 … 16 spread over 17 levels", NO_CLASSES, [i // 16 for i in GREY], bins=17),
    ),
    Case(
        "range of values",
        "floats",
        of_one("in.npy", npy(np.stack(GREY) / 255)),
        Made(None, "say which values are black and white, such as --value-range 0:1"),
    ),
    Case(
        "range of values",
        "floats, answered",
        of_one("in.npy", npy(np.stack(GREY) / 255), "--value-range", "0:1"),
        Made(WHOLE, "values 0 … 1 spread over 256 levels", NO_CLASSES, GREY),
    ),
    Case(
        "range of values",
        "palettes of 17 levels, answered",
        of_files({f"{n}.gif": grey_palette(i // 16, "GIF") for n, i in enumerate(GREY)}, "--bins", "16"),
        Made(WHOLE, "values 0 … 15 spread over 16 levels", NO_CLASSES, [i // 16 for i in GREY], bins=16),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit PNGs, and 8-bit PNGs",
        of_files(MIXED),
        Made(None, "the values are 0 … 4,080, less than an eighth of the 65,536 levels of their type, and images of 8"),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit PNGs, and 8-bit PNGs, with a range that fits half of them",
        of_files(MIXED, "--value-range", "0:4080"),
        Made(None, "some images are of 256 levels (values 0 … 255) and would be all but black where 4080"),
    ),
    Case(
        "range of values",
        "8-bit PNGs with the range of others",
        of_files({f"{n}.png": png(i) for n, i in enumerate(GREY)}, "--value-range", "0:4095"),
        Made(None, "would be all but black where 4095 is white; give a range within 0:255"),
    ),
    Case(
        "range of values",
        "8-bit values in 16-bit PNGs, and 8-bit PNGs, answered",
        of_files(
            {f"{n}.png": saved(i.astype(np.uint16 if n % 2 else np.uint8), "PNG") for n, i in enumerate(GREY)},
            *("--value-range", "0:255"),
        ),
        Made(WHOLE, "values 0 … 255 spread over 256 levels", NO_CLASSES, GREY),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit colour anymaps",
        of_files({f"{n}.ppm": pnm(i.astype(np.uint16) * 16, 65535) for n, i in enumerate(FORTY)}),
        Made(None, "the values are 0 … 4,080, less than an eighth of the 65,536 levels"),
    ),
    Case(
        "range of values",
        "12-bit values in 16-bit colour anymaps, answered",
        of_files(
            {f"{n}.ppm": pnm(i.astype(np.uint16) * 16, 65535) for n, i in enumerate(FORTY)}, "--value-range", "0:4080"
        ),
        Made(WHOLE, "values 0 … 4,080 spread over 256 levels", NO_CLASSES, FORTY),
    ),
    Case(
        "range of values",
        "PNGs of 4 bits",
        of_files({f"{n}.png": png_of_4_bits(i // 16) for n, i in enumerate(GREY)}, "--bins", "16"),
        Made(WHOLE, "values 0 … 15 spread over 16 levels", NO_CLASSES, [i // 16 for i in GREY], bins=16),
    ),
    # --- labels that do not fit
    Case(
        "labels that do not fit",
        "Parquet, floats and nothing",
        table(image=ROWS, label=[float(n % 3) if n % 7 else None for n in range(40)]),
        Made(WHOLE, "3 classes: 0, 1, 2", ("0", "1", "2"), FORTY),
    ),
    Case(
        "labels that do not fit",
        "Parquet, booleans",
        table(image=ROWS, label=[n % 2 == 0 for n in range(40)]),
        Made(WHOLE, "2 classes: False, True", ("False", "True"), FORTY),
    ),
    Case(
        "labels that do not fit",
        "Parquet, lists",
        table(image=ROWS, labels=[[n % 3, 5] for n in range(40)]),
        Made(WHOLE, "column labels left out: list<", NO_CLASSES, FORTY),
    ),
    Case(
        "labels that do not fit",
        "npz, several for each image",
        of_one("in.npz", npz(images=np.stack(GREY), labels=np.zeros((40, 14), np.uint8))),
        Made(WHOLE, "labels left out: labels of shape [40, 14]", NO_CLASSES, GREY),
    ),
    Case(
        "labels that do not fit",
        "npz, floats",
        of_one("in.npz", npz(x=np.stack(GREY), y=np.arange(40, dtype=np.float32) % 10)),
        Made(WHOLE, "10 classes: 0, 1", DIGITS, GREY),
    ),
    Case(
        "labels that do not fit",
        "IDX, eight for each image",
        of_files(
            {
                "q-train-images-idx3-ubyte.gz": packed_idx(np.stack(GREY[:30])),
                "q-train-labels-idx2-int.gz": packed_idx(np.zeros((30, 8), ">i4"), 12),
                "q-test-images-idx3-ubyte.gz": packed_idx(np.stack(GREY[30:])),
            }
        ),
        Made((27, 3, 10), "q-train-labels-idx2-int.gz left out", NO_CLASSES, GREY),
    ),
    Case(
        "labels that do not fit",
        "CIFAR batches saved again by Python 3",
        of_files(
            cifar(
                lambda data, labels: pickle.dumps({"data": data, "labels": np.array(labels)}, 5),
                pickle.dumps({"label_names": [f"c{number}" for number in range(10)]}),
            )
        ),
        Made((36, 4, 8), "8 classes: c0, c1", tuple(f"c{k}" for k in range(8)), images(48, 32)),
    ),
    # --- notes that are true
    Case(
        "small",
        "BMPs of 16 bits per pixel",
        of_files({f"{n}.bmp": bmp_of_16_bits(i) for n, i in enumerate(FORTY)}),
        Made(WHOLE, "40 images of 15 or 16 bits per pixel: each channel expanded to 8 bits"),
    ),
    Case(
        "small",
        "16-bit grey with and without alpha",
        of_files({f"{n}.png": png_of_16_bit_grey(i, alpha=n % 2 == 0) for n, i in enumerate(WIDE)}),
        Made((14, 2, 4), "20 images of 16 bits per channel: rounded", NO_CLASSES, [np.rint(i / 257) for i in WIDE]),
    ),
    Case(
        "small",
        "TIFFs of red, green, blue and near infra-red",
        of_files({f"{n}.tif": tiff(i, t338=0) for n, i in enumerate(FOUR)}),
        Made(WHOLE, "40 images with a channel that is neither colour nor transparency", NO_CLASSES, FORTY),
    ),
    Case(
        "small",
        "Parquet with tables of Delta Lake's own",
        tables({"part-00000.parquet": ROWS, "_delta_log/00010.checkpoint.parquet": [{"add": "x"}]}),
        Made(WHOLE, "1 table below folders called _… ignored", NO_CLASSES, FORTY),
    ),
]
