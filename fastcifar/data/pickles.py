"""Pickles without their danger: only byte strings, numbers, lists, dicts and one plain array are built from them."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.errors import DataError


class PlainArray:
    """Stands in for numpy.ndarray, and for the call that makes one: it takes the state down and runs nothing."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self, where: str) -> NDArray[np.uint8]:
        """The rows, uint8 [N, 3072]."""
        match self.state:
            case (_, (int() as rows, 3072), _DType(code="u1"), False | 0, bytes() as raw) if len(raw) == rows * 3072:
                return np.frombuffer(raw, dtype=np.uint8).reshape(rows, 3072)
            case (_, shape, _DType(code=code), *_):
                raise DataError(f"{where}: 'data' is an array of {shape} {code}, not N x 3072 bytes (u1) in rows")
        raise DataError(f"{where}: 'data' is not a plain array")


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing that one-byte numbers need."""


class _Bytes:
    """Stands in for _codecs.encode, by which Python 3 writes byte strings for Python 2."""

    def __new__(cls, text: object = "", encoding: object = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"byte string encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """There, like the others', so that no pickle can set attributes of the class."""


class _Unpickler(pickle._Unpickler):
    """Builds byte strings, numbers, lists, dicts and stand-ins of an array; refuses every other global.

    Python's own implementation, not the one in C, which takes gigabytes for one flipped bit in a memo index and, on the
    published training file, is no faster (0.2 s).
    """

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): PlainArray,
        ("numpy._core.multiarray", "_reconstruct"): PlainArray,
        ("numpy", "ndarray"): PlainArray,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"it asks for {module}.{name}, which no CIFAR file needs. It was not run; get the data from elsewhere"
            ) from None


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        table = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where} is not a CIFAR pickle: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DataError(f"{where} is not a CIFAR pickle, or damaged ({type(error).__name__}: {error})") from error
    if not isinstance(table, dict):
        raise DataError(f"{where} is not a CIFAR pickle: it holds a {type(table).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in table.items()}
