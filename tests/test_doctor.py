"""`fastcifar doctor` finds what is missing, says what to do, and never fails itself."""

import importlib.util
import io
import os
import re
import shlex
import shutil
import socket
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machines import be_on, cpuinfo
from safetensors.numpy import save_file

from fastcifar import machine, ops
from fastcifar.cli import doctor, probes
from fastcifar.cli.doctor import report
from fastcifar.cli.probes import Finding
from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.machine import Cpu
from fastcifar.target import Target

pytestmark = pytest.mark.machine

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def findings(probe: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in probe()}


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


def lines(text: io.StringIO) -> dict[str, str]:
    """name -> status, from a report that was written to a file."""
    body = text.getvalue().partition("\n\n")[0].splitlines()
    heads = [re.fullmatch(r"(ok|note|problem) +(\S.*?)  +\S.*", line) for line in body if not line.startswith(" ")]
    assert all(heads), body
    return {head[2]: head[1] for head in heads if head}


def test_this_machine_can_train(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert report(text) == 0
    shown = lines(text)
    for name in ("fastcifar", "presets", "python", "packages", "torch", "run folders"):
        assert shown[name] == "ok"
    assert {"cpu", "gpu", "compiler", "cpu ops", "cifar100", "data cache"} <= shown.keys()
    assert "\x1b" not in text.getvalue()
    assert re.search(r"\n\nTraining is possible, on (the CPU|cuda:0)\.\n$", text.getvalue())
    assert torch.__version__ in text.getvalue()


@pytest.mark.parametrize("name", [name for name, _, _ in probes.PROBES])
def test_a_probe_that_fails_is_reported_with_its_reason(
    name: str, text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Iterator[Finding]:
        raise OSError("something\nodd")

    failing = [(n, fails if n == name else lambda: iter(()), fatal) for n, _, fatal in probes.PROBES]
    monkeypatch.setattr(probes, "PROBES", failing)
    assert report(text) == (1 if name in ("python", "packages", "torch") else 0)
    assert "could not be examined: OSError: something odd" in text.getvalue()
    assert lines(text) == {name: "problem"}


@pytest.mark.parametrize(("level", "status"), [("amx", "ok"), ("avx512", "note")])
def test_without_torch_nothing_can_be_trained(
    level: str, status: str, text: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_on(monkeypatch, level)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert report(text) == 1
    shown = lines(text)
    assert shown["torch"] == "problem" and shown["python"] == "ok" and shown["cpu"] == status
    assert f"-> {sys.executable} -m pip install 'torch>=2.10'" in text.getvalue()
    assert text.getvalue().endswith("Training is not possible yet: see torch above.\n")


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    found = findings(probes._torch)["torch"]
    assert found.status == "problem" and found.fatal and "2.9.1+cu128" in found.text and "too old" in found.text


def test_missing_packages_are_all_named(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("safetensors", "PIL")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    assert report(text) == 1
    assert "missing: safetensors, pillow" in text.getvalue()
    assert f"-> {sys.executable} -m pip install safetensors pillow" in text.getvalue()


def test_the_packages_are_those_that_the_project_requires() -> None:
    required = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT.read_text(), re.MULTILINE | re.DOTALL)
    assert required is not None
    names = set(re.findall(r'^ *"([\w-]+)', required[1], re.MULTILINE))
    assert set(probes.PACKAGES.values()) == names - {"torch", "tomli"}
    assert f'"torch>={".".join(map(str, probes.TORCH_MIN))}"' in required[1]


def test_cores_left_idle_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.environment, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert findings(probes._threads)["threads"].text == "PyTorch uses 1 of 8 cores, by OMP_NUM_THREADS=1"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert findings(probes._threads) == {}


SLOW = "without AVX512_BF16 or AMX bf16 is slower than fp32, which precision = auto takes"


@pytest.mark.parametrize(
    ("level", "status", "words"),
    [
        ("amx", "ok", "AVX2, AVX-512, AVX512_BF16, AMX: bf16 is fast, and precision = auto takes it"),
        ("avx512_bf16", "ok", "AVX2, AVX-512, AVX512_BF16: bf16 is fast, and precision = auto takes it"),
        ("avx512", "note", f"AVX2, AVX-512: {SLOW}"),
        ("avx2", "note", f"AVX2: {SLOW}"),
        ("generic", "note", f"no AVX2: {SLOW}"),
    ],
)
def test_the_processor_says_which_precision_is_fast(
    level: str, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine.cpu_of(cpuinfo(level, "A CPU"))
    monkeypatch.setattr(machine, "cpu", lambda: there)
    monkeypatch.setattr(probes.environment, "usable_cores", lambda: 1.5)
    found = findings(probes._cpu)["cpu"]
    assert found.status == status
    assert found.text.startswith("A CPU, 1.5 cores, ") and found.text.endswith(f" GiB of memory, {words}")
    target = Config(precision="auto", device="cpu", engine="eager")
    be_on(monkeypatch, level)
    assert (Target.of(target).config.precision == "bf16") == (status == "ok"), "as the doctor says"


def test_a_processor_of_another_system_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu", lambda: Cpu("A CPU", None, None))
    found = findings(probes._cpu)["cpu"]
    assert found.status == "note" and "its instruction sets are not known" in found.text


def test_a_variable_that_hides_the_fast_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    there = machine.cpu_of(cpuinfo("amx"), "AVX512_CORE")
    monkeypatch.setattr(machine, "cpu", lambda: there)
    found = findings(probes._cpu)["cpu"]
    assert found.status == "note" and "with ONEDNN_MAX_CPU_ISA=AVX512_CORE bf16 is slower" in found.text
    assert found.advice == "Unset it."


@pytest.mark.skipif(not ops.available(), reason="no C++ compiler")
@pytest.mark.parametrize(("isa", "status"), [("amx", "ok"), ("avx512_bf16", "note")])
def test_tile_registers_that_linux_refuses_are_noted(isa: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCIFAR_ISA", raising=False)
    monkeypatch.setattr(ops, "cpu_isa", lambda: isa)
    there = machine.cpu_of(cpuinfo("amx"), "")
    monkeypatch.setattr(machine, "cpu", lambda: there)
    found = findings(probes._extension)["cpu ops"]
    assert found.status == status and ("refused its tile registers" in found.text) == (status == "note")


# The GPU, which this machine may not have


class Nvml(types.SimpleNamespace):
    """NVML with one GPU."""

    def __init__(self) -> None:
        super().__init__(
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlSystemGetDriverVersion=lambda: "580.1",
            nvmlDeviceGetCount=lambda: 1,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetName=lambda handle: "NVIDIA H200",
        )


def fake_gpu(patch: pytest.MonkeyPatch, build: str | None, available: bool, free_gib: float = 100.0) -> None:
    patch.setitem(sys.modules, "pynvml", Nvml())
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    patch.setattr(torch.version, "cuda", build)
    properties = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=139 * 2**30)
    ones = torch.ones(1)
    for name, value in {
        "is_available": available,
        "device_count": 1,
        "get_device_properties": properties,
        "mem_get_info": (int(free_gib * 2**30), 0),
        "get_arch_list": ["sm_80", "sm_90", "compute_90"],
    }.items():
        patch.setattr(torch.cuda, name, lambda *_, value=value: value)
    patch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    patch.setattr(torch, "ones", lambda *_, **__: ones)


def test_a_gpu_is_described(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "13.0", True)
    found = findings(probes._gpu)["gpu"]
    assert found.status == "ok"
    assert found.text == (
        "cuda:0, NVIDIA H200, compute capability 9.0, 100.0 of 139.0 GiB free, driver 580.1, CUDA 13.0, cuDNN 91000"
    )
    monkeypatch.setattr(probes, "PROBES", (("gpu", probes._gpu, False),))
    assert report(text) == 0 and text.getvalue().endswith("Training is possible, on cuda:0.\n")


@pytest.mark.parametrize(
    ("build", "change", "status", "words"),
    [
        (None, {}, "problem", "NVIDIA H200, driver 580.1, but torch is a CPU build"),
        ("13.0", {"CUDA_VISIBLE_DEVICES": ""}, "note", "hidden by CUDA_VISIBLE_DEVICES=''"),
        ("13.0", {}, "problem", "but PyTorch cannot use it: the driver is too old"),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    build: str | None, change: dict[str, str], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(monkeypatch, build, False)

    def warns() -> bool:
        import warnings

        warnings.warn("the driver is\ntoo old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warns)
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    found = findings(probes._gpu)["gpu"]
    assert found.status == status and words in found.text and found.advice


def test_a_gpu_in_need_of_care(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "13.0", True, free_gib=0.5)
    assert findings(probes._gpu)["gpu"].advice.startswith("Other programs hold its memory")
    assert findings(probes._gpu)["gpu"].device == "cuda:0"

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", fails)  # as it does where torch has no kernels for the GPU
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_100", "compute_100"])
    found = findings(probes._gpu)["gpu"]
    assert found.status == "problem" and "sm_100" in found.advice
    monkeypatch.setattr(probes, "PROBES", (("gpu", probes._gpu, False),))
    assert report(text) == 0 and text.getvalue().endswith("Training is possible, on the CPU, with --device cpu.\n")


def test_no_gpu_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, None, False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = findings(probes._gpu)["gpu"]
    assert found.status == "note" and "training runs on the CPU" in found.text


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100", (12, 0), False),
        ("compute_80", (12, 0), True),
        ("compute_90", (8, 0), False),
        ("sm_120", (12, 0), True),
        ("gfx942", (9, 0), False),
    ],
)
def test_which_gpu_runs_what(arch: str, capability: tuple[int, int], runs: bool) -> None:
    assert probes._runs_on(arch, capability) is runs


# Compilers and the extension


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    found = findings(probes._compiler)["compiler"]
    assert (found.status, found.advice) == ("problem", "apt install g++")
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    found = findings(probes._compiler)["compiler"]
    assert "CXX=no-such-compiler -O2: there is no such compiler" in found.text


def test_a_compiler_without_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho cxx 1.2\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{shlex.quote(str(compiler))} -O2")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    found = findings(probes._compiler)
    assert found["compiler"].text == f"cxx 1.2, {compiler}"
    assert found["headers"].status == "problem" and "-dev" in found["headers"].advice
    (tmp_path / "Python.h").touch()
    assert "headers" not in findings(probes._compiler)


def test_triton_is_asked_for_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_spec", lambda _: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert findings(probes._triton) == {}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert findings(probes._triton)["triton"].status == "problem"


def test_what_the_other_loaders_need_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia" / "dali").mkdir(parents=True)
    (tmp_path / "nvidia" / "__init__.py").touch()
    (tmp_path / "nvidia" / "dali" / "__init__.py").write_text("raise OSError('libdali.so: no such file')")
    for name in [n for n in sys.modules if n.split(".")[0] in ("nvidia", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.syspath_prepend(tmp_path)
    missing, broken = probes._loaders()
    assert missing.status == "ok" and "fastcifar[torchvision]" in missing.text
    assert broken.status == "note" and "libdali.so: no such file" in broken.text


def test_an_nvcc_is_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert findings(probes._nvcc)["nvcc"].text == f"CUDA 13.0, {nvcc}"
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert findings(probes._nvcc) == {}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert findings(probes._nvcc)["nvcc"].status == "note"


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_an_extension_that_is_not_there_is_noted(cuda: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(ops, "why_unavailable", lambda device: "it is not built")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    found = findings(probes._extension)
    assert found.keys() == ({"cpu ops", "cuda ops"} if cuda else {"cpu ops"})
    for finding in found.values():
        assert finding.status == "note" and "PyTorch reference: it is not built" in finding.text and finding.advice


def test_an_extension_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "why_unavailable", lambda device: "undefined symbol")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "_C.abi3.so"]))
    assert findings(probes._extension)["cpu ops"].status == "problem"


# Data and disk


def test_the_cached_data_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "cache"))
    missing = findings(probes._data)["cifar100"]
    assert missing.status == "note" and "--data PATH" in missing.advice
    (tmp_path / "cache").mkdir()
    for name, stem in (("procedural", "procedural"), ("cifar100", "cifar100-python-0123")):
        path = tmp_path / "cache" / f"{stem}.safetensors"
        save_file({"x": np.zeros(3)}, path, metadata={"meta": f'{{"name": "{name}"}}'})
    (tmp_path / "cache" / "broken.safetensors").write_bytes(b"broken")
    found = findings(probes._data)
    assert found["data"].status == "note" and "broken.safetensors cannot be read" in found["data"].text
    assert found["other data"].text == "cached: procedural"
    assert found["cifar100"].status == "ok" and "--data" in found["cifar100"].advice
    shutil.copy(path, tmp_path / "cache" / "cifar100.safetensors")
    assert findings(probes._data)["cifar100"].advice == ""


def test_without_a_place_for_a_cache_the_doctor_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", "~nosuchuser/x")
    found = findings(probes._data)["data cache"]
    assert found.status == "note" and "nosuchuser" in found.text and "FASTCIFAR_DATA=FOLDER" in found.advice


def test_a_full_or_closed_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**20))
    found = findings(probes._runs)["run folders"]
    assert found.status == "problem" and "0.5 GiB are wanted" in found.text and "--out DIR" in found.advice
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = findings(probes._runs)["run folders"]
    assert found.status == "problem" and f"{tmp_path} cannot be written" in found.text


# How it looks


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_wrapped_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    finding = Finding("note", "gpu", "one two three " * 4, "four five six " * 4)
    shown = doctor._shown(finding, Terminal()).splitlines()
    assert shown[0].startswith("\x1b[33mnote    \x1b[0m gpu")
    assert len(shown) == 4 and all(len(line.replace("\x1b[33m", "").replace("\x1b[0m", "")) <= 60 for line in shown)
    assert shown[2].startswith(" " * 22 + "-> four")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in doctor._shown(finding, Terminal())
    assert len(doctor._shown(finding, io.StringIO()).splitlines()) == 2


def test_a_wrong_instruction_set_stops_all_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the doctor said "Training is possible", but every command ended when it imported the ops."""

    def refuse(name: str) -> Any:
        raise UsageError("FASTCIFAR_ISA = avx1024: allowed here: generic, avx2")

    monkeypatch.setattr(probes.importlib, "import_module", refuse)
    (finding,) = probes._extension()
    assert (finding.status, finding.fatal) == ("problem", True) and "avx1024" in finding.text
