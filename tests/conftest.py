"""Fixtures for all tests: no network, not the user's cache, and the real data if they are on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
