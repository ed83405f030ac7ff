"""IDX files, packed or not, in folders, archives and buckets; every fault raises an error of one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fvae import ConfigError
from pipelines.data.sources import Pixels, idx, open_source
from tests.pipelines.data.source_builders import folder, pixels_of, png, stored, zipped
from tests.pipelines.data.source_builders import idx as idx_bytes

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.integers(0, 256, (30, 5, 7), dtype=np.uint8), RNG.integers(0, 256, (9, 5, 7), dtype=np.uint8)
TRAIN_LABELS, TEST_LABELS = RNG.integers(0, 10, 30, dtype=np.uint8), RNG.integers(0, 10, 9, dtype=np.uint8)


def mnist(style: str = "-idx", *, packed: bool = True, labels: bool = True, top: str = "") -> dict[str, bytes]:
    """The four files; ``style`` names them."""
    files = {"train-images-idx3-ubyte": idx_bytes(TRAIN), "t10k-images-idx3-ubyte": idx_bytes(TEST)}
    if labels:
        files |= {"train-labels-idx1-ubyte": idx_bytes(TRAIN_LABELS), "t10k-labels-idx1-ubyte": idx_bytes(TEST_LABELS)}
    files = {name.replace("-idx", style): content for name, content in files.items()}
    return {f"{top}{name}{'.gz' * packed}": gzip.compress(c) if packed else c for name, c in files.items()}


def check(source: object, *, labels: bool = True) -> None:
    found = pixels_of(source)  # type: ignore[arg-type]
    assert list(found) == ["train", "test"]
    for split, images, expected in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        assert (found[split][0] == images).all()
        assert found[split][1] == ([str(label) for label in expected] if labels else None)


@pytest.mark.parametrize("style", ["-idx", ".idx"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_mnist_files(tmp_path: Path, style: str, packed: bool, labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.sources.streams.CHUNK_BYTES", 4 * 35)  # four images at a time
    source = open_source(folder(tmp_path / "mnist", mnist(style, packed=packed, labels=labels)))
    assert (source.name, source.kind, source.bins, source.count()) == ("mnist", "IDX files", None, 39)
    check(source, labels=labels)
    assert {len(item.images) for item in source.items() if isinstance(item, Pixels)} == {4, 2, 1}
    assert source.notes == []


def test_below_other_folders_in_a_zip_and_in_a_bucket(tmp_path: Path, bucket: str) -> None:
    check(open_source(folder(tmp_path / "a", mnist(top="MNIST/raw/") | {"MNIST/readme.txt": b"hello"})))
    check(open_source(zipped(tmp_path / "a.zip", mnist(top="mnist/", packed=False))))
    remote = open_source(stored(f"{bucket}/mnist", mnist()))
    check(remote)
    assert remote.name == "mnist"


def test_an_unpacked_copy_beside_a_packed_one_is_taken_once(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "m", mnist() | mnist(packed=False)))
    check(source)
    assert source.notes == [
        f"{name}-images-idx3-ubyte.gz ignored: {name}-images-idx3-ubyte lies beside it" for name in ("t10k", "train")
    ]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(9, 5, 7), (9, 5, 7, 1), (9, 5, 7, 3)])
def test_one_file_of_images(tmp_path: Path, packed: bool, shape: tuple[int, ...]) -> None:
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "my.images"
    path.write_bytes(gzip.compress(idx_bytes(images)) if packed else idx_bytes(images))
    source = open_source(str(path))
    assert source.count() == 9
    assert (pixels_of(source)[None][0] == (images[..., 0] if shape[-1] == 1 else images)).all()
    before = source.fingerprint()
    images[0] ^= 1
    path.write_bytes(gzip.compress(idx_bytes(images)) if packed else idx_bytes(images))
    assert open_source(str(path)).fingerprint() != before


def another() -> dict[str, bytes]:
    """Another set of the same names and sizes."""
    files = mnist(top="again/", packed=False)
    return files | {"again/t10k-images-idx3-ubyte": idx_bytes(255 - TEST)}


def test_a_copy_in_folders_of_its_own_is_read_once(tmp_path: Path) -> None:
    files = mnist(".idx", packed=False)
    inside = {f"{name.replace('.idx', '-idx')}/{name.replace('.idx', '-idx')}": c for name, c in files.items()}
    source = open_source(folder(tmp_path / "m", files | inside))
    check(source)
    assert source.notes == [
        "files that lie there twice read once: those in t10k-images-idx3-ubyte/, train-images-idx3-ubyte/ ignored"
    ]


def test_labels_of_other_types_are_cast_or_left_out(tmp_path: Path) -> None:
    for kind, values in ((9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")):
        files = mnist() | {"train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(TRAIN_LABELS.astype(values), kind))}
        check(open_source(folder(tmp_path / str(kind), files)))
    files = mnist() | {"train-labels-idx1-ubyte.gz": gzip.compress(idx_bytes(TRAIN_LABELS + np.float32(0.5), 13))}
    source = open_source(folder(tmp_path / "half", files))
    assert pixels_of(source)["train"][1] is None
    assert source.notes == ["train-labels-idx1-ubyte.gz left out: labels that are not whole numbers"]
    files = {name: content for name, content in mnist().items() if "labels" not in name}
    files["train-labels-idx2-int.gz"] = gzip.compress(idx_bytes(np.zeros((30, 8), ">i4"), 12))
    source = open_source(folder(tmp_path / "many", files))
    check(source, labels=False)
    assert source.notes == ["train-labels-idx2-int.gz left out: not one label of a byte for each image"]


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.pop(name + ".gz") and None


def replaced(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({name + ".gz": content})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("t10k-images-idx3-ubyte"), r"no file of test images \(t10k-images-idx3-ubyte\)"),
        (without("train-images-idx3-ubyte"), r"no file of train images \(train-images-idx3-ubyte\)"),
        (replaced("train-images-idx3-ubyte", gzip.compress(idx_bytes(TRAIN)[:-1])), r"cut short: .*29 of .*30×5×7"),
        (replaced("train-images-idx3-ubyte", gzip.compress(idx_bytes(TRAIN) + b"x")), "more bytes than"),
        (replaced("train-images-idx3-ubyte", gzip.compress(idx_bytes(TRAIN))[:-9]), "damaged or cut short"),
        (replaced("train-images-idx3-ubyte", gzip.compress(idx_bytes(TRAIN))[:-5] + b"xxxxx"), "damaged or cut short"),
        (replaced("train-images-idx3-ubyte", gzip.compress(idx_bytes(TRAIN)[:9])), "cut short in its header"),
        (replaced("train-images-idx3-ubyte", gzip.compress(b"hello")), "not an IDX file of images"),
        (replaced("train-images-idx3-ubyte", gzip.compress(b"")), "not an IDX file of images .*nothing"),
        (replaced("train-images-idx3-ubyte", idx_bytes(TRAIN_LABELS)), "not an IDX file of images .*1 dimensions"),
        (replaced("train-images-idx3-ubyte", idx_bytes(TRAIN.astype(">f4"), 13)), "holds floats"),
        (replaced("train-images-idx3-ubyte", idx_bytes(TRAIN[:0])), "empty"),
        (replaced("train-images-idx3-ubyte", idx_bytes(TRAIN[..., None].repeat(2, 3))), "N×H×W×3"),
        (replaced("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\0\1\0\0" * 3), "damaged: its header promises"),
        (replaced("t10k-labels-idx1-ubyte", idx_bytes(TEST_LABELS[1:])), "8 labels for 9 images"),
        (replaced("t10k-labels-idx1-ubyte", idx_bytes(TEST_LABELS)[:-1]), "cut short: holds 8 of the 9 labels"),
        (replaced("t10k-labels-idx1-ubyte", idx_bytes(TEST)), "not an IDX file of labels"),
        (replaced("test-images-idx3-ubyte", idx_bytes(TEST)), "both test images"),
        (lambda files: files.update({"a.png": png()}), "image files .* and IDX or CIFAR files"),
        (lambda files: files.update(another()), "in it and in again/"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, spoil: Callable[[dict[str, bytes]], None], said: str
) -> None:
    files = mnist()
    spoil(files)
    with pytest.raises(ConfigError, match=said) as caught:
        list(open_source(folder(tmp_path / "m", files)).items())
    assert "\n" not in str(caught.value)


def test_images_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A header may promise more than there is memory for."""
    (tmp_path / "a").write_bytes(b"\0\0\x08\x03" + b"\xff\xff\xff\xff" + (5000).to_bytes(4, "big") * 2 + bytes(100))
    with pytest.raises(ConfigError, match=r"holds 0 of the 4,294,967,295 images"):
        list(open_source(str(tmp_path / "a")).items())


def test_names_of_relatives() -> None:
    for name in ("emnist-letters-train-images-idx3-ubyte.gz", "train-images.idx3-ubyte", "T10K-IMAGES-IDX3-UBYTE"):
        assert idx.is_idx_name(name)
    for name in ("train-labels-idx1-ubyte", "train-images", "images-idx3-ubyte", "train-images-idx3-ubyte.txt"):
        assert not idx.is_idx_name(name)
