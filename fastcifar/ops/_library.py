"""The namespace `fastcifar` in PyTorch's dispatcher: compiled kernels, and references where there are none.

`csrc/README.md` says how an op is added.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from fastcifar.errors import FastcifarError, UsageError
from fastcifar.text import did_you_mean, nearest

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = {"cpu": "_C", "cuda": "_C_cuda"}
# Where each library declares the schemas that it was built with. The CPU library declares the ops themselves.
_NAMESPACES = {"cpu": "fastcifar", "cuda": "fastcifar_cuda"}
_ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")  # in the order of csrc/cpu/isa.h
_fragment = torch.library.Library("fastcifar", "FRAGMENT")  # type: ignore[no-untyped-call]

# name of each op, backward ops included -> its reference in plain PyTorch
references: dict[str, Callable[..., Any]] = {}
# name of each op -> the types of the devices that it is for
device_types_of: dict[str, Collection[str]] = {}


def _of_build(device_type: str, key: str) -> Any:
    """What setup.py wrote down of one library; None if there is no such thing."""
    try:
        return json.loads((_PACKAGE / "_build.json").read_text(encoding="utf-8"))[device_type][key]
    except (OSError, ValueError, KeyError, TypeError):  # no file, or not the one that setup.py writes
        return None


def _load(device_type: str) -> str:
    """Loads one compiled library; returns why there is none, or an empty string."""
    if device_type == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA"
    if device_type == "cuda" and _why_not["cpu"]:
        return f"the schemas are missing: {_why_not['cpu']}"
    stem = _LIBRARIES[device_type]
    found = sorted(_PACKAGE.glob(f"{stem}.*so"))
    if not found:
        why = _of_build(device_type, "why") or "python setup.py build_ext --inplace makes it in a checkout"
        return f"the extension {stem} is not built ({why})"
    try:
        torch.ops.load_library(found[0])  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"the extension {found[0].name} does not load ({error})"
    return ""


_why_not: dict[str, str] = {}
for _device_type in _LIBRARIES:
    _why_not[_device_type] = _load(_device_type)


def available(device_type: str = "cpu") -> bool:
    """Whether the ops have compiled kernels; without them they run on their references.

    Args:
        device_type: `cpu` or `cuda`.
    """
    return not why_unavailable(device_type)


def why_unavailable(device_type: str = "cpu") -> str:
    """Why there are no compiled kernels.

    Args:
        device_type: `cpu` or `cuda`.

    Returns:
        A sentence, empty where there are kernels.
    """
    return _why_not[device_type]


@functools.cache
def compiled_capabilities() -> tuple[int, ...]:
    """The compute capabilities that the CUDA kernels are compiled for, as 90 for 9.0; none if they are not known."""
    return tuple(int(re.sub(r"\D", "", arch)) for arch in _of_build("cuda", "archs") or [])


def fingerprint(device_type: str) -> str:
    """A hash of the library with the compiled kernels; empty where there is none.

    Args:
        device_type: `cpu` or `cuda`.
    """
    found = sorted(_PACKAGE.glob(f"{_LIBRARIES[device_type]}.*so"))
    return hashlib.sha256(found[0].read_bytes()).hexdigest() if found else ""


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels use here.

    Returns:
        generic, avx2, avx512, avx512_bf16 or amx: the widest that both the library and this CPU have, or the one that
        the environment variable FASTCIFAR_ISA names. None where there are no kernels.

    Raises:
        UsageError: FASTCIFAR_ISA names an instruction set that is unknown, or that this CPU or this library lacks.
    """
    wanted = os.environ.get("FASTCIFAR_ISA", "")
    hint = did_you_mean(nearest(wanted.lower(), _ISAS))
    if not available("cpu"):
        if wanted and wanted not in _ISAS:
            raise UsageError(f"FASTCIFAR_ISA={wanted}: expected one of {', '.join(_ISAS)}{hint}")
        return None
    try:
        return _ISAS[torch.ops.fastcifar._cpu_isa()]
    except RuntimeError as error:
        _, name, text = str(error).partition("FASTCIFAR_ISA=")  # before it stands a place in the source
        raise UsageError(f"{name}{text.splitlines()[0]}{hint}") from None


@functools.cache
def _announce(device_type: str) -> None:
    warnings.warn(
        f"fastcifar's ops run on their plain PyTorch references on {device_type}, correct but slower: "
        f"{why_unavailable(device_type)}",
        stacklevel=2,
    )


def _stand_in(reference: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        _announce(device_type)
        return reference(*args, **kwargs)

    return kernel


def define(
    schema: str, reference: Callable[..., Any], device_types: Collection[str] = tuple(_LIBRARIES)
) -> Callable[..., Any]:
    """Makes one op known to PyTorch.

    A device without compiled kernels runs the reference. So does tracing, on tensors without data: the reference also
    says which shapes, dtypes and memory formats come out.

    Args:
        schema: as in the op's header in csrc/, to the letter: a library that was built with another one would read
            its arguments from the wrong places.
        reference: computes the same in plain PyTorch.
        device_types: of the devices that the op is for.

    Returns:
        The op.

    Raises:
        FastcifarError: a compiled library was built with another schema.
    """
    name = schema[: schema.index("(")]
    for device_type in device_types:
        if available(device_type):
            check_schema(_NAMESPACES[device_type], name, schema)
    if not available("cpu"):
        _fragment.define(schema)  # type: ignore[no-untyped-call]
    for device_type in device_types:
        if not available(device_type):
            stand_in = _stand_in(reference, device_type)
            _fragment.impl(name, stand_in, device_type.upper())  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fastcifar::{name}", reference)
    references[name], device_types_of[name] = reference, device_types
    op: Callable[..., Any] = getattr(torch.ops.fastcifar, name).default
    return op


def check_schema(namespace: str, name: str, schema: str) -> None:
    """Compares a schema with the one that a loaded library declares.

    Args:
        namespace: where the library declares it.
        name: of the op.
        schema: as Python has it.

    Raises:
        FastcifarError: the two differ, or the library does not have the op.
    """
    compiled = getattr(getattr(getattr(torch.ops, namespace), name, None), "default", None)
    if compiled is None or str(compiled._schema) != str(torch._C.parse_schema(f"{namespace}::{schema}")):
        raise FastcifarError(
            f"the compiled extension is of another version than the Python code ({name} differs); "
            "build it again: python setup.py build_ext --inplace, or reinstall the package"
        )


def accumulate_dtype(x: torch.Tensor) -> torch.dtype:
    """float32 for the dtypes the kernels take; float64 for itself, so that references can be checked with gradcheck."""
    return torch.promote_types(x.dtype, torch.float32)


if available("cpu"):
    check_schema("fastcifar", "_cpu_isa", "_cpu_isa() -> int")
cpu_isa()  # a wrong FASTCIFAR_ISA is refused here, and not by the first op amid a run
