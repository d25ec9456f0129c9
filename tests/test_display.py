"""The progress on stderr: the right numbers, in columns, at no cost to the training loop."""

import errno
import io
import os
import re
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from fastcifar.run.names import EPOCH_KEYS
from fastcifar.ui import notes
from fastcifar.ui.display import LOADING, Display, format_seconds


class Clock:
    """A clock that a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def words(self) -> str:
        """The text that was written, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[━╸╺]", "", self.getvalue())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def record(epoch: int, val: bool = True) -> dict[str, Any]:
    val_loss, val_accuracy = (2.1723, 0.4371) if val else (None, None)
    values = (epoch, 0.05, 1.7617, 0.5041, val_loss, val_accuracy, 1142.4, 35.0 * epoch)
    return dict(zip(EPOCH_KEYS, values, strict=True))


def show_run(display: Display, clock: Clock, epochs: int, seconds: float) -> None:
    display.start(epochs, 400)
    for epoch in range(1, epochs + 1):
        for _ in range(4):
            clock.now += seconds / 4
            display.images(100)
        display.phase("validating")
        display.epoch(record(epoch, val=epoch > 1))


def test_plain_lines_in_columns(clock: Clock) -> None:
    file = io.StringIO()
    with Display(file, clock) as display:
        display.phase(LOADING)
        display.note("bf16 is emulated")
        display.phase("compiling")
        show_run(display, clock, epochs=3, seconds=40)
        display.phase("testing")
    assert file.getvalue().splitlines() == [
        "loading data ...",
        "note: bf16 is emulated",
        "compiling ...",
        "epoch        lr  train loss  train acc  val loss  val acc   images/s      left",
        "  1/3      0.05      1.7617     50.41%         -        -      1,142      1:20",
        "  2/3      0.05      1.7617     50.41%    2.1723   43.71%      1,142      0:40",
        "  3/3      0.05      1.7617     50.41%    2.1723   43.71%      1,142      0:00",
        "testing ...",
    ]


def test_columns_hold_for_any_number_of_epochs(clock: Clock) -> None:
    file = io.StringIO()
    show_run(Display(file, clock), clock, epochs=1000, seconds=20)
    widths = {len(line) for line in file.getvalue().splitlines()}
    assert len(widths) == 1 and widths.pop() <= 84


def test_quick_epochs_are_thinned_out_but_the_last_is_shown(clock: Clock) -> None:
    file = io.StringIO()
    show_run(Display(file, clock), clock, epochs=23, seconds=0.25)
    shown = [line.split()[0] for line in file.getvalue().splitlines()[1:]]
    assert shown == [f"{epoch}/23" for epoch in (1, 5, 9, 13, 17, 21, 23)]


def test_a_long_epoch_gives_signs_of_life(clock: Clock) -> None:
    file = io.StringIO()
    display = Display(file, clock)
    display.start(2, 40_000)
    for _ in range(200):
        clock.now += 1
        display.images(100)
    display.epoch(record(1))
    assert file.getvalue().splitlines()[1:4] == [
        "1/2 at 15%, 100 images/s, 12:20 left",
        "1/2 at 30%, 100 images/s, 11:20 left",
        "1/2 at 45%, 100 images/s, 10:20 left",
    ]


def test_a_resumed_run_counts_what_is_left_of_it(clock: Clock) -> None:
    file = io.StringIO()
    display = Display(file, clock)
    display.start(10, 40_000, start_epoch=10, start_image=30_000)
    clock.now += 60
    display.images(5_000)
    assert file.getvalue().splitlines()[1:] == ["10/10 at 88%, 83 images/s, 1:00 left"]


def test_the_time_left_includes_validation(clock: Clock) -> None:
    file = io.StringIO()
    display = Display(file, clock)
    display.start(2, 400)
    clock.now += 30
    display.images(400)
    display.phase("validating")
    clock.now += 10
    display.epoch(record(1))
    assert file.getvalue().splitlines()[-1].split()[-1] == "0:40"


def test_a_live_line_on_a_terminal(terminal: Terminal, clock: Clock) -> None:
    with Display(terminal, clock) as display:
        display.phase(LOADING)
        assert "\x1b[?25l" not in terminal.getvalue()  # no live line beside the bar of a download
        display.phase("compiling")
        assert display._live is not None
        clock.now += 5
        display._live.refresh()
        display.start(3, 400)
        clock.now += 2
        display.images(100)
        display._live.refresh()
        display.epoch(record(1))
        display.images(200)
        clock.now += 2
        display._live.refresh()
        display.phase("validating")
        display._live.refresh()
    words = terminal.words()
    assert "loading data ..." in words
    assert "compiling 0:05" in words
    assert re.search(r"epoch 1/3 +50 images/s +0:22 left", words)
    assert re.search(r"epoch 2/3 +loss 1.7617 +val 43.71% +100 images/s +0:08 left", words)
    assert re.search(r"epoch 2/3 +loss 1.7617 +val 43.71% +validating +0:08 left", words)
    assert "  1/3      0.05      1.7617 " in words
    assert "\x1b[36m" in terminal.getvalue()


def test_the_terminal_is_given_back_after_an_error(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), Display(terminal) as display:
        display.start(3, 400)
        raise KeyboardInterrupt
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1


def test_no_color_means_no_colour(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Display(terminal, clock) as display:
        display.note("careful")
        show_run(display, clock, 2, 2.0)
    colours = re.findall(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;[\d;]*|9[0-7])m", terminal.getvalue())
    assert colours == []
    assert "note: careful" in terminal.words()


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_dumb_terminal_gets_plain_lines(
    kind: str, terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    if not kind:
        monkeypatch.delenv("TERM")
    with Display(terminal, clock) as display:
        show_run(display, clock, 2, 2.0)
    assert "\x1b" not in terminal.getvalue()


def test_stdout_stays_for_results(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as display:
        display.phase("compiling")
        display.note("to stderr")
    assert capsys.readouterr() == ("", "compiling ...\nnote: to stderr\n")
    stdout = sys.stdout
    with Display(terminal) as display:
        display.start(1, 1)
        assert sys.stdout is stdout


def refusing(kind: type[io.StringIO], error: Exception) -> io.StringIO:
    """A stream of `kind` that cannot be written."""

    def refuse(*_: object) -> int:
        raise error

    stream = kind()
    stream.write = stream.flush = refuse  # type: ignore[method-assign, assignment]
    return stream


@pytest.mark.parametrize("kind", [io.StringIO, Terminal], ids=["plain", "live"])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full"), ValueError("closed file")],
    ids=["head", "closed terminal", "full disk", "closed file"],
)
def test_training_outlives_whoever_watched(
    clock: Clock, terminal: Terminal, kind: type[io.StringIO], error: Exception
) -> None:
    with Display(refusing(kind, error), clock) as display:
        display.phase("warming up")
        show_run(display, clock, 3, 100.0)
        display.note("nobody reads this")


@pytest.mark.parametrize("live", [False, True], ids=["plain", "live"])
def test_training_outlives_a_closed_stderr(clock: Clock, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # `2>&-`
    with Display(None, clock) as display:
        show_run(display, clock, 2, 100.0)
    notes.note("nobody reads this")


@pytest.mark.parametrize("kind", ["full", "a closed terminal", "closed"])
def test_no_stderr_changes_the_exit_code(kind: str) -> None:
    """The bug: the interpreter flushes stderr when it ends; if that fails again, it exits with 120."""
    script = """
        import sys
        from fastcifar.ui.display import Display
        from fastcifar.ui.notes import note
        with Display() as display:
            display.start(3, 100)
            for epoch in (1, 2, 3):
                display.images(100)
            note("x")
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    if kind == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    elif kind == "full":
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True)
    else:
        master, slave = os.openpty()
        os.close(master)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=slave, text=True, env={**os.environ, "TERM": "vt"}
        )
        os.close(slave)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("kind", ["closed", "gone"])
def test_what_is_printed_to_stderr_raises_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bug: with `2>&-` notes were printed to stdout among the results; with a full disk they ended the command."""
    before = None if kind == "closed" else refusing(io.StringIO, OSError(errno.EIO, "gone"))
    monkeypatch.setattr(sys, "stderr", before)
    with notes.unfailing_stderr():
        print("an error", file=sys.stderr, flush=True)
        notes.note("a note")
        with Display() as display:
            display.phase("warming up")
    assert sys.stderr is before
    assert capsys.readouterr().out == ""


def test_what_the_encoding_lacks_is_written_as_escapes(clock: Clock) -> None:
    raw = io.BytesIO()
    with Display(io.TextIOWrapper(raw, encoding="ascii"), clock) as display:
        display.note("caf\u00e9 \u732b")
    assert raw.getvalue() == b"note: caf\\xe9 \\u732b\n"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal], ids=["plain", "live"])
def test_a_name_gives_the_terminal_no_orders(clock: Clock, terminal: Terminal, kind: type[io.StringIO]) -> None:
    file = kind()
    with Display(file, clock) as display:
        display.note("class \x1b]0;owned\x07 \x9b31m \r gone \u202e")
    assert not set("\x07\x9b\r\u202e") & set(file.getvalue()) and "]0;owned" in file.getvalue()
    assert "\x1b]0" not in file.getvalue()


def test_a_note_without_a_display_gives_no_orders_either(capsys: pytest.CaptureFixture[str]) -> None:
    notes.note("class \x1b[31m")
    assert capsys.readouterr().err == "note: class \\x1b[31m\n"


@pytest.mark.parametrize("columns", [20, 40, 59])
def test_a_narrow_terminal_cuts_nothing(
    columns: int, terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Display(terminal, clock) as display:
        display.start(3, 400)
        clock.now += 2
        display.images(400)
        display.epoch(record(1))
        display.images(200)
        clock.now += 2
        assert display._live is not None
        display._live.refresh()
        words = " ".join(terminal.words().split())
    for shown in ("epoch 2/3", "loss 1.7617", "val 43.71%", "100 images/s", "0:04 left"):
        assert shown in words, words
    assert "\u2026" not in words


@pytest.mark.parametrize("live", [False, True], ids=["plain", "live"])
def test_counting_images_costs_nothing(live: bool, terminal: Terminal) -> None:
    with Display(terminal if live else io.StringIO()) as display:
        display.start(300, 40_000)
        quickest = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(5_000):
                display.images(128)
            quickest = min(quickest, (time.perf_counter() - start) / 5_000)
    assert quickest < 2e-6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (10_260, "2:51:00"), (float("nan"), "-")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
