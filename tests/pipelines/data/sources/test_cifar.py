"""CIFAR's batches in their published layouts, and pickles that want more than to be data."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.data.sources import open_source
from pipelines.data.sources.plain_pickle import PlainArray, load_plain
from tests.pipelines.data.source_builders import folder, pixels_of, png, stored, tar, zipped

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
NAMES10 = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
NAMES100 = [b"class%d" % number for number in range(100)]
COUNT = 7
PLANES = RNG.integers(0, 256, (6, COUNT, 3072), dtype=np.uint8)
LABELS = RNG.integers(0, 10, (6, COUNT))
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its texts, and arrays as its numpy did: as the published files are."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_global(self, value: Any, name: str | None = None) -> None:
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)


def python2(value: object) -> bytes:
    buffer = io.BytesIO()
    _Python2(buffer, 2).dump(value)
    content = buffer.getvalue()
    assert b"_codecs" not in content
    return content


def cifar10_python(dumps: Callable[[object], bytes] = python2) -> dict[str, bytes]:
    files = {}
    for number, name in enumerate(BATCHES):
        files[f"cifar-10-batches-py/{name}"] = dumps(
            {
                b"batch_label": b"batch",
                b"labels": LABELS[number].tolist(),
                b"data": PLANES[number],
                b"filenames": [b"x.png"] * COUNT,
            }
        )
    meta = dumps({b"num_cases_per_batch": COUNT, b"label_names": NAMES10, b"num_vis": 3072})
    # In the middle, as in the published archive.
    ordered = {"cifar-10-batches-py/data_batch_4": files["cifar-10-batches-py/data_batch_4"]}
    ordered |= {"cifar-10-batches-py/readme.html": b"<html>", "cifar-10-batches-py/batches.meta": meta}
    return ordered | files


def cifar10_binary() -> dict[str, bytes]:
    files = {
        f"cifar-10-batches-bin/{name}.bin": np.concatenate([labels[:, None], planes], 1).astype(np.uint8).tobytes()
        for name, labels, planes in zip(BATCHES, LABELS, PLANES, strict=True)
    }
    return files | {"cifar-10-batches-bin/batches.meta.txt": b"\n".join(NAMES10) + b"\n\n"}


def cifar100(binary: bool) -> dict[str, bytes]:
    if binary:
        coarse = np.full((COUNT, 1), 99)
        return {
            f"cifar-100-binary/{name}.bin": np.concatenate([coarse, LABELS[i][:, None], PLANES[i]], 1)
            .astype(np.uint8)
            .tobytes()
            for name, i in (("train", 0), ("test", 5))
        } | {"cifar-100-binary/fine_label_names.txt": b"\n".join(NAMES100)}
    return {
        f"cifar-100-python/{name}": python2(
            {b"data": PLANES[i], b"fine_labels": LABELS[i].tolist(), b"coarse_labels": [0] * COUNT}
        )
        for name, i in (("train", 0), ("test", 5))
    } | {"cifar-100-python/meta": python2({b"fine_label_names": NAMES100, b"coarse_label_names": []})}


def check10(source: Any, kind: str) -> None:
    assert source.kind == kind
    found = pixels_of(source)
    assert set(found) == {"train", "test"}
    pooled = {"train": range(5), "test": range(5, 6)}
    for split, batches in pooled.items():
        images, labels = found[split]
        expected = {
            PLANES[b, row].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): NAMES10[LABELS[b, row]].decode()
            for b in batches
            for row in range(COUNT)
        }
        assert {
            np.ascontiguousarray(i).tobytes(): label for i, label in zip(images, labels or (), strict=True)
        } == expected


PACKERS: dict[str, Callable[[Path, dict[str, bytes]], str]] = {
    "folder": lambda root, files: folder(root / "set", files),
    "tar.gz": lambda root, files: tar(root / "set.tar.gz", files),
    "zip": lambda root, files: zipped(root / "set.zip", files),
}


@pytest.mark.parametrize("packing", PACKERS)
def test_cifar10(tmp_path: Path, packing: str) -> None:
    (tmp_path / "b").mkdir()
    source = open_source(PACKERS[packing](tmp_path, cifar10_python()))
    check10(source, "CIFAR-10 python batches")
    assert source.notes == []
    assert source.fingerprint() == open_source(str(next(tmp_path.glob("set*")))).fingerprint()
    check10(open_source(PACKERS[packing](tmp_path / "b", cifar10_binary())), "CIFAR-10 binary batches")


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("binary", [True, False])
def test_cifar100_has_its_fine_classes(tmp_path: Path, packing: str, binary: bool) -> None:
    source = open_source(PACKERS[packing](tmp_path, cifar100(binary)))
    assert source.kind == f"CIFAR-100 {'binary' if binary else 'python'} batches"
    found = pixels_of(source)
    for split, number in (("train", 0), ("test", 5)):
        images, labels = found[split]
        assert (images == PLANES[number].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
        assert labels == [f"class{label}" for label in LABELS[number]]


def test_in_a_bucket_and_as_the_folder_itself(tmp_path: Path, bucket: str) -> None:
    check10(open_source(stored(f"{bucket}/cifar", cifar10_python())), "CIFAR-10 python batches")
    stored(bucket, {"c.tar.gz": Path(tar(tmp_path / "c.tar.gz", cifar10_python())).read_bytes()})
    check10(open_source(f"{bucket}/c.tar.gz"), "CIFAR-10 python batches")
    check10(open_source(folder(tmp_path, cifar10_binary()) + "/cifar-10-batches-bin"), "CIFAR-10 binary batches")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    """Also with a plain list for protocol 5's arrays, which are written another way."""

    def dumps(value: Any) -> bytes:
        if protocol == 5 and b"data" in value:  # out-of-band buffers: not how CIFAR comes
            return pickle.dumps(value, 4)
        return pickle.dumps(value, protocol)

    check10(open_source(folder(tmp_path / "set", cifar10_python(dumps))), "CIFAR-10 python batches")


def test_without_class_names_numbers_are_classes(tmp_path: Path) -> None:
    files = cifar10_binary()
    del files["cifar-10-batches-bin/batches.meta.txt"]
    source = open_source(folder(tmp_path / "set", files))
    assert set(pixels_of(source)["test"][1] or ()) == {str(label) for label in LABELS[5]}
    assert source.notes == ["no batches.meta.txt: classes are named by their numbers"]


class Hostile:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("where", ["data_batch_3", "batches.meta"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, packing: str, where: str) -> None:
    victim = tmp_path / "pwned"
    for call in (
        Hostile(os.system, f"touch {victim}"),
        Hostile(Path.touch, victim),
        Hostile(open, str(victim), "w"),
        Hostile(eval, f"open({str(victim)!r}, 'w')"),
    ):
        files = cifar10_python() | {f"cifar-10-batches-py/{where}": pickle.dumps({b"data": call}, 2)}
        with pytest.raises(ConfigError, match=rf"{where}: names \S+: only plain data is read"):
            list(open_source(PACKERS[packing](tmp_path, files)).items())
        assert not victim.exists()
    with pytest.raises(ConfigError, match=r"names posix\.system"):
        load_plain(io.BytesIO(pickle.dumps(Hostile(os.system, "true"))), "a")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 3072)), "array of type 'f8'"),
        (np.array([{}], object), "array of type 'O8'"),
        (np.float64(3), "an array of type .f8.: only whole numbers"),
        (complex(1, 2), "names .*complex"),
        ({1, 2}, "names .*set"),
        (bytearray(b"x"), "names .*bytearray"),
        (np.ndarray, "not a CIFAR batch"),
    ],
)
def test_only_plain_data_is_read(tmp_path: Path, value: object, said: str) -> None:
    files = cifar10_python() | {"cifar-10-batches-py/data_batch_1": pickle.dumps({b"data": value}, 2)}
    with pytest.raises(ConfigError, match=said):
        list(open_source(folder(tmp_path / "set", files)).items())


def test_a_pickle_cannot_change_what_it_names() -> None:
    for module, name in (("numpy", "dtype"), ("_codecs", "encode"), ("numpy", "ndarray")):
        content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"}X\x01\x00\x00\x00ak\x01sb.".replace(b"k", b"K")
        pickletools.dis(content, out=io.StringIO())
        with pytest.raises(ConfigError, match="changes what it names"):
            load_plain(io.BytesIO(content), "a")


def test_arrays_keep_shape_and_order() -> None:
    for array in (PLANES[0], np.asfortranarray(PLANES[0]), PLANES[:0], PLANES[0][::2]):
        loaded = load_plain(io.BytesIO(pickle.dumps(array, 2)), "a")
        assert isinstance(loaded, PlainArray)
        assert (loaded.array == array).all()
        assert loaded.array.shape == array.shape


@given(st.data())
def test_a_damaged_pickle_is_one_line(data: st.DataObject) -> None:
    content = bytearray(python2({b"data": PLANES[0, :2, :30], b"labels": [1, 2], b"x": {b"y": [None, True, 1.5, "z"]}}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    if any(op.name in ("LONG_BINPUT", "BINUNICODE8", "BINBYTES8") for op, _, _ in _opcodes(content)):
        return
    try:
        load_plain(io.BytesIO(content), "a")
    except ConfigError as error:
        assert "\n" not in str(error)


def _opcodes(content: bytes) -> list[Any]:
    found = []
    try:
        for opcode in pickletools.genops(bytes(content)):
            found.append(opcode)
    except Exception:  # noqa: BLE001 (whatever pickletools makes of random bytes)
        pass
    return found


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        (key,) = [key for key in files if key.endswith("/" + name)]
        files[key] = change(files[key])

    return apply


def batch(**changes: object) -> Callable[[bytes], bytes]:
    held: dict[bytes, object] = {b"data": PLANES[0], b"labels": [1] * COUNT}
    return lambda _: python2(held | {key.encode(): value for key, value in changes.items()})


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil("data_batch_2", batch(data=None)), "data_batch_2: holds no data"),
        (spoil("data_batch_2", batch(data=PLANES[0][:, :9])), "data_batch_2: holds no data"),
        (spoil("data_batch_2", batch(labels=[1])), "needs a list of 7 numbers as labels"),
        (spoil("data_batch_2", batch(labels=["cat"] * COUNT)), "needs a list of 7 numbers"),
        (spoil("data_batch_2", batch(labels=[10] * COUNT)), "has label 10, but there are 10 classes"),
        (spoil("data_batch_2", lambda content: content[:-900]), "data_batch_2: not a complete pickle"),
        (spoil("data_batch_2", lambda content: b""), "data_batch_2: not a complete pickle"),
        (spoil("data_batch_2", lambda content: b"hello"), "data_batch_2: not a complete pickle"),
        (spoil("batches.meta", lambda content: python2([1])), "batches.meta: holds no label_names"),
        (lambda files: files.pop("cifar-10-batches-py/data_batch_5"), "holds no data_batch_5"),
        (lambda files: files.pop("cifar-10-batches-py/test_batch"), "holds no test_batch"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, packing: str, change: Callable[[dict[str, bytes]], None], said: str
) -> None:
    files = cifar10_python()
    change(files)
    with pytest.raises(ConfigError, match=said) as caught:
        list(open_source(PACKERS[packing](tmp_path, files)).items())
    assert "\n" not in str(caught.value)


def test_a_binary_batch_of_a_wrong_length_and_images_beside(tmp_path: Path) -> None:
    files = cifar10_binary()
    files["cifar-10-batches-bin/data_batch_2.bin"] += b"x"
    with pytest.raises(ConfigError, match=r"data_batch_2.bin: its length is no multiple of 3073"):
        list(open_source(folder(tmp_path / "a", files)).items())
    with pytest.raises(ConfigError, match="holds image files .* and IDX or CIFAR files"):
        open_source(folder(tmp_path / "b", cifar10_binary() | {"x.png": png()}))
