"""A GPU's check of itself: what it finds, what is remembered, and what `auto` and the doctor make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import be_on
from op_cases import needs_kernels
from tiny import tiny_config

from fastcifar import ops, selfcheck
from fastcifar.cli import probes
from fastcifar.ops import cases
from fastcifar.target import Target

GPU = torch.device("cuda", 0)
SMALL = ((2, 8, 4, 4),)
AUTO = {"device": "auto", "engine": "auto", "precision": "auto"}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a GPU whose ops are built; what is remembered goes to a folder of the test."""
    be_on(monkeypatch, "avx2", (9, 0))
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(ops, "available", lambda device="cpu": True)
    monkeypatch.setattr(ops, "fingerprint", lambda device: "of this build")
    selfcheck.why_not.cache_clear()


class Child:
    """Stands in for the process of the check."""

    def __init__(self, stdout: str, returncode: int = 0, stderr: str = "") -> None:
        self.done = subprocess.CompletedProcess([], returncode, stdout, stderr)
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return self.done


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    one = Child("said something\n[]\n")
    monkeypatch.setattr(selfcheck.subprocess, "run", one)  # type: ignore[attr-defined]
    return one


@needs_kernels
def test_sound_ops_pass() -> None:
    assert selfcheck.failures_of(torch.device("cpu"), SMALL) == []


@needs_kernels
@pytest.mark.parametrize("wrong, said", [
    (lambda outputs: outputs.mul(1.01), "dwconv3x3, output 0: error"),
    (lambda outputs: outputs.double(), "dwconv3x3, output 0: torch.float64"),
    (lambda outputs: outputs.contiguous(), "dwconv3x3, output 0: not in channels_last memory"),
    (lambda outputs: outputs.fill_(float("nan")), "dwconv3x3, output 0: error nan"),
])  # fmt: skip
def test_a_wrong_op_is_named(wrong: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = selfcheck.check

    def planted(name: str, arguments: cases.Arguments) -> Any:
        op = getattr(torch.ops.fastcifar, name)
        return check(name, arguments, lambda *given: wrong(op(*given)) if name == "dwconv3x3" else op(*given))

    monkeypatch.setattr(selfcheck, "check", planted)
    found = selfcheck.failures_of(torch.device("cpu"), SMALL)
    assert len(found) == 4 and all(said in line for line in found), found  # two strides, in two dtypes


@needs_kernels
def test_a_wrong_element_of_a_large_map_is_named() -> None:
    """The bug: its error is less than the norm of the roundings of a million others."""
    torch.manual_seed(0)
    block = cases.depthwise_block_arguments(selfcheck.SHAPES[0], torch.bfloat16, 1)[:6]
    name, arguments = next(cases.separable_calls(block, 256, 1))

    def planted(*given: Any) -> tuple[torch.Tensor, ...]:
        v, *others = ops.separable_block(*given)
        v[7, 5, 3, 1] += 0.3 * v.abs().max()
        return v, *others

    with pytest.raises(cases.WrongResult, match="separable_block, output 0: error .* of an element"):
        cases.check(name, arguments, planted)


@needs_kernels
def test_other_bits_in_the_second_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check = selfcheck.check

    def planted(name: str, arguments: cases.Arguments) -> tuple[torch.Tensor, ...]:
        outputs = check(name, arguments)
        return tuple(t + 1 for t in outputs) if name == "batch_norm_relu" else outputs

    monkeypatch.setattr(selfcheck, "check", planted)
    found = selfcheck.failures_of(torch.device("cpu"), SMALL)
    assert set(found) == {f"batch_norm_relu: other bits in its second run, in {d}" for d in ("float32", "bfloat16")}


@needs_kernels
@pytest.mark.parametrize("step, said", [
    (lambda sgd: lambda *a: sgd(*a[:6], 0.8, *a[7:]), "sgd: tensor 0: Tensor-likes are not close"),
    (lambda sgd: lambda *a: (sgd(*a), a[3] and a[3][0].zero_()), "sgd: tensor 6: Tensor-likes are not close"),
])  # fmt: skip
def test_a_wrong_optimizer_is_named(step: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "sgd", step(ops.sgd))
    assert said in " ".join(selfcheck.failures_of(torch.device("cpu"), SMALL))


@needs_kernels
def test_wrong_running_statistics_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    update = ops.update_statistics
    monkeypatch.setattr(ops, "update_statistics", lambda *a: update(*a[:3], a[2], *a[4:]))
    found = selfcheck.failures_of(torch.device("cpu"), SMALL)
    assert len(found) == 2 and all("update_statistics: tensor 2: Tensor-likes are not close" in line for line in found)


def test_the_answer_is_remembered_for_this_gpu_torch_and_build(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        selfcheck.why_not.cache_clear()  # as in another process
        assert selfcheck.why_not(GPU) == ""
    assert [command[-2:] for command in child.commands] == [["fastcifar.selfcheck", "cuda:0"]]
    monkeypatch.setattr(ops, "fingerprint", lambda device: "of another build")
    selfcheck.why_not.cache_clear()
    selfcheck.why_not(GPU)
    assert len(child.commands) == 2
    selfcheck.run(GPU)
    assert len(child.commands) == 3, "the doctor checks again"


def test_a_failure_is_remembered_too_and_a_death_is_not(child: Child) -> None:
    child.done = subprocess.CompletedProcess([], 0, json.dumps(["dwconv3x3, output 0: error 1", "and another"]), "")
    for _ in range(2):
        selfcheck.why_not.cache_clear()
        assert selfcheck.why_not(GPU) == "they failed their check: dwconv3x3, output 0: error 1; and 1 more"
    assert len(child.commands) == 1
    child.done = subprocess.CompletedProcess([], -11, "", "warning\nan illegal memory access")
    assert selfcheck.run(GPU) == "their check ended with exit code -11: an illegal memory access"


def test_a_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired(command, kwargs["timeout"])

    monkeypatch.setattr(selfcheck.subprocess, "run", hang)  # type: ignore[attr-defined]
    assert "did not end within 300 seconds" in selfcheck.run(GPU)


def test_a_damaged_memory_is_checked_anew(child: Child) -> None:
    selfcheck.why_not(GPU)
    path = selfcheck._path(GPU)
    assert path is not None
    path.write_text("{")
    selfcheck.why_not.cache_clear()
    assert selfcheck.why_not(GPU) == "" and len(child.commands) == 2


def test_auto_takes_fused_only_after_the_check(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(tiny_config(**AUTO))
    assert target.config.engine == "fused" and "fused: the CUDA ops passed their check on GPU (9, 0)" in target.why
    assert Target.of(target.config).why == "", "a settled engine needs no reason"
    child.done = subprocess.CompletedProcess([], 0, '["dwconv3x3, output 0: error 1"]', "")
    monkeypatch.setattr(ops, "fingerprint", lambda device: "of a broken build")
    selfcheck.why_not.cache_clear()
    target = Target.of(tiny_config(**AUTO))
    assert target.config.engine == "compiled" and "cannot be trusted, because they failed their check: dw" in target.why
    assert Target.of(tiny_config(**AUTO, memory_format="contiguous")).config.engine == "compiled"
    monkeypatch.setattr(ops, "available", lambda device="cpu": device == "cpu")
    monkeypatch.setattr(ops, "why_unavailable", lambda device="cpu": "the extension _C_cuda is not built")
    assert "there are no CUDA ops, because the extension _C_cuda is not built" in Target.of(tiny_config(**AUTO)).why


def test_the_doctor_checks_again(child: Child) -> None:
    assert [f.status for f in probes._checks()] == ["ok"]
    child.done = subprocess.CompletedProcess([], 0, '["dwconv3x3, output 0: error 1"]', "")
    [finding] = probes._checks()
    assert finding.status == "problem" and "they failed their check: dwconv3x3" in finding.text


@needs_kernels
@pytest.mark.slow
def test_the_process_prints_what_it_found() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "fastcifar.selfcheck", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
