"""The errors that a user may see, each kind with the exit code of the command that it ends."""

import signal


class FastcifarError(Exception):
    """An error whose message is written for the user. The command line shows no traceback for it.

    Attributes:
        exit_code: the exit code of the command that the error ends.
    """

    exit_code = 1


class UsageError(FastcifarError):
    """A wrong command, setting or folder."""

    exit_code = 2


class DataError(FastcifarError):
    """The images cannot be found, fetched or trusted."""

    exit_code = 3


class CheckpointError(FastcifarError):
    """The saved state in a run folder is missing, is damaged or belongs to another run."""

    exit_code = 4


class NonFiniteError(FastcifarError):
    """The loss became infinite or not a number."""

    exit_code = 5


class DeviceMemoryError(FastcifarError):
    """The device does not have enough memory."""

    exit_code = 6


class CompileError(FastcifarError):
    """torch.compile, or a compiler that it calls, failed at the first step."""


class LoaderError(FastcifarError):
    """A worker process of a loader has died, cannot be started, or has no shared memory left."""


class ExportError(FastcifarError):
    """An exported model is not the run's model."""


class RankError(FastcifarError):
    """Another process of a run in several processes has ended, or cannot be reached."""


class InterruptedRunError(FastcifarError):
    """A signal stopped the run after its state was saved; `stopped_code` is the exit code."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = stopped_code(signal_number)


def stopped_code(signal_number: int) -> int:
    """The exit code of a run that a signal stopped after its state was saved.

    Args:
        signal_number: the signal.

    Returns:
        128 plus the signal's number; for SIGUSR1 75, "try again later", which a batch system can tell from an error.
    """
    return 75 if signal_number == signal.SIGUSR1 else 128 + signal_number
