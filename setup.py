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

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
from fastcifar_plan import CPU_KERNELS, CPU_OPS, CUDA_KERNELS, CUDA_OPS, Plan, say  # noqa: E402

OBJECTS = Path("build/objects")  # setuptools' own build_temp is thrown away after an editable install

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10: one byte a part, 0x0210... would be 2.16
CXX_FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-Icsrc"]
OP_FLAGS = [*CXX_FLAGS, "-O2", TORCH_TARGET]
KERNEL_FLAGS = [*CXX_FLAGS, "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
# Line numbers are more than half of a kernel's object, and compress to a fifth: 10.2 MB an architecture are 2.3.
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xfatbin=-compress-all"]
NVCC_FLAGS += ["-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc"]


@dataclass(frozen=True)
class Job:
    """One compilation. The name of the object's folder holds a hash of its command and of the compilers' versions."""

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
        *(Job(source, "cuda", kernel, versions) for source in CUDA_KERNELS),
        *(Job(source, "cuda", op, f"{versions}, torch {PLAN.torch.version}") for source in CUDA_OPS),
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
        # All at once, and the CUDA kernels first: one of them takes as long as ten other sources.
        jobs = [*(cuda_jobs() if PLAN.builds_cuda else []), *(cpu_jobs() if PLAN.builds_cpu else [])]
        with ThreadPoolExecutor(PLAN.jobs) as pool:
            list(pool.map(Job.compile, jobs))
        super().run()
        PLAN.record(ROOT / "fastcifar" if self.inplace else Path(self.build_lib, "fastcifar"))

    def build_extension(self, ext: Extension) -> None:
        cuda = ext.name.endswith("_cuda")
        say(f"{ext.name}: {', '.join(f'sm_{arch}' for arch in PLAN.archs) if cuda else ', '.join(PLAN.isas)}")
        objects = [job.target for job in (cuda_jobs() if cuda else cpu_jobs())]
        link(objects, Path(self.get_ext_fullpath(ext.name)), cuda)
        if cuda:  # for tests/test_build.py, which allows no spills
            reports = [path.with_suffix(".ptxas") for path in objects]
            Path("build/_C_cuda.ptxas").write_text("".join(path.read_text() for path in reports if path.exists()))


class BuildPackage(build_py):
    """Adds the presets and `_build.json` to a built package. In a checkout the presets are read where they lie."""

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
