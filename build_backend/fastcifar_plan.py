"""Decides which compiled ops are built here, and for which processors. setup.py prints why, and builds them."""

import functools
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
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parents[1]

TORCH_MIN = (2, 10)
# In linking order: of an inline function that several objects hold the linker keeps the first, which every CPU can run.
ISAS_X86 = {
    "generic": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16", "-mamx-bf16", "-mprefer-vector-width=512"],
}
NVCC_MIN = (12, 0)
CUDA_ARCHS = ["75", "80", "86", "89", "90", "100", "120"]  # "all"; the last one as PTX too, for the GPUs to come
CUDA_MODES = ("auto", "0", "1", "wheel")


def say(message: str) -> None:
    print(f"fastcifar: {message}", flush=True)


def output_of(*command: str | Path) -> str:
    """What a command prints; "" where it fails or does not exist."""
    try:
        return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


CPU_KERNELS = sources("csrc/cpu/*_kernel.cpp")  # compiled once per ISA, without torch
CPU_OPS = [source for source in sources("csrc/*.cpp", "csrc/cpu/*.cpp") if source not in CPU_KERNELS]
CUDA_KERNELS = sources("csrc/cuda/*.cu")  # compiled by nvcc, without torch: it parses a source once per architecture
CUDA_OPS = sources("csrc/cuda/*.cpp")


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str
    cuda: bool


def find_torch() -> Torch | None:
    """The torch to build against. Its files are read, because importing it would take seconds."""
    spec = importlib.util.find_spec("torch")  # this environment, or pip's isolated one
    roots = [Path(spec.origin).parent] if spec and spec.origin else []
    roots.append(Path(sysconfig.get_path("purelib")) / "torch")  # the environment that pip installs into
    for root in roots:
        if (root / "version.py").exists():
            text = (root / "version.py").read_text()
            version = re.search(r"^__version__\b.*?'(.+)'", text, re.M)
            return Torch(root, version[1] if version else "0", bool(re.search(r"^cuda\b.*?'.+'", text, re.M)))
    return None


def find_cxx() -> list[str] | None:
    if wanted := os.environ.get("CXX", "").strip():
        try:
            command = shlex.split(wanted)
        except ValueError as error:
            raise PlatformError(f"CXX={wanted}: this is no command ({error})") from None
        if not shutil.which(command[0]):
            raise PlatformError(f"CXX={wanted}: there is no such compiler")
        return command
    return next(([name] for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def find_jobs() -> int:
    """How many compilers may run at a time."""
    wanted = os.environ.get("MAX_JOBS", "").strip()
    if wanted and not (wanted.isascii() and wanted.isdecimal() and int(wanted) > 0):
        raise PlatformError(f"MAX_JOBS={wanted}: expected a number of compilers, 1 or more")
    return int(wanted or os.cpu_count() or 1)


@dataclass(frozen=True)
class Nvcc:
    path: Path
    include: Path
    lib: Path
    version: str


def find_nvcc(mode: str) -> Nvcc | None:
    homes: list[Path] = []
    if mode != "wheel":
        homes += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        if on_path := shutil.which("nvcc"):
            homes.append(Path(on_path).resolve().parent.parent)
        homes.append(Path("/usr/local/cuda"))
    if spec := importlib.util.find_spec("nvidia"):  # NVIDIA's wheels: site-packages/nvidia/cu13
        homes += [home for path in spec.submodule_search_locations or () for home in Path(path).glob("cu13")]
    for home in homes:
        for lib in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            nvcc, include = home / "bin/nvcc", home / "include"
            if nvcc.exists() and (include / "cuda_runtime.h").exists() and (home / lib / "libcudart_static.a").exists():
                release = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
                return Nvcc(nvcc, include, home / lib, release[1] if release else "0.0")
    return None


class Plan:
    """What is built, with what and why.

    An error is kept as `refusal` until the build begins, because metadata can be had without a build.
    """

    torch: Torch | None = None
    cxx: list[str] | None = None
    nvcc: Nvcc | None = None
    jobs = 1
    builds_cpu = builds_cuda = False
    cpu_why = cuda_why = ""
    refusal: PlatformError | None = None

    def __init__(self) -> None:
        self.mode = os.environ.get("FASTCIFAR_CUDA", "auto")
        try:
            self.jobs = find_jobs()
            self._decide_cpu()
            self._decide_cuda()
        except PlatformError as error:
            self.refusal = error

    def _decide_cpu(self) -> None:
        self.cxx = find_cxx()
        self.torch = find_torch()
        if sys.platform != "linux":
            self.cpu_why = f"they are for Linux, and this is {sys.platform}"
        elif not self.cxx:
            self.cpu_why = "no C++ compiler was found (apt install g++, then build again)"
        elif not CPU_OPS:
            self.cpu_why = "csrc/ holds no sources"
        elif self.torch is None:
            raise PlatformError("there is no torch to build against: pip install torch==2.13.0, then fastcifar")
        elif version_of(self.torch.version) < TORCH_MIN:
            raise PlatformError(f"torch >= 2.10 is needed, and {self.torch.root} holds {self.torch.version}")
        else:
            self.builds_cpu, self.cpu_why = True, f"the C++ compiler {self.cxx[0]} is there"

    def _decide_cuda(self) -> None:
        if self.mode not in CUDA_MODES:
            raise PlatformError(f"FASTCIFAR_CUDA={self.mode}: allowed are {', '.join(CUDA_MODES)}")
        asked = self.mode in ("1", "wheel")
        if self.mode == "0":
            self.cuda_why = "FASTCIFAR_CUDA=0"
        elif not self.builds_cpu:
            self.cuda_why = self.cpu_why
        elif not CUDA_OPS:
            self.cuda_why = "csrc/cuda/ holds no sources"
        elif not asked and not self.torch.cuda:
            self.cuda_why = f"torch {self.torch.version} is not a CUDA build (FASTCIFAR_CUDA=1 builds them anyway)"
        elif not (nvcc := find_nvcc(self.mode)):
            self.cuda_why = "no nvcc with headers and libcudart_static.a was found"
            if self.mode != "wheel":
                self.cuda_why += " (FASTCIFAR_CUDA=wheel takes NVIDIA's from PyPI)"
            else:
                self.cuda_why += ": with --no-build-isolation, install the wheels named in build_backend/ first"
        else:
            self._check(nvcc)
            reason = f"FASTCIFAR_CUDA={self.mode}" if asked else f"torch {self.torch.version} is a CUDA build"
            where = "comes from PyPI" if self.mode == "wheel" else f"is {nvcc.path}"
            self.nvcc, self.builds_cuda, self.cuda_why = nvcc, True, f"{reason}, and nvcc {nvcc.version} {where}"
        if asked and not self.builds_cuda:
            raise PlatformError(f"FASTCIFAR_CUDA={self.mode} asks for the CUDA ops, but {self.cuda_why}")

    @staticmethod
    def _check(nvcc: Nvcc) -> None:
        found, major = f"{nvcc.path} is of CUDA {nvcc.version}", version_of(nvcc.version)[0]
        if version_of(nvcc.version) < NVCC_MIN:
            raise PlatformError(
                f"{found}, and 12.0 is the oldest that works: set CUDA_HOME to a newer one, take one from PyPI with "
                "FASTCIFAR_CUDA=wheel, or go without the CUDA ops with FASTCIFAR_CUDA=0"
            )
        driver = re.search(r"CUDA Version: (\d+)\.", output_of("nvidia-smi"))
        if driver and int(driver[1]) < major:
            raise PlatformError(
                f"{found}, and this machine's driver runs programs up to CUDA {driver[1]}: update the driver, set "
                f"CUDA_HOME to a CUDA {driver[1]}, or go without the CUDA ops with FASTCIFAR_CUDA=0"
            )

    @functools.cached_property
    def isas(self) -> dict[str, list[str]]:
        """The instruction sets that the kernels are compiled for, with the flags of each."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return {"generic": []}
        isas = {}
        for isa, flags in ISAS_X86.items():
            if subprocess.run([*self.cxx, *flags, "-xc++", "-E", "/dev/null"], capture_output=True).returncode == 0:
                isas[isa] = flags
            else:
                say(f"{self.cxx[0]} does not know {' '.join(flags)}: no kernels for {isa}")
        return isas or {"generic": []}

    @functools.cached_property
    def archs(self) -> list[str]:
        """The GPU architectures to compile for, as in "90" or "120+PTX"."""
        known = re.findall(r"compute_(\w+)", output_of(self.nvcc.path, "--list-gpu-arch"))
        gpus = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "").split()
        native = sorted({gpu for gpu in gpus if gpu.isdigit() and int(gpu) >= int(CUDA_ARCHS[0])})
        asked = os.environ.get("FASTCIFAR_CUDA_ARCHS") or ("native" if native and {*native} <= {*known} else "all")
        if asked == "all":
            archs = [arch for arch in CUDA_ARCHS if arch in known]
            if missing := [f"sm_{arch}" for arch in CUDA_ARCHS if arch not in known]:
                say(f"nvcc {self.nvcc.version} does not know {', '.join(missing)}: they run the PTX of sm_{archs[-1]}")
            return [*archs[:-1], f"{archs[-1]}+PTX"]
        archs = native if asked == "native" else [arch for arch in re.split(r"[;, ]+", asked) if arch]
        if unknown := [arch for arch in archs if arch.removesuffix("+PTX").rstrip("af") not in known]:
            raise PlatformError(
                f"FASTCIFAR_CUDA_ARCHS={asked}: {unknown[0]} is not known to nvcc {self.nvcc.version}, "
                f"which knows {', '.join(known)}"
            )
        if not archs:
            raise PlatformError(f"FASTCIFAR_CUDA_ARCHS={asked}: no architecture is named, or nvidia-smi finds no GPU")
        # Its PTX would run on GPUs newer than all of these, which the kernels' launches take for the newest of these.
        numbers = [int(re.sub(r"\D", "", arch)) for arch in archs]
        if early := [
            arch for arch, n in zip(archs, numbers, strict=True) if arch.endswith("+PTX") and n < max(numbers)
        ]:
            raise PlatformError(
                f"FASTCIFAR_CUDA_ARCHS={asked}: {early[0]}: only the newest architecture, {max(numbers)}, may have +PTX"
            )
        return archs

    def record(self, package: Path) -> None:
        """Writes `_build.json`, which `fastcifar doctor` reads, and removes libraries of an earlier, different plan."""
        cpu: dict[str, object] = {"built": self.builds_cpu, "why": self.cpu_why}
        cuda: dict[str, object] = {"built": self.builds_cuda, "why": self.cuda_why}
        about: dict[str, object] = {"cpu": cpu, "cuda": cuda}
        if self.builds_cpu:
            cpu["isas"] = list(self.isas)
            about |= {"torch": self.torch.version, "compiler": self.cxx_version}
        if self.builds_cuda:
            cuda |= {"archs": self.archs, "nvcc": self.nvcc.version}
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(about, indent=1) + "\n")
        for name, built in (("_C", self.builds_cpu), ("_C_cuda", self.builds_cuda)):
            if not built:
                (package / f"{name}.abi3.so").unlink(missing_ok=True)

    @functools.cached_property
    def cxx_version(self) -> str:
        return output_of(*self.cxx, "--version").partition("\n")[0]
