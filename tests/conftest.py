"""Fixtures for all tests: no network, not the user's cache, and the real data if they are on this machine.

The tests of tests/faults count what they try; the table of it stands at the end of a run.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tally import Tally

# Set before torch is loaded. If other programs are busy, spinning threads turn a test of a second into one of a minute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded data in a folder of this session, so that no test reads the cache of an earlier version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCIFAR_DATA", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MPLBACKEND", "Agg")
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("FASTCIFAR_TEST_DATA"):
        skip = pytest.mark.skip(reason="FASTCIFAR_TEST_DATA is not set: no real CIFAR-100 here")
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with cifar100.npz, cifar-100-python/ and folder/. For tests marked `real_data`."""
    return Path(os.environ["FASTCIFAR_TEST_DATA"])


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pictures at the end of each run of this process, which take longer than a tiny run."""
    monkeypatch.setattr("fastcifar.run.folder.RunFolder.draw_curves", lambda run: None)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return Tally(request)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows: dict[str, list[int]] = {}
    for report in [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]:
        for key, row in report.user_properties:
            if key == "tally" and report.when == "call":
                name, *numbers = row
                rows[name] = [a + b for a, b in zip(rows.get(name, [0, 0]), numbers, strict=True)]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line("| test | tried | survived |\n|---|---|---|")
        for name, (tried, survived) in sorted(rows.items()):
            words = name.removeprefix("test_").replace("_", " ")
            terminalreporter.write_line(f"| {words} | {tried:,} | {survived:,} |")
