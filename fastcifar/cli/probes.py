"""What the doctor finds: what this machine has, what it lacks, and what to do about that.

Nothing here uses the network.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fastcifar
from fastcifar import machine
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.run import environment
from fastcifar.text import quoted

TORCH_MIN = (2, 10)
PACKAGES = {
    "numpy": "numpy",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "platformdirs": "platformdirs",
    "filelock": "filelock",
    "PIL": "pillow",
    "jinja2": "jinja2",
    "pynvml": "nvidia-ml-py",
}
"""What pyproject.toml requires beside torch: module -> distribution."""

_SETS = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX512_BF16", "amx": "AMX"}
"""Levels of `machine.CPU_LEVELS`, as their makers write them."""

_DATA_GIB, _RUN_GIB = 1.0, 0.5  # the archive, its decoded copy and a margin; checkpoints, two at a time, and the rest


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `note` (works, but could be better) or `problem` (something will not work)."""

    status: Literal["ok", "note", "problem"]
    name: str
    text: str
    advice: str = ""
    fatal: bool = False  # nothing can be trained
    device: str = ""  # that can train, of a GPU without a problem


def examine() -> Iterator[Finding]:
    """All findings. A probe that fails is itself a finding."""
    for name, probe, fatal in PROBES:
        try:
            yield from probe()
        except Exception as error:
            text = f"could not be examined: {_reason(error)}"
            # A package that is missing has a line of its own.
            yield Finding("note" if isinstance(error, ModuleNotFoundError) else "problem", name, text, fatal=fatal)


# ---- the probes: each yields the findings of one thing ----


def _fastcifar() -> Iterator[Finding]:
    root = Path(fastcifar.__file__).resolve().parent.parent
    text = f"{fastcifar.__version__} in {root}"
    if source := environment.commit(root):
        commit = source["commit"] and source["commit"][:12] + (", changed since" if source["dirty"] else "")
        text += f", commit {commit or 'unknown: ' + source['reason']}"
    yield Finding("ok", "fastcifar", text)
    from fastcifar.presets import list_presets

    yield Finding("ok", "presets", ", ".join(preset.name for preset in list_presets()))


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()}, {sys.executable}")


def _packages() -> Iterator[Finding]:
    found, missing = [], []
    for module, distribution in PACKAGES.items():
        if _spec(module):
            found.append(f"{distribution} {_version(distribution)}")
        else:
            missing.append(distribution)
    if missing:
        advice = f"{quoted(sys.executable)} -m pip install {' '.join(missing)}"
        yield Finding("problem", "packages", f"missing: {', '.join(missing)}", advice, fatal=True)
    else:
        yield Finding("ok", "packages", ", ".join(found))


def _torch() -> Iterator[Finding]:
    pip = f"{quoted(sys.executable)} -m pip install 'torch>={'.'.join(map(str, TORCH_MIN))}'"
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others
        yield Finding("problem", "torch", f"cannot be imported: {_reason(error)}", pip, fatal=True)
        return
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    text = f"{torch.__version__}, a {kind} build"
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_MIN:
        yield Finding("problem", "torch", f"{text}, is too old", pip, fatal=True)
    else:
        yield Finding("ok", "torch", text)


def _cpu() -> Iterator[Finding]:
    processor = machine.cpu()
    cores = environment.usable_cores() or os.cpu_count() or 1
    sets = ", ".join(_SETS[level] for level in machine.CPU_LEVELS[1:] if processor.has(level)) or "no AVX2"
    text = f"{processor.model}, {cores:g} core{'s' * (cores != 1)}, {environment.memory_gib()} GiB of memory, {sets}"
    if processor.level is None:
        yield Finding("note", "cpu", f"{text}: its instruction sets are not known on {platform.system()}")
    elif processor.has_fast_bf16:
        yield Finding("ok", "cpu", f"{text}: bf16 is fast, and precision = auto takes it")
    elif processor.has("avx512_bf16"):
        limit = f"ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA')}"
        yield Finding(
            "note", "cpu", f"{text}: with {limit} bf16 is slower than fp32, which precision = auto takes", "Unset it."
        )
    else:
        yield Finding(
            "note", "cpu", f"{text}: without AVX512_BF16 or AMX bf16 is slower than fp32, which precision = auto takes"
        )


def _threads() -> Iterator[Finding]:
    import torch

    cores = environment.usable_cores() or 1
    if (threads := torch.get_num_threads()) < int(cores):
        cause = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else "its setting"
        advice = f"Unset it, or set it to {int(cores)}, for full speed."
        yield Finding("note", "threads", f"PyTorch uses {threads} of {int(cores)} cores, by {cause}", advice)


def _gpu() -> Iterator[Finding]:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            driver = str(pynvml.nvmlSystemGetDriverVersion())
            names = [_nvml_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
        absent = "" if names else f"driver {driver}, but no GPU"
    except Exception as error:
        driver, names, absent = "", [], _reason(error)
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        if not names:
            yield Finding("note", "gpu", f"none to be seen ({absent}): training runs on the CPU")
        elif torch.version.cuda is None:
            advice = (
                "Install a CUDA build of PyTorch in its place (https://pytorch.org/get-started/locally), then build "
                "fastcifar again."
            )
            yield Finding("problem", "gpu", f"{', '.join(names)}, driver {driver}, but torch is a CPU build", advice)
        elif (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            advice = "Unset it to use the GPU."
            yield Finding("note", "gpu", f"{', '.join(names)}, hidden by CUDA_VISIBLE_DEVICES={visible!r}", advice)
        else:
            advice = f"The driver may be too old for CUDA {torch.version.cuda}: update it, or install a torch for it."
            text = f"{', '.join(names)}, driver {driver}, but PyTorch cannot use it"
            if caught:
                text += f": {' '.join(str(caught[0].message).split())}"
            yield Finding("problem", "gpu", text, advice)
        return
    compiled = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        free = torch.cuda.mem_get_info(index)[0]
        device = f"cuda:{index}"
        text = (
            f"{device}, {properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{free / 2**30:.1f} of {properties.total_memory / 2**30:.1f} GiB free, driver {driver or 'unknown'}, "
            f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
        )
        if compiled and not any(_runs_on(arch, capability) for arch in compiled):
            advice = f"This torch has kernels for {', '.join(compiled)}: install one made for this GPU."
            yield Finding("problem", "gpu", text, advice)
            continue
        torch.ones(1, device=device).sum().item()  # what else is wrong shows itself here
        if free < 2 * 2**30:
            advice = "Other programs hold its memory: training may run out of it."
            yield Finding("note", "gpu", text, advice, device=device)
        else:
            yield Finding("ok", "gpu", text, device=device)


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU of `capability` runs code for `arch`.

    It runs code of its own major version and of no later minor version, and PTX (`compute_80`) of any earlier version.
    """
    kind, _, digits = arch.partition("_")
    if not (parts := re.fullmatch(r"(\d+)(\d)([af]?)", digits)):
        return False
    major, minor = int(parts[1]), int(parts[2])
    if parts[3]:  # sm_90a, sm_100f: for that one alone, or its family
        return major == capability[0]
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def _nvml_gpu(pynvml: Any, index: int) -> str:
    return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))


def _compiler() -> Iterator[Finding]:
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    path = next(filter(None, map(shutil.which, wanted or ("g++", "clang++", "c++"))), None)
    purpose = "engine = compiled and building the extension need one"
    if path is None:
        text = f"CXX={os.environ['CXX']}: there is no such compiler" if wanted else f"none found: {purpose}"
        yield Finding("problem", "compiler", text, "Unset CXX." if wanted else "apt install g++")
        return
    yield Finding("ok", "compiler", f"{_first_line(path, '--version')}, {path}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():  # Inductor's and Triton's launchers include it
        advice = f"apt install python{sys.version_info.major}.{sys.version_info.minor}-dev"
        yield Finding("problem", "headers", f"{header} is missing: engine = compiled needs it", advice)


def _triton() -> Iterator[Finding]:
    import torch

    if _spec("triton"):
        yield Finding("ok", "triton", f"{_version('triton')}, for engine = compiled on CUDA")
    elif torch.version.cuda:
        advice = f"{quoted(sys.executable)} -m pip install triton (torch names the version it wants)"
        yield Finding("problem", "triton", "not installed: engine = compiled on CUDA needs it", advice)


def _extension() -> Iterator[Finding]:
    import torch

    package = Path(fastcifar.__file__).resolve().parent
    try:
        built = json.loads((package / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        built = {}
    if not _spec("fastcifar.ops"):
        yield Finding("problem", "extension", "fastcifar.ops is missing", "Install fastcifar again.")
        return
    try:
        ops = importlib.import_module("fastcifar.ops")
    except FastcifarError as error:  # a wrong FASTCIFAR_ISA, or a library of another version
        yield Finding("problem", "extension", str(error), fatal=True)
        return
    for device, stem in (("cpu", "_C"), ("cuda", "_C_cuda")):
        found = sorted(path.name for path in package.glob(f"{stem}.*so"))
        why = ops.why_unavailable(device)
        name = f"{device} ops"
        about = built.get(device, {})
        if not why:
            kernels = about.get("isas") or [f"sm_{arch}" for arch in about.get("archs", [])]
            text = f"{found[0]} is loaded" + (f", with kernels for {', '.join(kernels)}" if kernels else "")
            if device == "cuda":
                yield Finding("ok", name, text)
                yield from _checks()
                continue
            isa = ops.cpu_isa()
            text += f"; here {isa}, with its own products, which were measured to be faster than PyTorch's"
            if isa == "avx512_bf16" and machine.cpu().has("amx") and not os.environ.get("FASTCIFAR_ISA"):
                text += "; the processor has AMX too, but Linux refused its tile registers to this process"
                advice = "Linux gives them from 5.16 on, and a container's seccomp profile may forbid arch_prctl."
                yield Finding("note", name, text, advice)
            else:
                yield Finding("ok", name, text)
        elif device == "cuda" and torch.version.cuda is None:
            if found:
                yield Finding("ok", name, f"{found[0]} is there, and waits for a CUDA build of torch")
        else:
            advice = (
                "Engines other than fused do not need it. To build it: pip install --no-build-isolation -e . in a "
                "checkout; `nvcc` and `compiler` here say with what."
            )
            yield Finding("problem" if found else "note", name, f"on the slower PyTorch reference: {why}", advice)


def _checks() -> Iterator[Finding]:
    """The CUDA ops on each GPU: checked again, whatever an earlier check found."""
    import torch

    from fastcifar import selfcheck

    for index, gpu in enumerate(machine.this().gpus):
        if why_not := selfcheck.run(torch.device("cuda", index)):
            advice = "engine = auto takes compiled on it. Build the extension again, or report this."
            yield Finding("problem", "cuda check", f"cuda:{index}, {gpu.name}: {why_not}", advice)
        else:
            yield Finding("ok", "cuda check", f"cuda:{index}, {gpu.name}: each op computes what its reference does")


def _loaders() -> Iterator[Finding]:
    """What the loaders beside the resident one need: optional, and imported to see whether it works."""
    from fastcifar.loaders.dali import import_dali
    from fastcifar.loaders.torchvision_import import import_torchvision

    optional: tuple[tuple[str, str, str, Callable[[], Any]], ...] = (
        ("torchvision", "torchvision", "torchvision", import_torchvision),
        ("dali", "nvidia.dali", "nvidia-dali-cuda130", import_dali),
    )
    for name, module, distribution, load in optional:
        if not _spec(module):
            text = f"not installed; only loader = {name} needs it: pip install 'fastcifar[{name}]'"
            yield Finding("ok", name, text)
            continue
        try:
            load()
        except UsageError as error:
            yield Finding("note", name, f"loader = {name} does not work: {_reason(error)}")
        else:
            yield Finding("ok", name, f"{_version(distribution)}, for loader = {name}")


def _nvcc() -> Iterator[Finding]:
    import torch

    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(home) / "bin/nvcc" for home in homes]
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    if spec := importlib.util.find_spec("nvidia"):
        candidates += [p for folder in spec.submodule_search_locations or () for p in Path(folder).glob("cu*/bin/nvcc")]
    for path in candidates:
        if path.exists():
            release = re.search(r"release ([\d.]+)", _output(path, "--version"))
            yield Finding("ok", "nvcc", f"CUDA {release[1] if release else 'unknown'}, {path}")
            return
    if torch.version.cuda:
        advice = "Only building the CUDA ops needs one: set CUDA_HOME, or install with FASTCIFAR_CUDA=wheel."
        yield Finding("note", "nvcc", "none found", advice)


def _data() -> Iterator[Finding]:
    from safetensors import safe_open

    from fastcifar.data.cache import default_folder

    try:
        folder = default_folder()
        is_there = folder.is_dir()
    except OSError as error:
        advice = "FASTCIFAR_DATA=FOLDER chooses another one."
        yield Finding("problem", "data cache", f"{error.filename}: {error.strerror}", advice)
        return
    except DataError as error:  # no home folder, or a FASTCIFAR_DATA that is none
        yield Finding("note", "data cache", f"there is none: {error}", "FASTCIFAR_DATA=FOLDER chooses one.")
        return
    held: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")) if is_there else ():
        try:
            with safe_open(path, framework="np") as entry:
                name = str(json.loads((entry.metadata() or {})["meta"])["name"])
        except Exception as error:
            yield Finding("note", "data", f"{path} cannot be read: {_reason(error)}", "It is made anew when needed.")
            continue
        if path.stem == name or name not in held:
            held[name] = path
    if "cifar100" in held:
        size = held["cifar100"].stat().st_size / 2**20
        where = f"cached in {held['cifar100']}, {size:,.0f} MiB"
        if held["cifar100"].stem == "cifar100":
            yield Finding("ok", "cifar100", where)
        else:
            advice = "Decoded from a path: give that path with --data."
            yield Finding("ok", "cifar100", where, advice)
    else:
        advice = (
            "Give the published archive, its folder or an .npz with --data PATH, or download it with `fastcifar data "
            "get cifar100` (136 to 161 MiB). `--preset quick` needs nothing."
        )
        yield Finding("note", "cifar100", f"not in the cache {folder}", advice)
    if others := sorted(held.keys() - {"cifar100"}):
        yield Finding("ok", "other data", f"cached: {', '.join(others)}")
    variable = "" if os.environ.get("FASTCIFAR_DATA") else "FASTCIFAR_DATA=FOLDER chooses another."
    yield _space("data cache", folder, _DATA_GIB, variable)


def _runs() -> Iterator[Finding]:
    yield _space("run folders", Path("runs").absolute(), _RUN_GIB, "--out DIR chooses another.")


def _space(name: str, folder: Path, needed_gib: float, advice: str) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    text = f"{folder}, {free:,.1f} GiB free"
    if not os.access(existing, os.W_OK):
        return Finding("problem", name, f"{text}, but {existing} cannot be written", advice)
    if free < needed_gib:
        return Finding("problem", name, f"{text}: {needed_gib:g} GiB are wanted", f"Make room. {advice}".strip())
    return Finding("ok", name, text)


PROBES: list[tuple[str, Callable[[], Iterator[Finding]], bool]] = [
    ("fastcifar", _fastcifar, False),
    ("python", _python, True),
    ("packages", _packages, True),
    ("torch", _torch, True),
    ("cpu", _cpu, False),
    ("threads", _threads, False),
    ("gpu", _gpu, False),
    ("compiler", _compiler, False),
    ("triton", _triton, False),
    ("extension", _extension, False),
    ("loaders", _loaders, False),
    ("nvcc", _nvcc, False),
    ("data", _data, False),
    ("run folders", _runs, False),
]
"""Name, probe, and whether nothing can be trained where the probe itself fails."""


def _spec(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout


def _first_line(*command: str) -> str:
    return (_output(*command).splitlines() or [f"{command[0]} says nothing of its version"])[0]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
