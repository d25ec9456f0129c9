"""The record of the environment that a result depends on."""

import json
import os
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

import fastcifar
from fastcifar import machine
from fastcifar.run import environment

pytestmark = pytest.mark.machine


def git(folder: Path, *command: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def test_the_facts_are_plain_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("MY_SECRET_TOKEN", "secret")
    facts = environment.collect("cpu")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["fastcifar"] == fastcifar.__version__
    assert (facts["torch"], facts["numpy"]) == (torch.__version__, numpy.__version__)
    assert (facts["device"], facts["gpu"]) == ("cpu", None)
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["date"].endswith("+00:00")
    assert facts["variables"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "secret" not in json.dumps(facts)
    assert facts["cpu"]["logical_cores"] == os.cpu_count()
    assert 0 < facts["cpu"]["usable_cores"] <= os.cpu_count()
    assert facts["memory_gib"] > 0


@pytest.mark.parametrize(
    "name",
    """TORCHDYNAMO_DISABLE TORCH_COMPILE_DISABLE TORCHINDUCTOR_MAX_AUTOTUNE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE PYTORCH_JIT
    PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF OMP_NUM_THREADS MKL_CBWR MKL_NUM_THREADS ONEDNN_MAX_CPU_ISA
    ONEDNN_DEFAULT_FPMATH_MODE DNNL_MAX_CPU_ISA ATEN_CPU_CAPABILITY CUDA_VISIBLE_DEVICES CUDA_LAUNCH_BLOCKING
    CUBLAS_WORKSPACE_CONFIG CUDNN_LOGINFO_DBG NVIDIA_TF32_OVERRIDE KMP_AFFINITY GOMP_CPU_AFFINITY MALLOC_ARENA_MAX
    LD_PRELOAD LD_LIBRARY_PATH GLIBC_TUNABLES TRITON_INTERPRET FASTCIFAR_ISA OPENBLAS_NUM_THREADS NCCL_DEBUG CXX
    LRU_CACHE_CAPACITY AOT_INDUCTOR_DEBUG_COMPILE PYTHONHASHSEED PYTHONOPTIMIZE""".split(),
)
def test_every_variable_that_changes_what_runs_is_recorded(name: str) -> None:
    """The bug: TORCHDYNAMO_DISABLE=1 ran a compiled engine eagerly, and nothing of the run said so."""
    assert environment.variables({name: "1", "HOME": "/home/somebody", "MY_OMP_X": "1"}) == {name: "1"}


@pytest.mark.parametrize("name", ["NVIDIA_API_KEY", "TORCH_HUB_TOKEN", "CUDA_PASSWORD", "GITHUB_TOKEN", "PATH"])
def test_no_secret_is_recorded(name: str) -> None:
    assert environment.variables({name: "secret"}) == {}


@pytest.mark.skipif(not hasattr(torch.cpu, "_is_amx_tile_supported"), reason="this torch cannot tell")
def test_the_instruction_sets_are_those_that_torch_finds() -> None:
    cpu = environment.cpu()
    assert cpu["amx"] == torch.cpu._is_amx_tile_supported()
    assert cpu["avx512"] == torch.cpu._is_avx512_supported()
    assert cpu["avx2"] == torch.cpu._is_avx2_supported()


def test_auto_is_the_device_that_is_there() -> None:
    facts = environment.collect("auto")
    assert facts["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def v1(quota: str, memory: str) -> dict[str, str]:
    """The limits of a container as cgroups of version 1 tell them."""
    folder = "/sys/fs/cgroup/cpu/cpu.cfs"
    limits = {f"{folder}_quota_us": quota, f"{folder}_period_us": "100000\n"}
    return {**limits, "/sys/fs/cgroup/memory/memory.limit_in_bytes": memory}


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n", "/sys/fs/cgroup/memory.max": f"{2**30}\n"}, 1.5, 1.0),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"}, 4, 8.0),
        (v1("150000\n", f"{2**30}\n"), 1.5, 1.0),
        (v1("-1\n", "9223372036854771712\n"), 4, 8.0),
        ({}, 4, 8.0),
    ],
)
def test_a_containers_limits_count(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float, memory: float
) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(machine, "cpu", lambda: machine.cpu_of(files.get("/proc/cpuinfo", "")))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2**21)
    assert (environment.usable_cores(), environment.memory_gib()) == (cores, memory)
    monkeypatch.setattr(machine, "cpu", lambda: machine.cpu_of(""))
    cpu = environment.cpu()
    assert cpu["amx"] is None and cpu["model"]  # without /proc, unknown is not false


def test_the_commit_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    assert environment.commit(repository) is None
    git(repository, "init", "-q")
    git(repository, "commit", "-q", "--allow-empty", "-m", "first")
    (repository / "inside").mkdir()
    assert environment.commit(repository / "inside") is None  # site-packages in somebody's repository
    environment.commit.cache_clear()
    found = environment.commit(repository)
    assert found is not None and len(found["commit"]) == 40 and found["dirty"] is False
    (repository / "file").write_text("1")
    git(repository, "add", "file")
    environment.commit.cache_clear()
    assert environment.commit(repository) == found | {"dirty": True}


def test_a_commit_that_cannot_be_told_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    found = environment.commit(tmp_path)
    assert found is not None and found["commit"] is None and "not a git repository" in found["reason"]
    environment.commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    found = environment.commit(tmp_path)
    assert found is not None and "git" in found["reason"]


def test_differences_name_what_may_change_the_bits() -> None:
    facts = environment.collect("cpu")
    assert environment.differences(facts, facts) == []
    older = {key: value for key, value in facts.items() if key != "processes"}
    assert environment.differences(older, facts) == []
    other = facts | {"date": "later", "threads": {"torch": 64}, "gpu": {"name": "H200"}}
    assert environment.differences(facts, other) == [
        "gpu.name: None -> H200",
        f"threads.torch: {facts['threads']['torch']} -> 64",
    ]
    assert f"torch: None -> {torch.__version__}" in environment.differences({}, facts)
