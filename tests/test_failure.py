"""The record of a failed run: its content, and that writing it never hides the failure."""

import json
import os
from pathlib import Path

import pytest

from fastcifar.errors import InterruptedRunError, NonFiniteError
from fastcifar.run import failure
from fastcifar.run.failure import FAILURE, Failure


def test_what_ended_a_run_can_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError), failure.recorded(tmp_path):
        raise NonFiniteError("the training loss is not finite after epoch 2\nlower --lr")
    found = failure.read(tmp_path)
    assert found == failure.read(tmp_path / FAILURE) and found is not None
    assert (found.kind, found.exit_code, found.expected) == ("NonFiniteError", 5, True)
    assert found.reason == "the training loss is not finite after epoch 2; lower --lr"
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE]


def test_what_nobody_foresaw_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(KeyError), failure.recorded(tmp_path):
        raise KeyError("lr")
    found = failure.read(tmp_path)
    assert found is not None and (found.exit_code, found.expected) == (1, False)
    assert found.reason.startswith("unexpected KeyError: 'lr'; this is a fault of fastcifar")


def test_a_later_attempt_removes_the_record(tmp_path: Path) -> None:
    failure.write(tmp_path / FAILURE, NonFiniteError("nan"))
    with failure.recorded(tmp_path):
        assert failure.read(tmp_path) is None, "a run in training has not failed"
    failure.write(tmp_path / FAILURE, NonFiniteError("nan"))
    with pytest.raises(InterruptedRunError), failure.recorded(tmp_path):
        raise InterruptedRunError("stopped by SIGTERM", 15)
    assert failure.read(tmp_path) is None, "a saved run has not failed either"
    with pytest.raises(KeyboardInterrupt), failure.recorded(tmp_path):
        raise KeyboardInterrupt
    assert failure.read(tmp_path) is None, "a second Ctrl-C is no fault of fastcifar: the run can be resumed"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"kind": "A"}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FAILURE).write_bytes(content)
    assert failure.read(tmp_path) is None and failure.read(tmp_path / "nothing") is None


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="nan"), failure.recorded(tmp_path / "gone"):
        raise NonFiniteError("nan")
    (tmp_path / FAILURE).mkdir()
    with pytest.raises(NonFiniteError, match="nan"), failure.recorded(tmp_path):
        raise NonFiniteError("nan")


def test_the_command_line_writes_where_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a study learns why a run failed before it had a run folder."""
    from fastcifar.cli.main import main

    file = tmp_path / "final-s0.json"
    monkeypatch.setenv(failure.VARIABLE, str(file))
    assert main(["train", "--lr", "-1"]) == 2
    found = failure.read(file)
    assert found is not None and found.kind == "UsageError" and "lr" in found.reason
    assert json.loads(file.read_text())["exit_code"] == 2
    assert failure.VARIABLE not in os.environ, "it is not for the processes that the command starts"
    monkeypatch.setenv(failure.VARIABLE, str(file))
    assert main(["--version"]) == 0 and not file.exists()
    assert main(["train", "--lr", "-1"]) == 2 and not file.exists()


def test_a_long_message_is_cut() -> None:
    assert Failure("A", "", 1, True).reason == "A"
