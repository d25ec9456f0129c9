"""The tables that the benchmarks print."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BENCH = Path(__file__).resolve().parent.parent / "bench"


def bench_conftest() -> Any:
    spec = importlib.util.spec_from_file_location("bench_conftest", BENCH / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(name: str, **seconds: float) -> SimpleNamespace:
    return SimpleNamespace(params={"case": name}, extra_info={"seconds": seconds, "bytes": 1_000_000})


def test_a_row_has_times_ratios_and_bandwidth() -> None:
    rows = list(bench_conftest().race_table([case("one", fastcifar=1e-3, eager=2e-3, copy=5e-4)]))
    assert rows[1].split() == ["one", "1.0000", "2.0000", "(", "2.00x)", "1.0", "2.0", "2.00"]
    assert rows[2].split() == ["geometric", "mean", "(worst)", "2.00x", "(", "2.00x)"]


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
