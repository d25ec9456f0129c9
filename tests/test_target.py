"""What `auto` becomes on each kind of machine, what is refused there, and what `claim` sets."""

import pytest
import torch
from machines import be_on
from tiny import tiny_config

from fastcifar import ops
from fastcifar.errors import DeviceMemoryError, UsageError
from fastcifar.target import Target, exists, fast_precisions, find_device

pytestmark = pytest.mark.machine

AUTO = {"device": "auto", "engine": "auto", "precision": "auto"}
MACHINES = {
    "generic": ("generic", []),
    "avx2": ("avx2", []),
    "avx512": ("avx512", []),
    "avx512_bf16": ("avx512_bf16", []),
    "amx": ("amx", []),
    "cuda 7.5": ("avx2", [(7, 5)]),
    "cuda 8.0": ("avx2", [(8, 0)]),
    "cuda 9.0": ("amx", [(9, 0)]),
}


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the ops appear built for the CPU."""
    monkeypatch.setattr(ops, "available", lambda device: device == "cpu")


@pytest.mark.parametrize(
    ("kind", "device", "engine", "precision"),
    [
        ("generic", "cpu", "fused", "fp32"),
        ("avx2", "cpu", "fused", "fp32"),
        ("avx512", "cpu", "fused", "fp32"),
        ("avx512_bf16", "cpu", "fused", "bf16"),
        ("amx", "cpu", "fused", "bf16"),
        ("cuda 7.5", "cuda:0", "compiled", "fp16"),
        ("cuda 8.0", "cuda:0", "compiled", "bf16"),
        ("cuda 9.0", "cuda:0", "compiled", "bf16"),
    ],
)
def test_auto_on_every_kind_of_machine(
    kind: str, device: str, engine: str, precision: str, monkeypatch: pytest.MonkeyPatch, extension: None
) -> None:
    level, capabilities = MACHINES[kind]
    be_on(monkeypatch, level, *capabilities)
    config = Target.of(tiny_config(**AUTO)).config
    assert (config.device, config.engine, config.precision) == (device, engine, precision)
    assert Target.of(config).config == config, "a settled config stays as it is"


@pytest.mark.parametrize("built", [True, False])
def test_the_fused_engine_multiplies_itself_where_its_ops_are_built(
    built: bool, monkeypatch: pytest.MonkeyPatch, extension: None
) -> None:
    monkeypatch.setattr(ops, "available", lambda device_type="cpu": built)
    for precision in ("fp32", "bf16"):
        assert Target.of(tiny_config(engine="fused", precision=precision)).fuses_pointwise == built
        assert not Target.of(tiny_config(engine="eager", precision=precision)).fuses_pointwise


@pytest.mark.parametrize("kind", MACHINES)
def test_auto_is_never_emulated(kind: str, monkeypatch: pytest.MonkeyPatch, extension: None) -> None:
    level, capabilities = MACHINES[kind]
    be_on(monkeypatch, level, *capabilities)
    assert not Target.of(tiny_config(**AUTO)).is_emulated


@pytest.mark.parametrize(
    ("level", "precision", "emulated"),
    [("avx2", "bf16", True), ("avx512", "bf16", True), ("avx512_bf16", "bf16", False), ("amx", "bf16", False),
     ("amx", "fp16", True), ("generic", "fp32", False)],
)  # fmt: skip
def test_a_precision_is_emulated_where_the_processor_lacks_it(
    level: str, precision: str, emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_on(monkeypatch, level)
    assert Target.of(tiny_config(precision=precision)).is_emulated == emulated


def test_without_the_extension_auto_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, "amx")
    monkeypatch.setattr(ops, "available", lambda device: False)
    assert Target.of(tiny_config(**AUTO)).config.engine == "eager"


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, "avx2", (9, 0), (9, 0))
    assert find_device("cuda") == find_device("auto") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1) and exists("cuda:1") and not exists("cuda:2")
    with pytest.raises(UsageError, match="sees 2 GPUs; allowed here: cpu, cuda:0, cuda:1"):
        find_device("cuda:2")
    be_on(monkeypatch, "avx2")
    with pytest.raises(UsageError, match="sees 0 GPUs; allowed here: cpu "):
        find_device("cuda")


def test_each_gpu_is_asked_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, "amx", (7, 5), (9, 0))
    assert fast_precisions(torch.device("cuda", 0)) == ["fp32", "fp16"]
    assert fast_precisions(torch.device("cuda", 1)) == ["fp32", "bf16"]


def test_bf16_is_not_compiled_for_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: Dynamo's refusal reached the user as "found no compiled frames"."""
    be_on(monkeypatch, "avx2", (7, 5))
    with pytest.raises(UsageError, match=r"compute capability 7\.5.*allowed here: fp32, fp16"):
        Target.of(tiny_config(device="cuda", engine="compiled", precision="bf16"))
    assert Target.of(tiny_config(device="cuda", engine="eager", precision="bf16")).is_emulated


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_a_compiler_that_is_switched_off_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a run was recorded as compiled, but ran eagerly."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=f"{name}=1"):
        Target.of(tiny_config(engine="compiled"))
    Target.of(tiny_config(engine="eager"))
    monkeypatch.setenv(name, "0")
    Target.of(tiny_config(engine="compiled"))


@pytest.mark.parametrize("name", ["TORCHDYNAMO_SUPPRESS_ERRORS", "TORCH_COMPILE_OVERRIDE_BACKENDS"])
def test_a_compiler_that_may_give_up_without_a_word_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes any value of these variables as yes, even 0."""
    monkeypatch.setenv(name, "0")
    with pytest.raises(UsageError, match=f"{name}=0"):
        Target.of(tiny_config(engine="compiled"))
    Target.of(tiny_config(engine="eager"))
    monkeypatch.setenv(name, "")
    Target.of(tiny_config(engine="compiled"))


def test_dtype_and_memory_format_follow_from_the_config() -> None:
    target = Target(tiny_config(precision="bf16", memory_format="contiguous"))
    assert (target.device, target.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert target.memory_format == torch.contiguous_format


def test_deterministic_kernels_without_filled_memory() -> None:
    """The bug: every torch.empty of a deterministic step was filled with NaN first."""
    with Target(tiny_config(deterministic=True)).reproducible():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.empty(1 << 16).isnan().all()


@pytest.mark.parametrize("warns", [False, True])
def test_what_deterministic_switches_is_switched_back(warns: bool) -> None:
    """The user's own code in the same notebook, and the next run, have what they had."""

    def state() -> tuple[bool, ...]:
        is_on, warns = torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled
        fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        return is_on(), warns(), fills

    torch.use_deterministic_algorithms(warns, warn_only=warns)
    before = state()
    with pytest.raises(ZeroDivisionError), Target(tiny_config(deterministic=True)).reproducible():
        assert state() == (True, False, False)
        raise ZeroDivisionError
    assert state() == before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 64.00 MiB [torch_call_dispatcher( at ops.h:631]"),
        RuntimeError(
            'a libtorch call failed (its message is on stderr) [torch_call_dispatcher( "aten::empty", "mem at'
        ),
    ],
)
def test_running_out_of_memory_names_what_to_lower(error: Exception) -> None:
    """The bug: where an op of the extension asked for the memory, the user saw a traceback."""
    with pytest.raises(DeviceMemoryError, match="batch_size = 16, eval_batch_size = 20"):
        with Target(tiny_config()).memory_explained():
            raise error
    with pytest.raises(ZeroDivisionError), Target(tiny_config()).memory_explained():
        raise ZeroDivisionError
