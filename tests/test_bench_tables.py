"""The tables that the benchmarks print."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastcifar.config import Config
from fastcifar.measuring.kernels import SEPARABLE
from fastcifar.measuring.layers import list_layers
from fastcifar.target import Target

BENCH = Path(__file__).resolve().parent.parent / "bench"


@contextlib.contextmanager
def bench_modules() -> Iterator[None]:
    """Makes the modules of bench/ importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield


def bench_conftest() -> Any:
    spec = importlib.util.spec_from_file_location("bench_conftest", BENCH / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with bench_modules():
        spec.loader.exec_module(module)
    return module


def case(name: str, generic: tuple[str, ...] = (), **seconds: float) -> SimpleNamespace:
    facts = {"seconds": seconds, "bytes": 1_000_000, "generic": generic}
    return SimpleNamespace(params={"case": name}, extra_info=facts)


def test_a_row_has_times_ratios_and_bandwidth() -> None:
    rows = list(bench_conftest().race_table([case("one", fastcifar=1e-3, eager=2e-3, copy=5e-4)]))
    assert rows[1].split() == ["one", "1.0000", "2.0000", "(", "2.00x)", "1.0", "2.0", "2.00"]
    assert [row.split() for row in rows[2:]] == [
        ["geometric", "mean", "2.00x"],
        ["median", "2.00x"],
        ["worst", "2.00x"],
    ]


def test_a_peer_without_a_fast_kernel_is_marked_and_a_mean_leaves_it_out() -> None:
    """The bug: in bfloat16 a mean of 40x came from three cases of 400x, in which oneDNN has no fast kernel."""
    cases = [case("a", fastcifar=1e-3, eager=2e-3, copy=1e-3), case("b", fastcifar=1e-3, eager=8e-3, copy=1e-3)]
    cases.append(case("c", ("eager",), fastcifar=1e-3, eager=0.5, copy=1e-3))
    rows = list(bench_conftest().race_table(cases))
    assert [row.count("*") for row in rows] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert [row.split()[-1] for row in rows[4:]] == ["20.00x", "8.00x", "2.00x", "4.00x"]
    assert list(bench_conftest().race_table(cases[2:]))[-1].split()[-1] == "-"


def test_the_peers_versions_are_told() -> None:
    with bench_modules():
        from peers import versions

        assert f"torch {torch.__version__}" in versions()


@pytest.mark.parametrize("dtype, generic", [(torch.float32, False), (torch.int32, True)])
def test_a_convolution_that_onednn_does_not_compute_is_generic(dtype: torch.dtype, generic: bool) -> None:
    x, w = torch.ones(2, 8, 6, 6).to(dtype), torch.ones(8, 1, 3, 3).to(dtype)
    with bench_modules():
        from peers import is_generic

        assert is_generic(lambda: F.conv2d(x, w, padding=1, groups=8)) == generic
        assert not is_generic(lambda: x.sum())


def test_a_depthwise_convolution_by_matrix_products_is_generic() -> None:
    with bench_modules():
        import peers

        for words, generic in (
            ("x64:gemm:jit,backward_weights,src:f32::f0,,alg:convolution_direct,g64mb2_ic64oc64_ih2oh2,0.2", True),
            ("x64:gemm:jit,backward_weights,src:f32::f0,,alg:convolution_direct,mb2_ic64oc64_ih2oh2,0.2", False),
            ("jit_dw:avx2,backward_weights,src:f32::f0,,alg:convolution_direct,g64mb2_ic64oc64_ih2oh2,0.2", False),
            ("ref:any,backward_data,src:bf16::f0,,alg:convolution_direct,mb2_ic64oc64_ih2oh2,0.2", True),
        ):
            assert bool(peers._GENERIC.match(words)) == generic, words


def test_a_time_that_is_a_difference_may_be_zero_or_less() -> None:
    """The bug: with a cold L2 a time is the difference of two times, and the table divided by it."""
    cases = [
        case("zero", fastcifar=0.0, eager=1e-3, copy=1e-3),
        case("less", fastcifar=1e-3, eager=-1e-6, copy=0.0),
        case("good", fastcifar=1e-3, eager=2e-3, copy=1e-3),
    ]
    rows = [row.split() for row in bench_conftest().race_table(cases)]
    assert [row[-3:] for row in rows[1:4]] == [["nan", "1.0", "nan"], ["1.0", "nan", "nan"], ["1.0", "1.0", "1.00"]]
    assert rows[1][4] == rows[2][4] == "nanx)"


def test_a_race_that_was_cut_is_left_out() -> None:
    """The bug: it has no times of the cold L2 yet, and none of the table's other rows was printed."""
    conftest = bench_conftest()
    whole, cut = case("whole", fastcifar=1e-3, eager=2e-3, copy=1e-3), case("cut", fastcifar=1e-3)
    del cut.extra_info["bytes"]
    lines: list[str] = []
    reporter = SimpleNamespace(section=lines.append, line=lines.append)
    for benchmark in (whole, cut):
        benchmark.group, benchmark.stats = "a group", SimpleNamespace(data=[1.0])
    session = SimpleNamespace(benchmarks=[whole, cut])
    conftest.pytest_terminal_summary(reporter, SimpleNamespace(_benchmarksession=session))
    assert any("whole" in line for line in lines) and not any("cut" in line for line in lines)


def test_the_floor_of_a_block_is_that_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the passes of our kernels over each map were counted, which is no floor."""
    with bench_modules():
        from layers import LAYERS, Case
    monkeypatch.setattr(Target, "fuses_pointwise", True)
    target = Target(Config.model_validate({"device": "cpu", "precision": "fp32", "engine": "fused", "batch_size": 2}))
    blocks = [layer for layer in list_layers(target) if layer.kind == SEPARABLE]
    cases = [Case(2, *shape, torch.float32) for shape in LAYERS]
    assert [case.block_bytes(case.block_weights()) for case in cases] == [
        sum(work.bytes for _, work in block.directions()) for block in blocks
    ]
