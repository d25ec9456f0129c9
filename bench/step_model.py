"""The captured CUDA step of the fused engine in bf16, kind of kernel by kind of kernel: estimated, and measured.

    python bench/step_model.py [--batch 128] [--measured FILE.json]

The estimate was made before any GPU had run the step, of commit deb4fbd. A kernel takes a gap, and then the longest of
a floor, of its bytes and of its instructions. Bytes are counted from the network's shapes, launches in the emulator of
tests/, instructions in the machine code for sm_90. What a GPU does with them is assumed: `Assumptions` below has every
assumption. FILE.json holds measured microseconds by commit and kind, for example `{"deb4fbd": {"sweep": 107.5}}`; each
commit becomes a column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastcifar.model import BLOCKS, STEM_CHANNELS, build_model, count_parameters

HALF = 2  # bytes of bf16
MEASURED = Path(__file__).parent / "results/NVIDIA-kinds.json"  # an H200; 6b3ddb9: an H100


@dataclass(frozen=True)
class Assumptions:
    """An H100, in the middle of what is plausible. None of it was measured by us.

    Attributes:
        gap_us: between two kernels of a replayed graph.
        floor_us: of a kernel that does nothing much: its blocks start, wait once for memory, and end.
        product_floor_us: of a matrix product of cuBLAS.
        early_us: what a kernel of ours saves of gap and floor if it starts while the kernel before it ends.
        dram, l2: bytes a microsecond, for kernels whose tensors do not fit and do fit the cache.
        l2_bytes: what fits the cache.
        sms: multiprocessors.
        sm_l2: bytes a microsecond that one multiprocessor reads from the cache.
        clock_mhz: of the multiprocessors.
        issue: the share of cycles in which a scheduler issues an instruction.
    """

    gap_us: float = 1.1
    floor_us: float = 2.4
    product_floor_us: float = 3.5
    early_us: float = 0.65
    dram: float = 3.0e6
    l2: float = 4.5e6
    l2_bytes: float = 25e6
    sms: int = 132
    sm_l2: float = 64 * 1755
    clock_mhz: float = 1755
    issue: float = 0.6


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        kind: the line of the table.
        bytes: read and written.
        instructions: of all lanes together, where they matter.
        blocks: of threads, where there are fewer than multiprocessors; 0: enough.
        ours: whether it is a kernel of the extension, and not of cuBLAS, cuDNN or PyTorch.
        product: whether it is a matrix product or a convolution.
    """

    kind: str
    bytes: float
    instructions: float = 0
    blocks: int = 0
    ours: bool = True
    product: bool = False

    def microseconds(self, a: Assumptions) -> float:
        """Its time, with the gap before it."""
        sms = min(self.blocks or a.sms, a.sms)
        rate = min(a.l2 if self.bytes < a.l2_bytes else a.dram, sms * a.sm_l2)
        lanes = sms * 128 * a.clock_mhz * a.issue  # lane instructions a microsecond
        floor = a.product_floor_us if self.product else a.floor_us
        saved = a.early_us if self.ours else 0.0
        return a.gap_us + max(floor, self.bytes / rate, self.instructions / lanes) - saved


FORWARD, BACKWARD = 39, 77  # instructions an output of the depthwise kernels, bf16
PLANE_FORWARD, PLANE_BACKWARD = 36, {1: 62, 2: 35}  # for small maps, all passes: an output; by stride, an input
PLANE_CHANNELS = 8


def step(batch: int) -> Iterator[Kernel]:
    """The launches of one step of `batch` images, in the order of their kinds."""
    channels, size = STEM_CHANNELS, 32
    for out_channels, stride in BLOCKS:
        small = size // stride
        u, y, v = (HALF * batch * c * s * s for c, s in ((channels, size), (channels, small), (out_channels, small)))
        outputs, weight = y / HALF, HALF * channels * out_channels
        if size <= 4 and batch <= 256:
            blocks = channels // PLANE_CHANNELS
            # A block reads half sectors, and finds what it has read in its own cache.
            yield Kernel("small maps forward", 2 * (u + 2 * y), PLANE_FORWARD * outputs, blocks)
            yield Kernel("small maps backward", 2 * (3 * u + 2 * y), PLANE_BACKWARD[stride] * u / HALF, blocks)
        else:
            yield Kernel("moments", u)
            yield Kernel("depthwise", u + y, FORWARD * outputs)
            yield Kernel("norm_relu", 2 * y)
            yield Kernel("sums", 2 * y)
            yield Kernel("sweep", 2 * y + 2 * u, BACKWARD * outputs)
            yield Kernel("norm_backward", 3 * u)
        for _ in range(3):  # forward, gradient of the input, gradient of the weight
            yield Kernel("products", y + v + weight, ours=False, product=True)
        channels, size = out_channels, small
    for kind, tensors in (("moments", 1), ("norm_relu", 2), ("sums", 2), ("norm_backward", 3)):
        yield Kernel(kind, tensors * v)
    for _ in range(8):
        yield Kernel("merges", 0)
    images, first = HALF * batch * 3 * 32 * 32, HALF * batch * STEM_CHANNELS * 32 * 32
    for _ in range(2):
        yield Kernel("stem", images + first, ours=False, product=True)
    for _ in range(3):
        yield Kernel("head", HALF * 1024 * (batch + 100), ours=False, product=True)
    parameters = count_parameters(build_model(100, 1.0, 0))
    yield Kernel("optimizer", 20 * parameters)
    yield Kernel("batch", images + batch * 3 * 32 * 32)
    for _ in range(10):  # running statistics 3, pooling 2, loss 2, counters, totals, learning rate
        yield Kernel("small", 0, ours=False)


def table(batch: int, a: Assumptions) -> dict[str, tuple[int, float, float]]:
    """For each kind its launches, megabytes and microseconds a step, estimated.

    Args:
        batch: as for `step`.
        a: the assumptions.
    """
    rows: dict[str, tuple[int, float, float]] = {}
    for kernel in step(batch):
        launches, size, time = rows.get(kernel.kind, (0, 0.0, 0.0))
        rows[kernel.kind] = launches + 1, size + kernel.bytes / 1e6, time + kernel.microseconds(a)
    return rows


def text(batch: int, measured: Mapping[str, Mapping[str, float]]) -> str:
    """The table as text, with a column for each measured commit."""
    rows = table(batch, Assumptions())
    lines = [
        f"{f'batch {batch}':24}{'launches':>10}{'MB':>8}{'estimated us':>14}" + "".join(f"{c:>12}" for c in measured)
    ]
    for kind, (n, size, time) in rows.items():
        columns = "".join(f"{us[kind]:>12.0f}" if kind in us else f"{'-':>12}" for us in measured.values())
        lines.append(f"  {kind:22}{n:>10}{size:>8.0f}{time:>14.0f}{columns}")
    launches, size, total = (sum(row[i] for row in rows.values()) for i in range(3))
    columns = "".join(f"{sum(us.values()):>12.0f}" for us in measured.values())
    lines.append(f"  {'step':22}{launches:>10.0f}{size:>8.0f}{total:>14.0f}{columns}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Prints the table for the batch size of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--measured", type=Path, help="microseconds by commit and kind, as JSON")
    given = parser.parse_args(arguments)
    path = given.measured or (MEASURED if given.batch == 128 else None)
    measured = json.loads(path.read_text()) if path else {}
    kinds = {kernel.kind for kernel in step(given.batch)}
    if unknown := sorted({kind for us in measured.values() for kind in us} - kinds):
        parser.error(f"{path}: no kind {unknown[0]}; the kinds are {', '.join(sorted(kinds))}")
    print(text(given.batch, measured))


if __name__ == "__main__":
    main(sys.argv[1:])
