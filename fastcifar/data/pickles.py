"""Reading pickles safely: only byte strings, numbers, lists, dicts and plain arrays are built; nothing is run."""

import io
import pickle
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.accepted import SAVE_AS_NPZ
from fastcifar.data.foreign import foreign_kind
from fastcifar.errors import DataError


class PlainArray:
    """Stands in for numpy.ndarray and for the call that makes an array. It keeps the state, and runs nothing."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def rows(self, where: str) -> NDArray[np.uint8]:
        """The array as rows of pixels.

        Args:
            where: the file, for messages.

        Returns:
            uint8 [N, 3072].

        Raises:
            DataError: the array has another dtype or shape.
        """
        match self.state:
            case (_, (int() as rows, 3072), _DType(code="u1"), fortran, bytes() as raw) if len(raw) == rows * 3072:
                return np.frombuffer(raw, dtype=np.uint8).reshape(rows, 3072, order="F" if fortran else "C")
            case (_, shape, _DType(code=code), *_):
                raise DataError(f"{where}: 'data' is an array of {shape} {code}, not N x 3072 bytes (u1) in rows")
        raise DataError(f"{where}: 'data' is not a plain array")

    def whole_numbers(self) -> list[int] | None:
        """The array as a list; None if it does not have one dimension and an integer dtype."""
        match self.state:
            case (_, (int() as count,), _DType() as dtype, _, bytes() as raw):
                numpy_type = dtype.of_whole_numbers()
                if numpy_type is not None and len(raw) == count * numpy_type.itemsize:
                    return [int(value) for value in np.frombuffer(raw, numpy_type)]
        return None


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        """Keeps the byte order. The rest of the state does not concern plain numbers."""
        match state:
            case (_, "<" | b"<" | ">" | b">" as order, *_):
                self.order = order.decode() if isinstance(order, bytes) else order

    def of_whole_numbers(self) -> np.dtype[Any] | None:
        """NumPy's dtype if this is an integer dtype, else None."""
        if isinstance(self.code, str) and re.fullmatch("[iu][1248]", self.code):
            return np.dtype(self.order + self.code)
        return None


class _FromBuffer:
    """Stands in for numpy's _frombuffer, with which pickle protocol 5 makes an array."""

    def __new__(cls, buffer: object = b"", dtype: object = None, shape: object = (), order: object = "C") -> Any:
        if not isinstance(buffer, bytes | bytearray):
            raise pickle.UnpicklingError(f"an array of a {type(buffer).__name__}")
        array = PlainArray()
        array.state = (1, shape, dtype, order in ("F", b"F"), bytes(buffer))
        return array

    def __setstate__(self, state: object) -> None:
        """Does nothing. It prevents a pickle from setting attributes of the class."""


class _Scalar:
    """Stands in for numpy's scalar, with which a pickle holds a number taken from an array."""

    def __new__(cls, dtype: object = None, raw: object = b"") -> Any:
        numpy_type = dtype.of_whole_numbers() if isinstance(dtype, _DType) else None
        if numpy_type is None or not isinstance(raw, bytes) or len(raw) != numpy_type.itemsize:
            raise pickle.UnpicklingError("a NumPy number that is no whole number")
        return int(np.frombuffer(raw, numpy_type)[0])

    def __setstate__(self, state: object) -> None:
        """Does nothing. It prevents a pickle from setting attributes of the class."""


class _Bytes:
    """Stands in for _codecs.encode, with which Python 3 writes byte strings for Python 2."""

    def __new__(cls, text: object = "", encoding: object = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"byte string encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """Does nothing. It prevents a pickle from setting attributes of the class."""


class _Unpickler(pickle._Unpickler):
    """Builds byte strings, numbers, lists, dicts and the stand-ins of arrays; refuses every other global.

    It extends the implementation in Python. The implementation in C takes gigabytes if one bit of a memo index is
    flipped, and is not faster on the published training file (0.2 s).
    """

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): PlainArray,
        ("numpy._core.multiarray", "_reconstruct"): PlainArray,
        ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
        ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
        ("numpy.core.multiarray", "scalar"): _Scalar,
        ("numpy._core.multiarray", "scalar"): _Scalar,
        ("numpy", "ndarray"): PlainArray,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global.

        Args:
            module: the module that the pickle names.
            name: the name in it.

        Raises:
            DataError: the global has no stand-in.
        """
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            wanted = f"{module}.{name}"
            raise DataError(
                f"it asks for {wanted if len(wanted) <= 80 else wanted[:77] + '...'}, which no CIFAR file needs. "
                f"It was not run; get the data from elsewhere, or if you trust the file, read it yourself and "
                f"{SAVE_AS_NPZ}"
            ) from None


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    """Reads the table in a CIFAR pickle.

    Args:
        content: the bytes of the file.
        where: what messages call the file.

    Returns:
        The values by key, with the keys as text. An array is a `PlainArray`.

    Raises:
        DataError: the pickle is damaged, needs more than plain data, or holds no table.
    """
    try:
        table = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where} is not a CIFAR pickle: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        kind = foreign_kind(content[:512])
        if kind is not None and kind[0] != "a pickle":
            raise DataError(f"{where} is {kind[0]}, not a CIFAR pickle: {kind[1]}") from None
        raise DataError(f"{where} is not a CIFAR pickle, or damaged ({type(error).__name__}: {error})") from error
    if not isinstance(table, dict):
        raise DataError(f"{where} is not a CIFAR pickle: it holds a {type(table).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in table.items()}
