"""A program that launches every CUDA op on a few small shapes, under compute-sanitizer (bench/gpu.sh).

    python tests/op_launches.py [DEVICE [N]]     N: only every N-th of an op's calls

The inputs are computed on the CPU and copied, so that none of PyTorch's kernels runs on the device. Under a sanitizer
they take longer than the ops, and the initcheck tool takes the memory that they write for uninitialised.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import torch
from op_cases import (
    Arguments,
    as_tuple,
    calls,
    out_shape,
    pool_calls,
    sgd_arguments,
    statistics_arguments,
    stem_calls,
    step_calls,
)
from torch import Tensor

from fastcifar.ops.classifier_gradient import suits as suits_classifier

# Vectors and single channels, tiles cut at every border, clusters that keep small maps, more partial sums than are
# merged on load; two on tensor cores in 16 bits; the last in clusters of sixteen blocks
SHAPES = [(2, 3, 5, 7), (2, 65, 2, 2), (3, 34, 4, 4), (1, 6, 33, 31), (70, 16, 2, 2), (20, 32, 4, 4), (150, 2, 16, 8)]
SHAPES += [(2, 32, 8, 8), (5, 136, 4, 4), (66, 16, 8, 8)]


def launches(dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """Every call that the kernels of `device` take, with arguments on the CPU; the classifier's where it `suits`.

    The CPU has no float16 kernels, so that bfloat16 makes those arguments.
    """
    on_cpu = torch.bfloat16 if dtype == torch.float16 else dtype
    for shape in SHAPES:
        for stride in (1, 2):
            for name, arguments in calls(shape, on_cpu, stride):
                if "separable" in name:  # the product's weight in the activations' dtype: else PyTorch converts it
                    position = 6 if name == "separable_block" else 8
                    arguments = (*arguments[:position], arguments[position].to(on_cpu), *arguments[position + 1 :])
                if dtype == torch.float16 and name == "_separable_block_backward" and len(arguments) > 15:
                    # The gradient of v's moments: of its size here, a sum of 20,000 pixels is infinite in float16.
                    arguments = (*arguments[:16], arguments[16] / 100, *arguments[17:])
                yield name, arguments
                if name in ("depthwise_block", "_depthwise_block_backward"):
                    result = out_shape(shape, stride) if name == "depthwise_block" else shape
                    given = torch.empty(result, dtype=on_cpu, memory_format=torch.channels_last)
                    yield f"_{name.removeprefix('_')}_into", (given, *arguments)
        ends = [*stem_calls(shape, on_cpu), *pool_calls(shape, on_cpu)]
        yield from ((name, args) for name, args in ends if device == "cpu" or len(args) != 8)
    yield from step_calls(on_cpu)
    narrow = None if dtype == torch.float32 else on_cpu
    yield "sgd", sgd_arguments([(5,), (0,), (32, 3, 3, 3), (5000,)], narrow, 0.9, True)
    yield "update_statistics", statistics_arguments([5, 0, 1024], 0.1)


def on_device(arguments: Arguments, dtype: torch.dtype, device: str) -> Arguments:
    def moved(value: object) -> object:
        if value is torch.bfloat16:
            return dtype
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        return (value.to(dtype) if value.dtype == torch.bfloat16 else value).to(device)

    return tuple(moved(value) for value in arguments)


def some_launches(dtype: torch.dtype, device: str, every: int) -> Iterator[tuple[str, Arguments]]:
    """The first call of each op and every `every`-th after it, for tools under which all calls take minutes."""
    torch.manual_seed(0)
    seen: Counter[str] = Counter()
    for name, arguments in launches(dtype, device):
        if seen[name] % every == 0:
            yield name, arguments
        seen[name] += 1


def main(device: str, every: str = "1") -> None:
    dtypes = [torch.float32, torch.bfloat16] + ([torch.float16] if device == "cuda" else [])
    count = 0
    for dtype in dtypes:
        for name, arguments in some_launches(dtype, device, int(every)):
            given = on_device(arguments, dtype, device)
            if name == "classifier_gradient" and not suits_classifier(given[0], len(given[1])):
                continue
            outputs = getattr(torch.ops.fastcifar, name)(*given)
            for output in given[0] if outputs is None else as_tuple(outputs):  # None: it writes its first argument
                assert output.cpu().isfinite().all(), (name, dtype)
            count += 1
    print(f"{count} calls on {device}, all results finite")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["cuda"])
