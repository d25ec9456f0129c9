"""Checks that a change keeps every bit: trains each preset in this checkout and in an older one, and compares the runs.

    python tests/same_bits.py OLD_CHECKOUT [PRESET ...]

Both checkouts need their ops built. Each preset is trained for two epochs at width 0.125 on 2,000 random images of ten
classes, in fp32 and bf16, with engine = eager and fused. The metrics without their clocks, the tensors of the
checkpoint and the predictions must be equal bit for bit. The old checkout also begins a run and is stopped after the
first epoch; this checkout finishes the run, which must equal a run that was never stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
CLOCKS = ("train_seconds", "images_per_second")
SMALL = "--epochs 2 --width-mult 0.125 --val-size 200 --batch-size 64 --device cpu --lr-warmup-epochs 0".split()


def main() -> int:
    """Prints a line for each run. The exit code is the number of runs that differ."""
    old, presets = Path(sys.argv[1]).resolve(), sys.argv[2:]
    presets = presets or sorted(path.stem for path in (HERE / "configs").glob("*.toml"))
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder) / "images.npz")
        for preset, engine, precision in itertools.product(presets, ("eager", "fused"), ("fp32", "bf16")):
            arguments = ["--preset", preset, "--data", str(data), *SMALL, "--engine", engine, "--precision", precision]
            runs = [Path(folder) / f"{preset}-{engine}-{precision}-{age}" for age in ("old", "new")]
            for run, checkout in zip(runs, (old, HERE), strict=True):
                fastcifar(checkout, "train", *arguments, "--out", str(run))
            different += report(f"{preset} {engine} {precision}", *runs)
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        arguments = ["--preset", "final", "--data", str(data), *SMALL, "--epochs", "40", "--engine", "fused"]
        fastcifar(HERE, "train", *arguments, "--out", str(whole))
        stop_after_an_epoch(old, "train", *arguments, "--out", str(cut))
        fastcifar(HERE, "train", "--resume", str(cut))
        different += report("begun by the old checkout, finished by this one", whole, cut)
    return different


def write_images(path: Path) -> Path:
    """Writes an .npz with images from which a small network can learn something."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 2000), ("test", 400)):
        labels = np.arange(count) % 10
        colour = rng.integers(0, 256, (10, 3)) if split == "train" else arrays["colour"]
        arrays["colour"] = colour
        noise = rng.normal(0, 60, (count, 32, 32, 3))
        arrays[f"{split}_images"] = np.clip(colour[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    del arrays["colour"]
    np.savez(path, **arrays)
    return path


def environment(checkout: Path) -> dict[str, str]:
    """The environment of a process that runs the code in `checkout`, and not an installed one."""
    return {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}


def fastcifar(checkout: Path, *arguments: str) -> None:
    """Runs a command of `checkout`, and ends this program if it fails."""
    command = [sys.executable, "-m", "fastcifar", *arguments]
    done = subprocess.run(command, env=environment(checkout), cwd="/", capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")


def stop_after_an_epoch(checkout: Path, *arguments: str) -> None:
    """Starts a run, and stops it by SIGTERM once its first epoch is recorded."""
    command = [sys.executable, "-m", "fastcifar", *arguments]
    metrics = Path(arguments[-1]) / "metrics.jsonl"
    process = subprocess.Popen(command, env=environment(checkout), cwd="/", stdout=-3, stderr=-3)
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        sys.exit(f"{checkout}: the run to be stopped ended with exit code {process.returncode}")


def report(name: str, old: Path, new: Path) -> bool:
    """Prints whether two run folders hold the same result, and returns whether they differ."""
    before, after = left_by(old), left_by(new)
    wrong = [key for key in before if not same(before[key], after.get(key))]
    print(f"{'differs: ' + ', '.join(wrong[:3]) if wrong else 'same':<10} {name} ({len(before)} things)", flush=True)
    return bool(wrong)


def left_by(run: Path) -> dict[str, Any]:
    """The metrics, tensors and predictions of a run folder, by name."""
    import safetensors.torch

    found: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("crc32", None)
        found |= {f"epoch {record['epoch']} {k}": v for k, v in record.items() if k not in CLOCKS}
    pointer = json.loads((run / "checkpoint.json").read_text())
    tensors = safetensors.torch.load_file(run / pointer["folder"] / "tensors.safetensors")
    found |= {name: tensor.numpy() for name, tensor in tensors.items()}
    with np.load(run / "predictions.npz") as predictions:
        found |= {f"predictions {name}": predictions[name] for name in predictions.files}
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to the last bit; predictions may have a wider integer dtype."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.shape == b.shape and bool((a == b).all())
    return bool(a == b)


if __name__ == "__main__":
    sys.exit(main())
