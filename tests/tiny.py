"""A data set and settings so small that a whole training run takes a second or two."""

from pathlib import Path

import numpy as np
import torch

from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.session import Session
from fastcifar.target import Target

NUM_CLASSES = 4


def tiny_split(num_images: int, seed: int = 0) -> Split:
    """Images whose colour shows their class, uint8 [num_images, 32, 32, 3]; the classes come in turns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % NUM_CLASSES
    colour = rng.integers(0, 256, (NUM_CLASSES, 3)) if seed == 0 else tiny_colours()
    noise = rng.normal(0, 60, (num_images, 32, 32, 3))
    return Split(np.clip(colour[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64))


def tiny_colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_CLASSES, 3))


def write_tiny(path: Path, num_train: int = 124, num_test: int = 40) -> Path:
    """An .npz of the layout that `--data` takes."""
    train, test = tiny_split(num_train), tiny_split(num_test, seed=1)
    arrays = {"train_images": train.images, "train_labels": train.labels}
    np.savez(path, **arrays, test_images=test.images, test_labels=test.labels)
    return path


def tiny_config(data: Path | str = "procedural", **settings: object) -> Config:
    """Width 0.125, 100 training images in batches of 16 (the last holds 4), three epochs, on the CPU in float32."""
    small = dict(data=str(data), val_size=24, width_mult=0.125, batch_size=16, epochs=3, eval_batch_size=20)
    fixed = dict(preset="tiny", device="cpu", precision="fp32", engine="eager", checkpoint_seconds=0.0)
    return Config.model_validate({**small, **fixed, **settings})


def tiny_session(config: Config, num_images: int = 100) -> Session:
    """A session of `config`, unchanged, with `num_images` tiny images; its context is not entered."""
    session = Session(Target(config), NUM_CLASSES)
    session.feed(tiny_split(num_images), lambda text: None)
    return session


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's checkpoint: weights, statistics, momentum, averages."""
    from fastcifar.run.folder import RunFolder

    return RunFolder.open(run).load_checkpoint()[0]
