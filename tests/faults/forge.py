"""The process that commands are forked from: torch is imported once, under the shim, and each command costs a fork.

It reads requests from stdin, a JSON object a line, and answers each; `processes.Forge` is the other end.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import sabotage
import safetensors.torch  # noqa: F401
import torch

import fastcifar.cli.main
import fastcifar.evaluation
import fastcifar.ops  # noqa: F401
import fastcifar.report.writing
import fastcifar.trainer  # noqa: F401
from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.run import curves, environment
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import EPOCH_KEYS
from fastcifar.session import Session
from fastcifar.target import Target

LIBRARY = ctypes.CDLL(None)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def work(request: dict[str, Any]) -> int:
    """What a forked process does: the command, with the shim armed."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), number)
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if not request["drawn"]:
        RunFolder.draw_curves = lambda self: None  # type: ignore[method-assign]
    getattr(sabotage, request["sabotage"])(*request["arguments"])
    trace = os.open(request["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if request["trace"] else -1
    if request["root"]:
        action, at, error = request["fault"]
        LIBRARY.faults_arm(os.fsencode(request["root"]), action, ctypes.c_long(at), error, trace)
    return fastcifar.cli.main.main(request["command"])


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def warm_up() -> None:
    """Does once what would take each command its time. No backward: autograd does not work in a fork after one."""
    torch.set_num_threads(1)
    environment.commit(Path(fastcifar.__file__).resolve().parent.parent)
    config = Config(device="cpu", engine="eager", precision="fp32", width_mult=0.125, eval_batch_size=8)
    with Session(Target(config), 4) as session:
        session.evaluate(Split(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 4))
    with tempfile.TemporaryDirectory() as folder:
        curves.draw_curves([dict.fromkeys(EPOCH_KEYS, 1)], Path(folder) / "curves", "")


def main() -> None:
    warm_up()
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
