"""What tests have tried, and how often all was well: a table at the end of a run of pytest."""

import contextlib
from collections.abc import Iterator

import pytest


class Tally:
    """What a test has tried, and how often all was well.

    Args:
        request: of the test.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.tried = 0
        self.failures: list[str] = []

    @contextlib.contextmanager
    def attempt(self, what: object) -> Iterator[None]:
        """Counts what is inside. An error there is kept for `check`, and the test goes on.

        Args:
            what: named if it fails.
        """
        self.tried += 1
        try:
            yield
        except Exception as problem:
            self.failures.append(f"{what}: {type(problem).__name__}: {problem}")

    def check(self, at_least: int = 1) -> None:
        """Puts the numbers in the table. Fails if there was a failure, or if less than `at_least` was tried."""
        row = (self._request.node.name.partition("[")[0], self.tried, self.tried - len(self.failures))
        self._request.node.user_properties.append(("tally", row))
        assert not self.failures, f"{len(self.failures)} of {self.tried} failed:\n" + "\n".join(self.failures[:5])
        assert self.tried >= at_least
