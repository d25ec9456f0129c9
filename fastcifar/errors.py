"""What can go wrong for a user, each kind with the exit code of the command it ends."""


class FastcifarError(Exception):
    """A problem whose message is written for the person at the keyboard: no traceback is shown."""

    exit_code = 1


class UsageError(FastcifarError):
    """A wrong command, setting or folder."""

    exit_code = 2


class DataError(FastcifarError):
    """The images cannot be found, fetched or trusted."""

    exit_code = 3


class CheckpointError(FastcifarError):
    """A run folder's saved state is missing, damaged or of another run."""

    exit_code = 4


class NonFiniteError(FastcifarError):
    """The loss became infinite or not a number."""

    exit_code = 5


class DeviceMemoryError(FastcifarError):
    """The device's memory does not hold what was asked for."""

    exit_code = 6


class CompileError(FastcifarError):
    """torch.compile, or a compiler under it, failed at the first step."""


class LoaderError(FastcifarError):
    """A worker process that makes batches is gone, or has no room for them."""


class InterruptedRunError(FastcifarError):
    """A signal stopped the run after its state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
