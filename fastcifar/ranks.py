"""The processes that train one run together: which of them this one is, and what they tell each other.

`torchrun` starts the processes, and numbers them in environment variables. Everything that differs between them follows
from `Ranks`: the part of each batch, the GPU, and who writes the run folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastcifar.errors import RankError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that torchrun sets for each process."""
STEPS_BETWEEN_QUESTIONS = 10
"""Steps from one question whether a signal came to the next; each question is a message between all processes."""


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run. Alone, each method returns at once what it was given.

    Every process must call the methods from `summed` on, in the same order: each waits for all processes.

    Attributes:
        rank: the number of this process, from 0. The first process writes the run folder.
        size: the number of processes.
        local: the number of this process on its machine, from 0, and of its GPU there.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def started(cls) -> Ranks:
        """This process, as torchrun numbered it; alone if torchrun did not start it. Does not import torch.

        Raises:
            UsageError: only some of the variables are set, or one is no number.
        """
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        if missing := [name for name in VARIABLES if not os.environ.get(name)]:
            raise UsageError(
                f"the environment has RANK and WORLD_SIZE, and lacks {', '.join(missing)}: start several processes "
                "with torchrun --nproc-per-node=K -m fastcifar train, which sets them all, or unset RANK to train alone"
            )
        numbers = {name: os.environ[name] for name in VARIABLES[:3]}
        try:
            rank, size, local = map(int, numbers.values())
        except ValueError:
            raise UsageError(f"{numbers}: expected numbers; torchrun sets them, or unset RANK to train alone") from None
        return cls(rank, size, local)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder, and tells the person at the keyboard how it goes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this process's: parts of equal size, up to one row, in the order of the ranks."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A context in which the processes can reach each other: through NCCL for tensors on CUDA, else through gloo.

        Raises:
            RankError: another process has ended, or cannot be reached.
        """
        if self.size == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, rank=self.rank, world_size=self.size)
            yield
            self._wait()  # whoever reads the run folder next finds it whole
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise RankError(
                f"another of the {self.size} processes has ended or cannot be reached: no process goes on without it, "
                f"and its own message says why, unless it was killed ({_first_line(error)})"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    @contextlib.contextmanager
    def first_here_goes_first(self) -> Iterator[None]:
        """A context that the other processes of a machine enter when its first process has left it."""
        if self.size > 1 and self.local > 0:
            self._wait()
        yield
        if self.size > 1 and self.local == 0:
            self._wait()

    def _wait(self) -> None:
        """Waits for all processes, through gloo: a barrier of NCCL's would take GPU 0 in every process."""
        self.maximum(0)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors; `tensor` itself stays as it is."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def total(self, number: int) -> int:
        """The sum of the processes' numbers."""
        return sum(self.gathered(number))

    def maximum(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def agreed(self, signal_number: int, step: int) -> int:
        """The signal that ends training after this step, the same for all processes; 0 to go on.

        Args:
            signal_number: of the signal that this process has received; 0 for none.
            step: the step of the epoch just taken. Several processes ask each other after some of the steps only.
        """
        if self.size > 1 and (step + 1) % STEPS_BETWEEN_QUESTIONS:
            return 0
        return self.maximum(signal_number)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Sets each float tensor to its mean over the processes."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        parts = list(tensors)
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        means = torch.split_with_sizes(flat / self.size, [part.numel() for part in parts])
        for part, mean in zip(parts, means, strict=True):
            part.copy_(mean.view_as(part))

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Sets each tensor to the first process's."""
        if self.size == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dense = tensor.contiguous()  # a tensor in channels_last must be sent as another one
            dist.broadcast(dense, 0)
            tensor.copy_(dense)

    def from_first(self, value: T) -> T:
        """The first process's value, which can be pickled."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """The processes' values, in the order of the ranks. They can be pickled."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()
"""The only process of its run."""


def _is_lost(error: RuntimeError) -> bool:
    """Whether `error` says that another process cannot be reached. gloo has no exception of its own for it."""
    import torch.distributed as dist

    text = str(error)
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def _first_line(error: RuntimeError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
