"""What a processor can do, read from the /proc/cpuinfo of every kind of processor."""

import pytest
import torch
from machines import cpuinfo, on

from fastcifar import machine
from fastcifar.machine import CPU_LEVELS, Gpu

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("level", CPU_LEVELS)
def test_each_kind_of_processor_is_told_apart(level: str) -> None:
    cpu = machine.cpu_of(cpuinfo(level))
    assert (cpu.model, cpu.level, cpu.product_level) == ("Testor 9000", level, level)
    assert [name for name in CPU_LEVELS if cpu.has(name)] == list(CPU_LEVELS[: CPU_LEVELS.index(level) + 1])
    assert cpu.has_fast_bf16 == (level in ("avx512_bf16", "amx"))


def test_an_arm_processor_is_generic() -> None:
    cpu = machine.cpu_of("processor\t: 0\nFeatures\t: fp asimd bf16 sve\n")
    assert (cpu.level, cpu.has_fast_bf16, cpu.has("avx2")) == ("generic", False, False)
    assert cpu.model  # platform's word for it


def test_without_cpuinfo_the_instruction_sets_are_not_known() -> None:
    cpu = machine.cpu_of("")
    assert (cpu.level, cpu.has("avx2"), cpu.has_fast_bf16) == (None, None, False)


@pytest.mark.parametrize(
    ("cap", "product_level"),
    [("", "amx"), ("ALL", "amx"), ("AVX512_CORE_AMX", "amx"), ("avx512_core_bf16", "avx512_bf16"),
     ("AVX512_CORE", "avx512"), ("AVX2", "avx2"), ("SSE41", "generic"), ("NONSENSE", "amx")],
)  # fmt: skip
def test_onednn_can_be_limited(cap: str, product_level: str) -> None:
    """The bug: bf16 was chosen because the processor has it, although oneDNN had been told not to use it."""
    cpu = machine.cpu_of(cpuinfo("amx"), cap)
    assert (cpu.level, cpu.product_level) == ("amx", product_level)
    assert cpu.has_fast_bf16 == (product_level in ("avx512_bf16", "amx"))


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)]
)
def test_bf16_pays_on_gpus_from_capability_8(capability: tuple[int, int], fast: bool) -> None:
    assert Gpu("a GPU", capability).has_fast_bf16 == fast


def test_a_machine_answers_for_each_of_its_devices() -> None:
    mixed = on("amx", (7, 5), (9, 0))
    assert [mixed.has_fast_bf16("cpu"), mixed.has_fast_bf16("cuda", 0), mixed.has_fast_bf16("cuda", 1)] == [
        True, False, True,
    ]  # fmt: skip


def test_this_machine_is_one_of_them() -> None:
    this = machine.this()
    assert this.cpu.level in (*CPU_LEVELS, None)
    assert len(this.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


@pytest.mark.parametrize(
    ("level", "model", "slow"),
    [
        ("avx2", "AMD EPYC", False),
        ("avx512", "AMD EPYC", True),
        ("amx", "Intel Xeon", False),
        ("avx512_bf16", "AMD", True),
    ],
)
def test_where_the_librarys_float32_products_are_slow(level: str, model: str, slow: bool) -> None:
    assert machine.cpu_of(cpuinfo(level, model)).has_slow_library_products == slow
