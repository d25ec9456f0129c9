"""What setup.py decides and compiles, and what its libraries may depend on."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import fastcifar

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(fastcifar.__file__).resolve().parent
GLIBC_MAX = (2, 34)  # Debian 12, Ubuntu 22.04, RHEL 9 and later

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the compiled ops are for Linux")


# --- The libraries as they are installed ------------------------------------------------------------------------------


def build_record(part: str) -> dict[str, Any]:
    return json.loads((PACKAGE / "_build.json").read_text())[part]


@pytest.fixture(params=["_C", "_C_cuda"])
def library(request: pytest.FixtureRequest) -> Path:
    record = build_record("cpu" if request.param == "_C" else "cuda")
    if not record["built"]:
        pytest.skip(f"{request.param} is not built: {record['why']}")
    return PACKAGE / f"{request.param}.abi3.so"


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler here")
def test_the_cpu_library_is_built_wherever_there_is_a_compiler() -> None:
    assert build_record("cpu")["built"], build_record("cpu")["why"]


def dynamic_symbols(library: Path, kind: str) -> list[str]:
    command = ["nm", "--dynamic", kind, str(library)]
    return [line.split()[-1] for line in subprocess.check_output(command, text=True).splitlines()]


def test_libraries_need_only_stable_symbols(library: Path) -> None:
    needed = dynamic_symbols(library, "--undefined-only")
    assert any(name.startswith("aoti_torch_") for name in needed)
    assert [name for name in needed if re.match(r"_?Py[A-Z_]", name)] == [], "symbols of Python"
    assert [name for name in needed if re.match(r"_Z.*(3c10|2at|5torch|8caffe2)", name)] == [], "C++ symbols of torch"
    assert [name for name in needed if name.startswith(("GOMP_", "cuda", "cu"))] == [], "OpenMP or a CUDA library"


def test_libraries_export_nothing(library: Path) -> None:
    """An inline function that was compiled for AVX-512 must not stand in for another library's."""
    assert dynamic_symbols(library, "--defined-only") == []


def test_libraries_run_on_older_systems(library: Path) -> None:
    needed = {
        tuple(map(int, match[1].split(".")))
        for name in dynamic_symbols(library, "--undefined-only")
        if (match := re.search(r"@GLIBC_([\d.]+)", name))
    }
    assert max(needed) <= GLIBC_MAX


def test_wide_registers_stay_in_the_kernels_compiled_for_them() -> None:
    """The bug: an old CPU that reaches a function with such a register ends with SIGILL."""
    if "avx2" not in build_record("cpu").get("isas", ()) or not list(ROOT.glob("csrc/cpu/*_kernel.cpp")):
        pytest.skip("no kernels for several instruction sets here")
    listing = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", str(PACKAGE / "_C.abi3.so")], text=True)
    isas = ["generic", "avx2", "avx512", "avx512_bf16"]
    newer = {
        "avx512_bf16": r"\t(vdpbf16ps|vcvtne|tdp|tile|ldtilecfg)",
        "avx512": r"%zmm|%k[1-7]",
        "avx2": r"%ymm|\tv[a-z]",
        "generic": "",
    }
    seen = dict.fromkeys(isas, 0)
    function, allowed = "", "generic"
    for line in listing.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = header[1]
            allowed = next((isa for isa in reversed(isas) if re.search(rf"\d{isa}", function)), "generic")
            continue
        used = next(isa for isa, pattern in newer.items() if re.search(pattern, line))
        assert isas.index(used) <= isas.index(allowed), f"{function}: {line}"
        seen[used] += 1
    assert all(seen[isa] for isa in build_record("cpu")["isas"]), f"the kernels are not vectorised: {seen}"
    if "avx512_bf16" in build_record("cpu")["isas"]:
        assert "vdpbf16ps" in listing and "tdpbf16ps" in listing, "bfloat16 is not multiplied in pairs or tiles"


def test_cuda_kernels_do_not_spill() -> None:
    report = ROOT / "build/_C_cuda.ptxas"
    if not report.exists():
        pytest.skip("the CUDA ops were not built in this checkout")
    kernel, spilling, kernels = "", [], 0
    for line in report.read_text().splitlines():
        if compiling := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel, kernels = " ".join(compiling.groups()), kernels + 1
        elif re.search(r"[1-9]\d* bytes spill", line):
            spilling.append(f"{kernel}: {line.strip()}")
    assert kernels > 0
    assert spilling == []


# --- What setup.py does, in a small copy of the project; torch, nvcc and the GPU are feigned ---------------


class Project:
    """A copy of the build's files with C++ sources that compile quickly."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(root), "CUDA_HOME": str(root / "cuda")}
        shutil.copy(ROOT / "setup.py", root)
        shutil.copytree(ROOT / "build_backend", root / "build_backend")
        shutil.copy(ROOT / "pyproject.toml", root)
        self.write("README.md", "")
        self.write("LICENSE", "")
        self.write("fastcifar/__init__.py", '__version__ = "0"\n')
        self.write("configs/quick.toml", "")
        self.write("csrc/ops.h", "const int answer = 42;\n")
        self.write("csrc/schemas.cpp", "int schema() { return 0; }\n")
        self.write("csrc/cpu/add.cpp", '#include "ops.h"\nint add() { return answer; }\n')
        self.write("csrc/cpu/add_kernel.cpp", "namespace FASTCIFAR_ISA { int f() { return 1; } }\n")
        self.write("csrc/cuda/add.cu", "int kernel() { return 1; }\n")
        self.write("csrc/cuda/add.cpp", "int launch() { return 1; }\n")

    def write(self, path: str, text: str, executable: bool = False) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if executable else 0o644)

    def feign_torch(self, version: str, cuda: str | None) -> None:
        self.write("torch/__init__.py", "raise RuntimeError('setup.py must not import torch')\n")
        self.write("torch/version.py", f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n")
        (self.root / "torch/lib").mkdir(exist_ok=True)
        for name in ("torch", "torch_cpu"):
            subprocess.check_call(["g++", "-shared", "-xc++", os.devnull, "-o", f"{self.root}/torch/lib/lib{name}.so"])
        self.env["PYTHONPATH"] = str(self.root)

    def feign_nvcc(self, release: str, archs: str = "75 80 86 89 90 100 120") -> None:
        known = "".join(f"echo compute_{arch}; " for arch in archs.split())
        self.write(
            "cuda/bin/nvcc",
            f"""#!/bin/bash
            case "$1" in
              --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
              --list-gpu-arch) {known} ;;
              *) args=()
                 for arg; do case "$arg" in -std*|-O3|-M*|-c|*.d|*.cu|-o|*.o) args+=("$arg") ;; esac; done
                 exec g++ -fPIC -xc++ "${{args[@]}}" ;;
            esac
            """,
            executable=True,
        )
        self.write("cuda/include/cuda_runtime.h", "")
        self.write("cuda/lib64/libcudart_static.a", "!<arch>\n")

    def feign_gpu(self, compute_cap: str, driver_cuda: str) -> None:
        answer = f'case "$*" in *compute_cap*) echo {compute_cap} ;; *) echo "| CUDA Version: {driver_cuda} |" ;; esac'
        self.write("bin/nvidia-smi", f"#!/bin/sh\n{answer}\n", executable=True)

    def hide_compilers(self) -> None:
        self.env["PATH"] = str(self.bin)

    def build(self, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=self.root,
            env={**self.env, **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert "Traceback" not in done.stdout, done.stdout
        self.failed = done.returncode != 0
        return done.stdout

    def compiled(self, **env: str) -> list[str]:
        """Builds the project, and returns what was compiled: `source [label]`."""
        output = self.build(**env)
        assert not self.failed, output
        return sorted(re.findall(r"(\S+ \[\w+\]) [\d.]+ s", output))

    @property
    def about(self) -> dict[str, dict[str, object]]:
        return json.loads((self.root / "fastcifar/_build.json").read_text())

    @property
    def libraries(self) -> list[str]:
        return sorted(path.name for path in (self.root / "fastcifar").glob("*.so"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.feign_torch("2.13.0+cpu", cuda=None)
    return project


needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86-64 has several instruction sets")


@needs_x86
def test_kernels_are_compiled_for_each_instruction_set(project: Project) -> None:
    assert project.compiled() == [
        "csrc/cpu/add.cpp [cpu]",
        "csrc/cpu/add_kernel.cpp [avx2]",
        "csrc/cpu/add_kernel.cpp [avx512]",
        "csrc/cpu/add_kernel.cpp [avx512_bf16]",
        "csrc/cpu/add_kernel.cpp [generic]",
        "csrc/schemas.cpp [cpu]",
    ]
    assert project.libraries == ["_C.abi3.so"]
    assert project.about["cpu"]["isas"] == ["generic", "avx2", "avx512", "avx512_bf16"]


@needs_x86
def test_only_what_changed_is_compiled_again(project: Project) -> None:
    project.build()
    assert project.compiled() == []
    project.write("csrc/ops.h", "const int answer = 43;\n")
    assert project.compiled() == ["csrc/cpu/add.cpp [cpu]"]
    project.write("csrc/cpu/add_kernel.cpp", "namespace FASTCIFAR_ISA { int f() { return 2; } }\n")
    assert project.compiled() == [
        f"csrc/cpu/add_kernel.cpp [{isa}]" for isa in ("avx2", "avx512", "avx512_bf16", "generic")
    ]
    setup = (project.root / "setup.py").read_text()
    project.write("setup.py", setup.replace('[*CXX_FLAGS, "-O2"', '[*CXX_FLAGS, "-O1"'))
    assert project.compiled() == ["csrc/cpu/add.cpp [cpu]", "csrc/schemas.cpp [cpu]"]
    project.feign_torch("2.14.0+cpu", cuda=None)
    assert project.compiled() == ["csrc/cpu/add.cpp [cpu]", "csrc/schemas.cpp [cpu]"]
    (project.root / "csrc/ops.h").unlink()  # the object is out of date, and the error must be shown
    output = project.build()
    assert project.failed and "ops.h: No such file" in output


def test_without_a_compiler_nothing_is_built_and_the_reason_is_kept(project: Project) -> None:
    project.build()
    project.hide_compilers()
    output = project.build()
    assert not project.failed
    assert "CPU ops are not built: no C++ compiler was found (apt install g++" in output
    assert project.libraries == []  # the library of the earlier build would not match the message
    assert project.about["cpu"]["built"] is False
    assert "no C++ compiler" in str(project.about["cpu"]["why"])


def test_without_sources_nothing_is_built(project: Project) -> None:
    shutil.rmtree(project.root / "csrc")
    assert "CPU ops are not built: csrc/ holds no sources" in project.build()
    assert not project.failed


def test_an_error_in_a_source_ends_the_build_with_the_compilers_message(project: Project) -> None:
    project.write("csrc/cpu/add.cpp", "int add() { return missing_name; }\n")
    output = project.build()
    assert project.failed
    assert "missing_name" in output
    assert project.libraries == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FASTCIFAR_CUDA": "yes"}, "FASTCIFAR_CUDA=yes: allowed are auto, 0, 1, wheel"),
        ({"CXX": "no-such-g++"}, "CXX=no-such-g++: there is no such compiler"),
        ({"CXX": 'g++ "-O2'}, 'CXX=g++ "-O2: this is no command (No closing quotation)'),
        ({"MAX_JOBS": "many"}, "MAX_JOBS=many: expected a number of compilers, 1 or more"),
        ({"MAX_JOBS": "0"}, "MAX_JOBS=0: expected a number of compilers, 1 or more"),
        (
            {"FASTCIFAR_CUDA": "wheel"},
            "no nvcc with headers and libcudart_static.a was found: with --no-build-isolation",
        ),
    ],
)
def test_wrong_settings_are_refused(project: Project, env: dict[str, str], message: str) -> None:
    if env.get("FASTCIFAR_CUDA") == "wheel" and Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin/nvcc").exists():
        pytest.skip("NVIDIA's nvcc is installed here")
    output = project.build(**env)
    assert project.failed
    assert message in output


def test_settings_of_nothing_are_as_if_not_set(project: Project) -> None:
    project.compiled(CXX=" ", MAX_JOBS="", FASTCIFAR_CUDA_ARCHS="")
    assert project.libraries == ["_C.abi3.so"]


def test_an_editable_install_is_refused_too(project: Project) -> None:
    """setuptools ignores an error in an editable build_py, and would install a package with nothing built."""
    shutil.rmtree(project.root / "torch")
    project.write("torch/version.py", "__version__ = '2.9.1'\n")
    project.write("torch/__init__.py", "")
    code = "from setuptools.build_meta import build_editable; build_editable('.')"
    env = {**project.env, "PYTHONPATH": str(project.root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=project.root, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"^error: torch >= 2\.10 is needed", done.stderr, re.M), done.stderr


def test_an_old_torch_is_refused(project: Project) -> None:
    project.feign_torch("2.9.1", cuda=None)
    assert re.search(r"torch >= 2\.10 is needed, and .* holds 2\.9\.1", project.build())
    assert project.failed


def test_cuda_asked_for_without_a_compiler_is_refused(project: Project) -> None:
    project.hide_compilers()
    assert "FASTCIFAR_CUDA=1 asks for the CUDA ops, but" in project.build(FASTCIFAR_CUDA="1")
    assert project.failed


def test_cuda_is_left_out_beside_a_torch_without_it(project: Project) -> None:
    project.feign_nvcc("13.0")
    output = project.build()
    assert (
        "CUDA ops are not built: torch 2.13.0+cpu is not a CUDA build (FASTCIFAR_CUDA=1 builds them anyway)" in output
    )
    assert project.libraries == ["_C.abi3.so"]


def test_cuda_is_built_for_every_architecture_where_there_is_no_gpu(project: Project) -> None:
    project.feign_nvcc("13.0")
    assert {"csrc/cuda/add.cpp [cuda]", "csrc/cuda/add.cu [cuda]"} < set(project.compiled(FASTCIFAR_CUDA="1"))
    assert project.libraries == ["_C.abi3.so", "_C_cuda.abi3.so"]
    assert project.about["cuda"]["archs"] == ["75", "80", "86", "89", "90", "100", "120+PTX"]
    assert project.about["cuda"]["nvcc"] == "13.0"
    assert project.compiled(FASTCIFAR_CUDA="1") == []
    project.build(FASTCIFAR_CUDA="0")
    assert project.libraries == ["_C.abi3.so"]


def test_what_takes_longest_is_compiled_first_and_both_libraries_share_the_cores(project: Project) -> None:
    project.feign_nvcc("13.0")
    output = project.build(FASTCIFAR_CUDA="1", MAX_JOBS="1")
    order = [source.rpartition(".")[2] for source in re.findall(r"(\S+) \[\w+\] [\d.]+ s", output)]
    assert order[0] == "cu" and len(order) > 2, output
    assert output.index("fastcifar._C:") > output.index("csrc/schemas.cpp [cpu]"), output


def test_cuda_is_built_for_the_gpu_that_is_there(project: Project) -> None:
    project.feign_torch("2.13.0+cu130", cuda="13.0")
    project.feign_nvcc("13.0")
    project.feign_gpu("9.0", "13.0")
    project.build()
    assert project.about["cuda"]["archs"] == ["90"]
    project.build(FASTCIFAR_CUDA_ARCHS="80;90+PTX")
    assert project.about["cuda"]["archs"] == ["80", "90+PTX"]
    assert "FASTCIFAR_CUDA_ARCHS=70: 70 is not known to nvcc 13.0, which knows 75, 80" in project.build(
        FASTCIFAR_CUDA_ARCHS="70"
    )
    assert project.failed
    refused = project.build(FASTCIFAR_CUDA_ARCHS="80+PTX;90")
    assert "80+PTX: only the newest architecture, 90, may have +PTX" in refused and project.failed


def test_cuda_12_works(project: Project) -> None:
    project.feign_torch("2.10.0+cu126", cuda="12.6")
    project.feign_nvcc("12.6", archs="75 80 86 89 90")
    output = project.build()
    assert "nvcc 12.6 does not know sm_100, sm_120: they run the PTX of sm_90" in output
    assert project.about["cuda"]["archs"] == ["75", "80", "86", "89", "90+PTX"]
    project.feign_gpu("12.0", "12.8")  # newer than this nvcc
    project.build()
    assert project.about["cuda"]["archs"] == ["75", "80", "86", "89", "90+PTX"]
    project.build(FASTCIFAR_CUDA_ARCHS="native")
    assert project.failed


def test_an_nvcc_that_cannot_work_is_refused(project: Project) -> None:
    project.feign_torch("2.13.0+cu130", cuda="13.0")
    project.feign_nvcc("11.8")
    assert "is of CUDA 11.8, and 12.0 is the oldest that works" in project.build()
    assert project.failed
    project.feign_nvcc("13.0")
    project.feign_gpu("9.0", "12.4")
    assert "this machine's driver runs programs up to CUDA 12" in project.build()
    assert project.failed
