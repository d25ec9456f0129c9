"""Taking steps: launched op by op, or replayed whole from a CUDA graph. The training loop does not see which."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastcifar.engines.compiled import explain, is_compile_error
from fastcifar.engines.eager import Engine
from fastcifar.loaders import Loader, ResidentLoader
from fastcifar.target import Target, is_out_of_memory


class Steps(Protocol):
    """The steps of a run, an epoch at a time."""

    def warm_up(self) -> float:
        """Compiles, captures and chooses kernels, so that it is over when training starts, and leaves what is trained
        as it was. Returns the seconds it took. To be called once, before the first epoch.
        """
        ...

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch, counted from 1, at the step that is taken first."""
        ...

    def take(self, step: int) -> int:
        """Takes a step of the epoch, counted from 0, without waiting for the device; returns how many images it has."""
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
    """The steps of a run: on CUDA the fused engine's step is one graph, if the batches are made on the device.

    Args:
        engine, loader: trains and feeds.
        lrs: the learning rate of every step of the run (see `optim.lr_table`).
        target: says which engine on which device.
        note: is told where steps are launched op by op because the batches come from the host.
        launched: launches the steps op by op where they would be one graph.
    """
    config = target.config
    if config.engine == "fused" and target.device.type == "cuda" and not launched:
        if isinstance(loader, ResidentLoader):
            return ReplayedSteps(engine, loader, lrs, target.device)
        source = f"loader = {config.loader}" if config.loader != "resident" else f"images_on = {config.images_on}"
        note(f"{source}: batches come from the host, so steps are launched op by op and not as one CUDA graph")
    return LaunchedSteps(engine, loader, lrs, target)


class LaunchedSteps:
    """Every op of a step is launched when its turn comes."""

    def __init__(self, engine: Engine, loader: Loader, lrs: NDArray[np.float64], target: Target) -> None:
        self._engine, self._loader, self._lrs, self._config = engine, loader, lrs, target.config
        self._first = 0

    def warm_up(self) -> float:
        """One full batch and, where the epoch ends with a smaller one, that too, forward and backward.

        With a `compile_mode` that captures CUDA graphs the full batch goes three times: run, recorded, replayed.
        """
        loader, config = self._loader, self._config
        start = time.perf_counter()
        loader.begin(1)
        repeats = 1 if config.compile_mode == "default" else 3
        try:
            batch = loader.batch(0)
            rest = loader.num_images % loader.batch_size if loader.num_batches > 1 else 0
            self._engine.warm_up([*[batch] * repeats, *([batch.first(rest)] if rest else [])])
        except Exception as error:
            # On CUDA the eager engine's augmentation is compiled too.
            if not is_out_of_memory(error) and (config.engine == "compiled" or is_compile_error(error)):
                raise explain(error, config.engine) from error
            raise
        return time.perf_counter() - start

    def begin(self, epoch: int, first_step: int = 0) -> None:
        self._first = (epoch - 1) * self._loader.num_batches
        self._loader.begin(epoch, first_step)

    def take(self, step: int) -> int:
        batch = self._loader.batch(step)
        self._engine.train_step(batch, self._lrs[self._first + step])
        return len(batch.labels)


class ReplayedSteps:
    """A step is one CUDA graph: batch, forward, backward, optimizer, averages and totals. The host only says "again".

    What changes from step to step lies on the device: the epoch's draws, the learning rates of the run, and two
    counters, which the graph itself moves on. The epoch's last, smaller batch has a graph of its own.
    """

    def __init__(self, engine: Engine, loader: ResidentLoader, lrs: NDArray[np.float64], device: torch.device) -> None:
        self._engine, self._loader, self._device = engine, loader, device
        self._lrs = torch.from_numpy(lrs).to(device, torch.float32)
        self._lr = torch.zeros(1, device=device)
        self._counters = torch.zeros(2, dtype=torch.int64, device=device)  # the step in the epoch, and in the run
        rest = loader.num_images % loader.batch_size
        self._sizes = [loader.batch_size] * (loader.num_images // loader.batch_size) + [rest] * (rest > 0)
        self._replay: dict[int, Callable[[], None]] = {}

    def warm_up(self) -> float:
        """Takes a few steps of each size, undoes them, and captures one of each."""
        start = time.perf_counter()
        engine = self._engine
        kept = {name: tensor.clone() for name, tensor in engine.tensors().items()}
        scaler = engine.scaler.state_dict()
        self.begin(1)
        sizes = dict.fromkeys(self._sizes)
        with _side_stream(self._device):
            for rows in [*sizes] * 2:
                self._count_from(self._sizes.index(rows))
                self._step(rows)
        self._replay = self._captured(sizes)
        with torch.no_grad():
            for name, tensor in engine.tensors().items():
                tensor.copy_(kept[name])
        engine.scaler.load_state_dict(scaler)
        return time.perf_counter() - start

    def begin(self, epoch: int, first_step: int = 0) -> None:
        self._loader.begin(epoch, first_step)
        self._count_from(first_step, (epoch - 1) * self._loader.num_batches)

    def _count_from(self, step: int, steps_before: int = 0) -> None:
        self._counters.copy_(torch.tensor([step, steps_before + step]))

    def take(self, step: int) -> int:
        rows = self._sizes[step]
        self._replay[rows]()
        return rows

    def _step(self, rows: int) -> None:
        torch.index_select(self._lrs, 0, self._counters[1:], out=self._lr)
        self._engine.train_step(self._loader.batch_at(self._counters[0], rows), self._lr)
        self._counters += 1

    def _captured(self, sizes: Iterable[int]) -> dict[int, Callable[[], None]]:
        """A way to take a step of each size: a graph's replay. On the CPU, where there are none, the step itself."""
        if self._device.type == "cpu":
            return {rows: partial(self._step, rows) for rows in sizes}
        replay, pool = {}, None
        for rows in sizes:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step(rows)
            replay[rows], pool = graph.replay, graph.pool()  # one memory: a step leaves nothing there for the next
        return replay


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """What runs before a capture must not run on the default stream, which can't be captured."""
    if device.type == "cpu":
        yield
        return
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
