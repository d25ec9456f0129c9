"""One laboratory for all tests here, and how much of a campaign is run."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("laboratory", "processes")  # or a failure there says nothing

from laboratory import Lab  # noqa: E402
from processes import Forge  # noqa: E402


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "forge").mkdir()
    with Forge(folder / "forge", {"FASTCIFAR_DATA": str(folder / "cache")}) as forge:
        yield Lab(folder, forge)


@pytest.fixture(params=[pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)])
def every(request: pytest.FixtureRequest) -> bool:
    """Whether a test tries everything, or a selection."""
    return bool(request.param)
