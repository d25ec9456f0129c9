"""From the words typed to the exit code: the table of commands, and how each of them ends.

Nothing heavy is imported before a command runs: `fastcifar --help` needs neither torch nor pydantic.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fastcifar
from fastcifar import paths
from fastcifar.cli import (
    ablate,
    compare,
    completion,
    data,
    doctor,
    evaluate,
    export,
    predict,
    presets,
    profile,
    report,
    study,
    train,
)
from fastcifar.cli.arguments import WIDTH, Command, Parser
from fastcifar.errors import (
    DataError,
    DeviceMemoryError,
    FastcifarError,
    InterruptedRunError,
    NonFiniteError,
    UsageError,
)
from fastcifar.paths import refused
from fastcifar.ranks import Ranks
from fastcifar.run import failure
from fastcifar.text import ANY_STREAM, did_you_mean, nearest, one_line, printable_lines
from fastcifar.ui.notes import unfailing_stderr

HELP = """\
usage: fastcifar COMMAND [OPTION ...]
       fastcifar COMMAND --help | --help | --version

Trains MobileNetV1 on 32x32 images (CIFAR-100), as fast as one device allows.

commands:
{commands}

examples:
  fastcifar train quick                 a first run, nothing to download
  fastcifar train final --data PATH     the real thing, on CIFAR-100
  fastcifar train final --print-config  what would run, each setting's origin
  fastcifar study quick                 the whole study in small, with a report

exit codes:
  0 done              4 checkpoint unusable      75  SIGUSR1: saved; resume it
  1 other error       5 loss not finite          129 terminal closed (SIGHUP)
  2 wrong usage       6 out of device memory     130 interrupted (Ctrl-C)
  3 data missing or wrong                        143 terminated (SIGTERM)

environment:
  FASTCIFAR_DATA=DIR  where data sets are kept
  FASTCIFAR_DEBUG=1   shows the traceback of any error
"""


COMMANDS: Mapping[str, Command] = {
    "train": Command(train.SUMMARY, train.run),
    "evaluate": Command(evaluate.SUMMARY, evaluate.run),
    "predict": Command(predict.SUMMARY, predict.run),
    "export": Command(export.SUMMARY, export.run),
    "study": Command(study.SUMMARY, study.run),
    "report": Command(report.SUMMARY, report.run),
    "compare": Command(compare.SUMMARY, compare.run),
    "ablate": Command(ablate.SUMMARY, ablate.run),
    "profile": Command(profile.SUMMARY, profile.run),
    "presets": Command(presets.SUMMARY, presets.run),
    "data": Command(data.SUMMARY, data.run),
    "doctor": Command(doctor.SUMMARY, doctor.run),
    "completion": Command(completion.SUMMARY, lambda parser, argv: completion.run(parser, argv, COMMANDS)),
}


_HABITS = {
    "resume": "train --resume",
    "continue": "train --resume",
    "test": "evaluate",
    "eval": "evaluate",
    "classify": "predict",
    "infer": "predict",
    "onnx": "export",
    "save": "export",
    "bench": "ablate",
    "benchmark": "ablate",
    "download": "data get",
    "info": "data info",
    "get": "data get",
    "list": "presets",
    "help": "--help",
    "version": "--version",
    "-v": "--version",
}
"""Commands of other programs, by what does the same here."""

VARIABLES = (
    "FASTCIFAR_DATA",
    "FASTCIFAR_DEBUG",
    "FASTCIFAR_ISA",
    "FASTCIFAR_STUDY_JOBS",
    "FASTCIFAR_CUDA",
    "FASTCIFAR_CUDA_ARCHS",
    "FASTCIFAR_TEST_DATA",
)
"""The environment variables of the program, of its installation and of its tests."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (default: the process's arguments) names, and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _write_anything()
    with unfailing_stderr():
        return _main(words)


def _main(words: list[str]) -> int:
    try:
        _name_misspelt_variables()
        with failure.recorded_where_asked(), _explained(words):
            code = _run(words)
        _flush()
        return code
    except FastcifarError as error:
        _show_traceback_if_debugging()
        if (before := _before_a_message(error)) is not None:
            print(before + printable_lines(str(error)).replace("\n", f"\n{before}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        _show_traceback_if_debugging()
        print("fastcifar: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 141
        return _report(error, words)


def _run(words: list[str]) -> int:
    if not words:
        raise UsageError(f"a command is missing: {', '.join(COMMANDS)} (see fastcifar --help)")
    name, *rest = words
    if name in ("-h", "--help"):
        wrapped = (
            textwrap.fill(command.summary, WIDTH, initial_indent=f"  {key:<12}", subsequent_indent=" " * 14)
            for key, command in COMMANDS.items()
        )
        print(HELP.format(commands="\n".join(wrapped)), end="")
        return 0
    if name == "--version":
        print(f"fastcifar {fastcifar.__version__}")
        return 0
    if name not in COMMANDS:
        known = [*COMMANDS, "--help", "--version"]
        match = _HABITS.get(name.lower()) or nearest(name, known, 0.65)
        raise UsageError(f"{one_line(name)}: expected a command: {', '.join(COMMANDS)}{did_you_mean(match)}")
    command, ranks = COMMANDS[name], Ranks.started()
    if ranks.size > 1 and name != "train":
        raise UsageError(
            f"{name}: torchrun has started {ranks.size} processes, and only `train` works in several; start it as "
            f"`fastcifar {name}` (or unset RANK and WORLD_SIZE)"
        )
    try:
        return command.run(Parser(name, command.summary), rest)
    except SystemExit as end:  # argparse, having printed the help
        return end.code if isinstance(end.code, int) else 0


def _before_a_message(error: FastcifarError) -> str | None:
    """What stands before each line of an error; None where another process of the run prints the same error."""
    try:
        ranks = Ranks.started()
    except UsageError:
        ranks = Ranks()
    if ranks.is_first:
        return "fastcifar: "
    # All processes refuse the same words of the command line, and stop at the same signal and the same loss.
    if isinstance(error, (InterruptedRunError, NonFiniteError)) or (isinstance(error, UsageError) and ranks.local > 0):
        return None
    return f"fastcifar: process {ranks.rank + 1} of {ranks.size}: "


def _write_anything() -> None:
    """Makes both streams take any text: what an encoding such as ASCII lacks is written as +/- or as an escape."""
    if sys.stdout is None:  # closed by the shell: >&-
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors=ANY_STREAM)


def _name_misspelt_variables() -> None:
    """Tells of an environment variable that fastcifar does not read and whose name is near one that it does."""
    for name in sorted(os.environ):
        if name.startswith("FASTCIFAR_") and name not in VARIABLES and (match := nearest(name, VARIABLES, 0.85)):
            print(f"fastcifar: {name} is not read{did_you_mean(match)}", file=sys.stderr)


def _flush() -> None:
    """Sends on its way what was printed.

    Raises:
        FastcifarError: stdout is a file on a full disk, or cannot be written for another reason.
    """
    if sys.stdout is None:  # a service closed it
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # or the interpreter tries again at its end, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise FastcifarError(f"what was to be printed is lost: {error.strerror}") from error


@contextlib.contextmanager
def _explained(words: Sequence[str]) -> Iterator[None]:
    """Makes one of our errors of what the system refuses: a path that the user gave, one more open file, memory."""
    try:
        yield
    except OSError as error:
        try:
            os.getcwd()
        except OSError:
            raise UsageError("the working folder is gone: change to another one (cd)") from error
        if ours := _of_a_given_path(error, words):
            raise ours from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UsageError(f"{error.strerror}: raise the limit of this shell: ulimit -n 4096") from error
        raise
    except MemoryError as error:
        said = f" ({error})" if str(error) else ""
        raise DeviceMemoryError(
            f"out of memory{said}: close what else runs here, or raise the limit of this shell: ulimit -v"
        ) from error


def _of_a_given_path(error: OSError, words: Sequence[str]) -> FastcifarError | None:
    """`error` as one of ours, if the system refused a path that the user gave or one that is taken by default.

    This is the one place for it: a command need not expect what a file system can say.
    """
    values = {word: word.partition("=")[2] if word.startswith("-") else word for word in words}
    given = [path for value in values.values() if (path := _path(value))]
    data = [_path(words[1 + i]) for i, word in enumerate(words[:-1]) if word in ("--data", "info")]
    data += [_path(value) for word, value in values.items() if word.startswith("--data=")]
    data += [_path(os.environ.get("FASTCIFAR_DATA", ""))]
    if text := refused(error, [path for path in data if path]):
        return DataError(text)
    defaults = [Path("runs"), Path("report"), _path(os.environ.get("TMPDIR", ""))]
    text = refused(error, [path for path in (*given, *defaults) if path])
    return UsageError(text) if text else None


def _path(text: str) -> Path | None:
    try:
        return paths.given(text)
    except (OSError, ValueError):
        return None


def _reader_has_left() -> bool:
    """Whether the broken pipe is stdout (as after `| head`) and not another one."""
    import select

    try:
        stdout = sys.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, 0)
        if not poll.poll(0):  # an event nobody asked for: POLLERR, there is no reader
            return False
    except (OSError, ValueError, AttributeError):  # not a file
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # or the interpreter complains about unsent output at its end
    return True


def _show_traceback_if_debugging() -> None:
    if os.environ.get("FASTCIFAR_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _report(error: Exception, words: Sequence[str]) -> int:
    """An error that nobody foresaw: its kind in a line, and the traceback in a file or, failing that, here."""
    import tempfile
    import traceback

    print(f"fastcifar: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    text = f"fastcifar {fastcifar.__version__}\ncommand: {list(words)}\n\n{traceback.format_exc()}"
    where = "above"
    try:
        if os.environ.get("FASTCIFAR_DEBUG") == "1":
            raise OSError
        with tempfile.NamedTemporaryFile("w", prefix="fastcifar-error-", suffix=".txt", delete=False) as file:
            file.write(text)
        where = f"in {file.name}"
    except OSError:
        print(text, file=sys.stderr)
    # The system's refusals (a full disk, no permission) name their cause; most are not ours to mend.
    blame = "if that is no help" if isinstance(error, OSError) else "this is a fault of fastcifar"
    print(
        f"fastcifar: {blame}, please report it, with the traceback {where} and what `fastcifar doctor` prints",
        file=sys.stderr,
    )
    return 1
