"""Taking steps: launched op by op, or replayed whole from a CUDA graph. The training loop is the same for both."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastcifar.engines.compiled import compilation_explained
from fastcifar.engines.eager import Engine
from fastcifar.loaders import Loader, ResidentLoader
from fastcifar.ops import advance_step, own_threads
from fastcifar.run.affinity import are_chosen
from fastcifar.run.environment import allowed_cores
from fastcifar.target import Target


class Steps(Protocol):
    """The steps of a run, an epoch at a time."""

    def warm_up(self) -> float:
        """Compiles, captures and chooses kernels before training starts, and leaves what is trained as it was.

        Must be called once, before the first epoch.

        Returns:
            The seconds that it took.
        """
        ...

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch.

        Args:
            epoch: counted from 1.
            first_step: the step that will be taken first, counted from 0.
        """
        ...

    def take(self, step: int) -> int:
        """Takes a step of the epoch, without waiting for the device.

        Args:
            step: counted from 0.

        Returns:
            The number of images in the step, in all processes.
        """
        ...


def build_steps(
    engine: Engine,
    loader: Loader,
    lrs: NDArray[np.float64],
    target: Target,
    note: Callable[[str], None],
    *,
    launched: bool = False,
) -> Steps:
    """The steps of a run. On CUDA a step of any engine is one CUDA graph, if the device makes the batches.

    Args:
        engine: takes the steps.
        loader: makes the batches.
        lrs: float64 [epochs * num_batches], the learning rate of every step of the run (see `optim.lr_table`).
        target: the settled config and its device.
        note: is called with a remark if steps are launched op by op that could be one graph, with the reason.
        launched: launches the steps op by op even where they would be one graph. For measuring.

    Returns:
        The steps, launched or replayed.
    """
    config = target.config
    if target.device.type == "cuda" and not launched:
        if target.ranks.size > 1:
            note(f"{target.ranks.size} processes: steps are launched op by op and not as one CUDA graph")
            return LaunchedSteps(engine, loader, lrs, target)
        if isinstance(loader, ResidentLoader):
            return ReplayedSteps(engine, loader, lrs, target)
        source = f"loader = {config.loader}" if config.loader != "resident" else f"images_on = {config.images_on}"
        note(f"{source}: batches come from the host, so steps are launched op by op and not as one CUDA graph")
    return LaunchedSteps(engine, loader, lrs, target)


class LaunchedSteps:
    """Steps whose ops are launched one by one. The arguments are as for `build_steps`."""

    def __init__(self, engine: Engine, loader: Loader, lrs: NDArray[np.float64], target: Target) -> None:
        self._engine, self._loader, self._lrs, self._config = engine, loader, lrs, target.config
        self._ranks = target.ranks
        self._threads = own_threads if _computes_in_own_threads(target) else contextlib.nullcontext
        self._first = 0

    def warm_up(self) -> float:
        """Runs forward and backward of a full batch and, if the epoch ends with a smaller batch, of one of its size.

        With a `compile_mode` that captures CUDA graphs the full batch runs three times: plain, recorded and replayed.

        Returns:
            The seconds that it took.

        Raises:
            CompileError: torch.compile, or a compiler that it calls, failed.
        """
        loader, config = self._loader, self._config
        start = time.perf_counter()
        loader.begin(1)
        repeats = 1 if config.compile_mode == "default" else 3
        with compilation_explained(config.engine), self._threads():
            batch = loader.batch(0)
            rest = loader.num_images % loader.batch_size if loader.num_batches > 1 else 0
            own = self._ranks.rows(rest)
            self._engine.warm_up([*[batch] * repeats, *([batch.first(own.stop - own.start)] if rest else [])])
        return time.perf_counter() - start

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch; see `Steps.begin`."""
        self._first = (epoch - 1) * self._loader.num_batches
        self._loader.begin(epoch, first_step)

    def take(self, step: int) -> int:
        """Takes a step; see `Steps.take`."""
        with self._threads():
            batch = self._loader.batch(step)
            self._engine.train_step(batch, self._lrs[self._first + step])
        return min(self._loader.batch_size, self._loader.num_images - step * self._loader.batch_size)


def _computes_in_own_threads(target: Target) -> bool:
    """Whether nearly all work of a step is done by ops of ours on the CPU, in as many threads as there are cores."""
    on_cpu = target.device.type == "cpu" and target.config.engine == "fused"
    return on_cpu and torch.get_num_threads() <= len(allowed_cores()) and not are_chosen()


class StagedSteps:
    """Steps that are of one kind in the first epochs, and of another in the epochs after them.

    Args:
        first: takes the steps of the first epochs.
        later: takes the steps of the other epochs.
        epochs: how many epochs are the first.
    """

    def __init__(self, first: Steps, later: Steps, epochs: int) -> None:
        self._first, self._later, self._epochs = first, later, epochs
        self._now = first

    def warm_up(self) -> float:
        """Warms both up; see `Steps.warm_up`."""
        return self._first.warm_up() + self._later.warm_up()

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch; see `Steps.begin`."""
        self._now = self._first if epoch <= self._epochs else self._later
        self._now.begin(epoch, first_step)

    def take(self, step: int) -> int:
        """Takes a step; see `Steps.take`."""
        return self._now.take(step)


class ReplayedSteps:
    """Steps that are CUDA graphs: batch, forward, backward, optimizer, averages and totals. The host only replays them.

    All that changes from step to step is on the device: the epoch's draws, the learning rates of the run, and two
    counters that the graph itself increases. If the epoch's last batch is smaller, it has a graph of its own.

    Args:
        engine: takes the steps.
        loader: makes the batches on the device.
        lrs: float64 [epochs * num_batches], the learning rate of every step of the run.
        target: the settled config and its device. On the CPU, where tests run, nothing is captured.
    """

    def __init__(self, engine: Engine, loader: ResidentLoader, lrs: NDArray[np.float64], target: Target) -> None:
        self._engine, self._loader, self._config, self._device = engine, loader, target.config, target.device
        device = target.device
        self._lrs = torch.from_numpy(lrs).to(device, torch.float32)
        self._lr = torch.zeros(1, device=device)
        self._counters = torch.zeros(2, dtype=torch.int64, device=device)  # the step of the epoch, the step of the run
        rest = loader.num_images % loader.batch_size
        self._sizes = [loader.batch_size] * (loader.num_images // loader.batch_size) + [rest] * (rest > 0)
        self._replay: dict[int, Callable[[], None]] = {}

    def warm_up(self) -> float:
        """Takes two steps of each size, captures one of each size, and undoes what the steps changed.

        Returns:
            The seconds that it took.

        Raises:
            CompileError: torch.compile, or a compiler that it calls, failed.
        """
        start = time.perf_counter()
        engine = self._engine
        kept = {name: tensor.clone() for name, tensor in engine.tensors().items()}
        scaler = engine.scaler.state_dict()
        self.begin(1)
        sizes = dict.fromkeys(self._sizes)
        with compilation_explained(self._config.engine), _side_stream(self._device):
            for rows in [*sizes] * 2:
                self._count_from(self._sizes.index(rows))
                self._step(rows)
        self._replay = self._captured(sizes)
        engine.load(kept)
        engine.scaler.load_state_dict(scaler)
        return time.perf_counter() - start

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch; see `Steps.begin`."""
        self._loader.begin(epoch, first_step)
        self._count_from(first_step, (epoch - 1) * self._loader.num_batches)

    def _count_from(self, step: int, steps_before: int = 0) -> None:
        self._counters.copy_(torch.tensor([step, steps_before + step]))

    def take(self, step: int) -> int:
        """Takes a step; see `Steps.take`."""
        rows = self._sizes[step]
        self._replay[rows]()
        return rows

    def _step(self, rows: int) -> None:
        batch = self._loader.batch_at(self._counters[0], rows)
        self._engine.train_step(batch, self._lr, partial(advance_step, self._counters, self._lrs, self._lr))

    def _captured(self, sizes: Iterable[int]) -> dict[int, Callable[[], None]]:
        """For each size the function that takes a step: the replay of a graph or, on the CPU, the step itself."""
        if self._device.type == "cpu":
            return {rows: partial(self._step, rows) for rows in sizes}
        replay, pool = {}, None
        # Of higher priority than side streams, for whose work only the end of the step waits
        stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        with _own_workspaces():
            for rows in sizes:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._step(rows)
                replay[rows], pool = graph.replay, graph.pool()  # shared memory: no step leaves anything there
        return replay


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """A context in which graphs are captured whose products write to no memory of other graphs or of launched work.

    PyTorch keeps one workspace of cuBLAS for each stream that ever had a product, and captures all graphs of a process
    on one stream: the graphs of two runs, replayed at the same time, overwrote each other's partial sums. Without a
    kept workspace the capture allocates one in the graph's own memory.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """A context on a stream of its own: work before a capture must not run on the default stream."""
    if device.type == "cpu":
        yield
        return
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
