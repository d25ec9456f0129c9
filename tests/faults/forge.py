"""The process that commands are forked from: torch is imported once, under the shim, and each command costs a fork.

It reads requests from stdin, a JSON object a line, and answers each; `processes.Forge` is the other end.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import sabotage
import safetensors.torch  # noqa: F401
import torch

import fastcifar.cli.main
import fastcifar.evaluation
import fastcifar.report.writing
import fastcifar.trainer  # noqa: F401
from fastcifar.run import environment

LIBRARY = ctypes.CDLL(None)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def work(request: dict[str, Any]) -> int:
    """What a forked process does: the command, with the shim armed."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), number)
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    getattr(sabotage, request["sabotage"])(*request["arguments"])
    trace = os.open(request["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if request["trace"] else -1
    if request["root"]:
        action, at, error = request["fault"]
        LIBRARY.faults_arm(os.fsencode(request["root"]), action, ctypes.c_long(at), error, trace)
    return fastcifar.cli.main.main(request["command"])


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    environment.commit(Path(fastcifar.__file__).resolve().parent.parent)  # kept, and git takes its time
    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait_for" in request:
            answer(os.waitstatus_to_exitcode(os.waitpid(request["wait_for"], 0)[1]))
            continue
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = work(request)
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
                os._exit(code)
        answer(child)


if __name__ == "__main__":
    main()
