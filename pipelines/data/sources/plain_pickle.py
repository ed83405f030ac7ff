"""Safe loading of pickles: numbers, texts, lists, dicts and arrays of them. No function that a pickle names is run."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from fvae.config import ConfigError
from pipelines.storage import StorageError

_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a damaged pickle makes ``Unpickler`` raise: it is a small machine that runs whatever bytes it is given."""


class RefusedPickle(ConfigError):
    """A pickle that is damaged, or that asks for more than plain data."""


def load_plain(file: BinaryIO, where: str) -> Any:
    """The object of a pickle; texts of Python 2 stay ``bytes``, arrays are read-only.

    Raises ``ConfigError``, one line, for a damaged pickle and for one that names anything but the
    reconstruction of an array of whole numbers.
    """
    try:
        return _PlainUnpickler(file, encoding="bytes").load()
    except StorageError:
        raise
    except RefusedPickle as error:
        raise ConfigError(f"{where}: {error}") from error
    except _DAMAGED as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where}: not a complete pickle ({cause}); get a complete copy and try again") from error


class PlainArray:
    """An array of a pickle: :attr:`array` holds whole numbers, read-only, on the pickle's own bytes."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        self._fill(shape, kind, "F" if fortran else "C", content)

    def _fill(self, shape: Any, kind: Any, order: Any, content: Any) -> None:
        if not isinstance(kind, _Type) or not isinstance(content, (bytes, bytearray)):
            raise RefusedPickle("holds an array of objects: only whole numbers are read")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise RefusedPickle("holds an array without a shape: only plain data is read")
        if math.prod(shape) * kind.dtype.itemsize != len(content) or order not in ("C", "F"):
            raise RefusedPickle(f"holds an array of {len(content)} bytes and shape {shape}")
        self.array = np.frombuffer(bytes(content), kind.dtype).reshape(shape, order=order)


class _Type:
    """The type of an array: whole numbers of 1 to 8 bytes."""

    __slots__ = ("dtype",)

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order; alignment means nothing here."""
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise RefusedPickle("holds an array of an unknown byte order: only plain data is read")
        self.dtype = np.dtype(f"{order}{self.dtype.str[1:]}")


class _StandIn:
    """What a pickle gets where it names a function: it can be called, and not changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickle("changes what it names: only plain data is read")


def _array(*_: Any) -> PlainArray:
    return PlainArray()


def _array_type(*_: Any) -> None:
    raise RefusedPickle("makes an array without content: only plain data is read")


def _type(name: Any = None, *_: Any) -> _Type:
    text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    if text not in _TYPES:
        raise RefusedPickle(f"holds an array of type {text[:20]!r}: only whole numbers are read")
    return _Type(text)


def _from_buffer(content: Any = None, kind: Any = None, shape: Any = None, order: Any = None, *_: Any) -> PlainArray:
    """How protocol 5 holds an array."""
    made = PlainArray()
    made._fill(shape, kind, order, content)
    return made


def _scalar(kind: Any = None, content: Any = None, *_: Any) -> int:
    made = PlainArray()
    made._fill((), kind, "C", content)
    return int(made.array)


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """How Python 3 writes bytes into pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "utf-8", b"utf-8"):
        raise RefusedPickle(f"encodes as {str(encoding)[:20]!r}: only plain data is read")
    return text.encode("utf-8" if "8" in str(encoding) else "latin-1")


def _no_bytes(*arguments: Any) -> bytes:
    """How Python 3 writes empty bytes into pickles that Python 2 can read."""
    if arguments:
        raise RefusedPickle("makes bytes of something else: only plain data is read")
    return b""


_TYPES = ("u1", "|u1", "B", "uint8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)))
# numpy's own functions would take shapes, types and sizes from the file unseen.
_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": _array_type,
    "numpy.dtype": _type,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise RefusedPickle(f"names {module}.{name}: only plain data is read")
        return _StandIn(found)
