"""Builds the compiled ops: `fastcifar/_C` (CPU) and `fastcifar/_C_cuda` (CUDA). Other metadata is in pyproject.toml.

Both libraries use only LibTorch's stable ABI and hold no Python symbol, so that one build runs on torch >= 2.10 and
any CPython >= 3.10. What is built, and why or why not, is printed and kept in `fastcifar/_build.json`. Without a C++
compiler nothing is built, and the package runs on its PyTorch reference.

CXX                   the C++ compiler (default: the first found of g++, clang++, c++)
FASTCIFAR_CUDA        auto (default): `_C_cuda` if torch is a CUDA build and an nvcc is found; 0: never; 1: always,
                      whatever torch is; wheel: always, with the nvcc of NVIDIA's PyPI wheels (see build_backend/)
FASTCIFAR_CUDA_ARCHS  for example "80;90+PTX", "native" or "all" (default: native where there is a GPU, else all)
MAX_JOBS              compilers at a time (default: one a core)
"""

import functools
import hashlib
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
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError, PlatformError

ROOT = Path(__file__).resolve().parent
OBJECTS = Path("build/objects")  # setuptools' own build_temp is thrown away after an editable install

TORCH_MIN = (2, 10)
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10: one byte a part, 0x0210... would be 2.16
CXX_FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-Icsrc"]
OP_FLAGS = [*CXX_FLAGS, "-O2", TORCH_TARGET]
KERNEL_FLAGS = [*CXX_FLAGS, "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
# In linking order: of an inline function that several objects hold the linker keeps the first, which every CPU can run.
ISAS_X86 = {
    "generic": ["-march=x86-64-v2"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"],
}
# Line numbers are more than half of a kernel's object, and compress to a fifth: 10.2 MB an architecture are 2.3.
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xfatbin=-compress-all"]
NVCC_FLAGS += ["-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc"]
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
    """The torch to build against. Its files are read; importing it would take seconds."""
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
    if wanted := os.environ.get("CXX"):
        command = shlex.split(wanted)
        if not shutil.which(command[0]):
            raise PlatformError(f"CXX={wanted}: there is no such compiler")
        return command
    return next(([name] for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


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
    """What is built, with what and why. A refusal is kept until the build begins: metadata can be had without it."""

    torch: Torch | None = None
    cxx: list[str] | None = None
    nvcc: Nvcc | None = None
    builds_cpu = builds_cuda = False
    cpu_why = cuda_why = ""
    refusal: PlatformError | None = None

    def __init__(self) -> None:
        self.mode = os.environ.get("FASTCIFAR_CUDA", "auto")
        try:
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


@dataclass(frozen=True)
class Job:
    """One compilation: the object's folder is named after all that decides its content beside the sources."""

    source: str
    label: str
    command: list[str]
    versions: str

    @property
    def target(self) -> Path:
        key = hashlib.sha256("\0".join([*self.command, self.versions]).encode()).hexdigest()[:12]
        return OBJECTS / f"{self.label}-{key}" / f"{Path(self.source).name}.o"

    def is_fresh(self) -> bool:
        rule = self.target.with_suffix(".d")
        if not (self.target.exists() and rule.exists()):
            return False
        inputs = re.findall(r"(?:\\ |\S)+", rule.read_text().partition(": ")[2].replace("\\\n", " "))
        paths = [Path(name.replace("\\ ", " ")) for name in inputs]
        return all(path.exists() and path.stat().st_mtime < self.target.stat().st_mtime for path in paths)

    def compile(self) -> Path:
        if self.is_fresh():
            return self.target
        self.target.parent.mkdir(parents=True, exist_ok=True)
        partial = self.target.with_suffix(f".{os.getpid()}.o")  # two builds at a time do not disturb each other
        rule = ["-MMD", "-MF", str(self.target.with_suffix(".d"))]
        started = time.time_ns()
        command = [*self.command, *rule, "-c", self.source, "-o", str(partial)]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            partial.unlink(missing_ok=True)
            raise CompileError(f"{shlex.join([*self.command, self.source])}\n{done.stdout}")
        if self.source.endswith(".cu"):
            self.target.with_suffix(".ptxas").write_text(done.stdout)  # registers and spills of every kernel
        elif done.stdout:
            print(done.stdout, flush=True)
        os.utime(partial, ns=(started, started))  # a source saved meanwhile is newer, and is compiled again
        partial.replace(self.target)
        say(f"  {self.source} [{self.label}] {(time.time_ns() - started) / 1e9:.1f} s")
        return self.target


def cpu_jobs() -> list[Job]:
    have = [f"-DFASTCIFAR_HAVE_{isa.upper()}" for isa in PLAN.isas if isa != "generic"]
    op = [*PLAN.cxx, *OP_FLAGS, *have, f"-isystem{PLAN.torch.root / 'include'}"]
    versions = f"{PLAN.cxx_version}, torch {PLAN.torch.version}"
    return [
        *(Job(source, "cpu", op, versions) for source in CPU_OPS),
        *(
            Job(source, isa, [*PLAN.cxx, *KERNEL_FLAGS, *have, f"-DFASTCIFAR_ISA={isa}", *flags], PLAN.cxx_version)
            for isa, flags in PLAN.isas.items()
            for source in CPU_KERNELS
        ),
    ]


def cuda_jobs() -> list[Job]:
    op = [*PLAN.cxx, *OP_FLAGS, "-DUSE_CUDA", f"-isystem{PLAN.torch.root / 'include'}", f"-isystem{PLAN.nvcc.include}"]
    kernel = [str(PLAN.nvcc.path), *NVCC_FLAGS, "--threads=2"]
    if len(PLAN.cxx) == 1:
        kernel.append(f"-ccbin={PLAN.cxx[0]}")
    for arch in PLAN.archs:
        number = arch.removesuffix("+PTX")
        kernel.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            kernel.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    versions = f"{PLAN.cxx_version}, nvcc {PLAN.nvcc.version}"
    return [
        *(Job(source, "cuda", op, f"{versions}, torch {PLAN.torch.version}") for source in CUDA_OPS),
        *(Job(source, "cuda", kernel, versions) for source in CUDA_KERNELS),
    ]


def link(objects: list[Path], library: Path, cuda: bool) -> None:
    exports = OBJECTS / "exports.map"  # nothing is exported: ops register themselves when the library is loaded
    exports.write_text("{ local: *; };\n")
    libs = [f"-L{PLAN.nvcc.lib}", "-lcudart_static", "-lrt", "-lpthread", "-ldl"] if cuda else []
    partial = library.with_suffix(f".{os.getpid()}")
    library.parent.mkdir(parents=True, exist_ok=True)
    # Ubuntu's default, --as-needed, would drop libtorch.so, which is what leads the loader to libtorch_cuda.so.
    torch_libs = ["-Wl,--no-as-needed", f"-L{PLAN.torch.root / 'lib'}", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
    command = [*PLAN.cxx, "-shared", f"-Wl,--version-script={exports}", *map(str, objects), "-o", str(partial)]
    done = subprocess.run([*command, *torch_libs, *libs])
    if done.returncode:
        raise LinkError(f"{library.name} could not be linked: see above")
    partial.replace(library)  # a process that has the old library open keeps it


class BuildExtensions(build_ext):
    def run(self) -> None:
        if PLAN.refusal:
            raise PLAN.refusal
        os.chdir(ROOT)
        say(f"CPU ops {'are built' if PLAN.builds_cpu else 'are not built'}: {PLAN.cpu_why}")
        say(f"CUDA ops {'are built' if PLAN.builds_cuda else 'are not built'}: {PLAN.cuda_why}")
        super().run()
        PLAN.record(ROOT / "fastcifar" if self.inplace else Path(self.build_lib, "fastcifar"))

    def build_extension(self, ext: Extension) -> None:
        cuda = ext.name.endswith("_cuda")
        say(f"{ext.name}: {', '.join(f'sm_{arch}' for arch in PLAN.archs) if cuda else ', '.join(PLAN.isas)}")
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(Job.compile, cuda_jobs() if cuda else cpu_jobs()))
        link(objects, Path(self.get_ext_fullpath(ext.name)), cuda)
        if cuda:  # for tests/test_build.py, which allows no spills
            reports = [path.with_suffix(".ptxas") for path in objects]
            Path("build/_C_cuda.ptxas").write_text("".join(path.read_text() for path in reports if path.exists()))


class BuildPackage(build_py):
    """Adds the presets and the record. In a checkout the presets are read where they are."""

    def run(self) -> None:
        package = ROOT / "fastcifar" if self.editable_mode else Path(self.build_lib, "fastcifar")
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)  # what an earlier build left would be shipped
            (package / "configs").mkdir(parents=True)
            for preset in ROOT.glob("configs/*.toml"):
                shutil.copy(preset, package / "configs")
        super().run()
        if not self.distribution.ext_modules:
            PLAN.record(package)


PLAN = Plan()
libraries = []
if PLAN.builds_cpu or PLAN.refusal:  # what refuses is build_ext: setuptools swallows the errors of an editable build_py
    libraries.append(Extension("fastcifar._C", CPU_OPS + CPU_KERNELS, py_limited_api=True))
if PLAN.builds_cuda:
    libraries.append(Extension("fastcifar._C_cuda", CUDA_OPS + CUDA_KERNELS, py_limited_api=True))
setup(
    ext_modules=libraries,
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackage},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
