"""TensorBoard and trackio, which show the epochs of a run while it trains. What fails there stops no run.

A thread does their work, so that a slow disk, a lock or a network cannot stall training. The first error ends the
logging with one note; what was logged stays.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from fastcifar.config import Config
from fastcifar.errors import UsageError

SECONDS_TO_END = 10.0
"""How long the end of a run waits for a logger."""


class Logger(Protocol):
    """What shows numbers. Both methods may fail in any way."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Shows numbers of an epoch, by name."""
        ...

    def close(self) -> None:
        """Writes what is not written yet."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run: `tensorboard --logdir runs` shows those of all runs."""

    def __init__(self, config: Config, folder: Path, name: str, first_epoch: int) -> None:
        tensorboard: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(folder / "tensorboard", purge_step=first_epoch)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """See `Logger.close`."""
        self._writer.close()


class Trackio:
    """A run in trackio's project `fastcifar` on this machine: `trackio show` shows it."""

    def __init__(self, config: Config, folder: Path, name: str, first_epoch: int) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        with contextlib.redirect_stdout(sys.stderr):  # results go to stdout
            self._trackio.init(project="fastcifar", name=name, config=config.model_dump(mode="json"), resume="allow")

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        self._trackio.log(dict(values), step=epoch)

    def close(self) -> None:
        """See `Logger.close`."""
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()


LOGGERS: Mapping[str, Callable[[Config, Path, str, int], Logger]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def check_logger(config: Config) -> None:
    """Refuses a logger whose package is not installed, before a run is begun.

    Raises:
        UsageError: it is missing or broken.
    """
    if config.logger == "none":
        return
    try:
        importlib.import_module(config.logger)
    except ImportError as error:
        raise UsageError(
            f"logger = {config.logger} needs a package that is not installed ({error}): pip install "
            f"'fastcifar[{config.logger}]', or train with --logger none"
        ) from error


class Log:
    """The logger of one run; does nothing with `logger = none`.

    Args:
        config: `logger` says which it is; all settings are shown.
        folder: the run folder.
        name: what the run is called beside other runs.
        first_epoch: the first epoch that will be logged. What was logged of it and of later ones was cut off.
        note: is called, in the caller's thread, with what went wrong.
    """

    def __init__(self, config: Config, folder: Path, name: str, first_epoch: int, note: Callable[[str], None]) -> None:
        self._name, self._note = config.logger, note
        self._waiting: SimpleQueue[tuple[int, dict[str, float]] | None] = SimpleQueue()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if config.logger != "none":
            arguments = (config, folder, name, first_epoch)
            self._thread = threading.Thread(target=self._work, args=arguments, name="fastcifar-log", daemon=True)
            self._thread.start()

    def epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Has numbers shown; it waits for nothing.

        Args:
            epoch: counted from 1.
            values: by name; what is no number is left out.
        """
        if self._thread is not None:
            numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and k != "epoch"}
            self._waiting.put((epoch, numbers))
            self._tell()

    def close(self) -> None:
        """Waits until all is shown, `SECONDS_TO_END` at most."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            self._error = self._error or TimeoutError(f"it did not end within {SECONDS_TO_END:g} s")
        self._tell()

    def _tell(self) -> None:
        if self._error is not None and self._thread is not None:
            self._note(f"logger = {self._name} ends here: {type(self._error).__name__}: {self._error}")
            self._thread = None

    def _work(self, config: Config, folder: Path, name: str, first_epoch: int) -> None:
        """The thread's work."""
        try:
            logger = LOGGERS[config.logger](config, folder, name, first_epoch)
            while (item := self._waiting.get()) is not None:
                logger.log(*item)
            logger.close()
        except Exception as error:
            self._error = error


@contextlib.contextmanager
def logged(config: Config, folder: Path, name: str, first_epoch: int, note: Callable[[str], None]) -> Iterator[Log]:
    """A `Log`, closed when the context ends; the arguments are its own."""
    log = Log(config, folder, name, first_epoch, note)
    try:
        yield log
    finally:
        log.close()
