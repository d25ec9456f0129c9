"""NVIDIA DALI as a loader: crop, flip and normalisation in its pipeline, on the GPU where there is one.

The pipeline is fed with the epoch's draws, so that its batches are the resident loader's up to rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws
from fastcifar.errors import UsageError
from fastcifar.loaders.ordered import OrderedLoader
from fastcifar.run import environment
from fastcifar.target import Target


def import_dali() -> Any:
    """Imports nvidia.dali.

    Returns:
        The module.

    Raises:
        UsageError: it is missing or broken.
    """
    try:
        dali = importlib.import_module("nvidia.dali")
        importlib.import_module("nvidia.dali.fn")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"loader = dali needs a package that is not installed, {error.name}: pip install 'fastcifar[dali]' "
            "(a wheel of 200 MB), or train with --loader resident"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise UsageError(
            f"loader = dali: the installed nvidia.dali cannot be imported ({error}); install it again, or train with "
            "--loader resident"
        ) from error
    return dali


class DaliLoader(OrderedLoader):
    """Training batches from a DALI pipeline, which on the CPU needs no driver.

    DALI has no bfloat16: it computes in float32.

    Args:
        split: the images, uint8 [N, S, S, 3], and their labels.
        target: as for `OrderedLoader`; the settings `mean`, `std` and `loader_workers` (the number of threads of the
            pipeline) are read too.

    Raises:
        UsageError: DALI is missing.
    """

    def __init__(self, split: Split, target: Target) -> None:
        super().__init__(split, target)
        self._images = split.images
        self._labels = torch.from_numpy(split.labels).to(target.device)
        self._pipeline = self._build(import_dali())
        self._steps: Iterator[int] = iter(())
        self._draws: EpochDraws | None = None

    def _build(self, dali: Any) -> Any:
        config, on_cuda, fn = self._config, self._device.type == "cuda", dali.fn
        size = self._images.shape[1]
        pipeline = dali.Pipeline(
            batch_size=min(self.batch_size, self.num_images),
            num_threads=config.loader_workers or max(1, int(environment.usable_cores() or 1)),
            device_id=self._device.index if on_cuda else None,
        )
        with pipeline:
            images, corners, mirror = fn.external_source(self._feed, num_outputs=3, layout=["HWC", "", ""])
            if on_cuda:
                images = images.gpu()
            crops = fn.slice(
                images, start=corners, shape=(size, size), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
            )
            pipeline.set_outputs(
                fn.crop_mirror_normalize(
                    crops,
                    mirror=mirror,
                    mean=[255 * m for m in config.mean],
                    std=[255 * s for s in config.std],
                    output_layout="HWC",
                )
            )
        return pipeline

    def _feed(self) -> tuple[Any, ...]:
        """The pipeline's input for its next batch: bytes, corners of the crops, and which crops are mirrored."""
        step, draws = next(self._steps), self._draws
        assert draws is not None
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        corners = np.stack([draws.top[rows], draws.left[rows]], axis=1) - self._config.crop_padding
        return self._images[draws.index[rows]], corners.astype(np.int32), draws.flip[rows].astype(np.int32)

    def _start(self, epoch: int, draws: EpochDraws, first_step: int) -> None:
        self._drain()
        self._pipeline.reset()
        self._draws = draws
        self._index = torch.from_numpy(draws.index).to(self._device)
        self._steps = iter(range(first_step, self.num_batches))

    def _drain(self) -> None:
        """Drops the batches of an interrupted epoch, which the pipeline ends only when all of them were taken."""
        self._steps = iter(())
        try:
            while True:
                self._pipeline.run()
        except StopIteration:
            return

    def _fetch(self, step: int) -> tuple[Tensor, Tensor]:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (output,) = self._pipeline.run(stream)
        images = from_dlpack(output.as_tensor())
        return images.permute(0, 3, 1, 2), self._labels[self._index[step * self.batch_size :][: self.batch_size]]

    def close(self) -> None:
        """Ends the pipeline and its threads."""
        self._pipeline = None
