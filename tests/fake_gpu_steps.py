"""A program for a fake GPU: trains a few epochs of each case, and prints what the host did for it.

A case is a line of JSON on stdin: {"settings": {...}, "num_images": 512, "launched": false}. For each, a line of JSON
goes to stdout; its fields are those of `Seen` in test_fake_gpu.py.
"""

from __future__ import annotations

import ctypes
import json
import sys
import warnings
from typing import Any

from fastcifar.config import Config
from fastcifar.errors import FastcifarError
from fastcifar.measuring.cell import NUM_CLASSES, random_images
from fastcifar.session import Session
from fastcifar.target import Target

EPOCHS = 4
GPU = ctypes.CDLL(None)
GPU.fake_gpu_graph.restype = ctypes.c_char_p
GPU.fake_gpu_bytes.restype = ctypes.c_size_t
GPU.fake_gpu_count.restype = ctypes.c_long
KINDS = ("kernel", "copy", "memset", "graph", "synchronization", "allocation", "violation")


def counts() -> dict[str, int]:
    return {kind: int(GPU.fake_gpu_count(kind.encode())) for kind in KINDS}


def run(case: dict[str, Any]) -> dict[str, Any]:
    notes: list[str] = []
    before = counts()
    target = Target.of(Config.model_validate(case["settings"]))
    with Session(target, NUM_CLASSES, launched=case["launched"]) as session:
        session.feed(random_images(case["num_images"]), notes.append)
        session.steps.warm_up()
        *nodes, depth = GPU.fake_gpu_graph().decode().splitlines()
        in_steps = dict.fromkeys(KINDS, 0)
        device_bytes, num_steps = [], 0
        for epoch in range(1, EPOCHS + 1):
            session.steps.begin(epoch)
            started = counts()
            for step in range(session.loader.num_batches):
                session.steps.take(step)
                num_steps += 1
            ended = counts()
            in_steps = {kind: in_steps[kind] + ended[kind] - started[kind] for kind in KINDS}
            session.engine.pop_means(1)
            session.evaluate(random_images(40))
            device_bytes.append(GPU.fake_gpu_bytes())
    return {
        "engine": target.config.engine,
        "nodes": nodes,
        "depth": int(depth),
        "num_steps": num_steps,
        "in_steps": in_steps,
        "device_bytes": device_bytes,
        "violations": counts()["violation"] - before["violation"],
        "notes": notes,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            seen = run(json.loads(line))
        except FastcifarError as error:
            seen = {"error": str(error)}
        print("\n" + json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
