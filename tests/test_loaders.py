"""The duties of every loader: the order of the draws, each image once, the same distribution, exact resuming."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split, weights, write_tiny
from torch import Tensor

from fastcifar import trainer
from fastcifar.batch import Batch
from fastcifar.data.dataset import Split
from fastcifar.draws import draw_epoch
from fastcifar.errors import InterruptedRunError
from fastcifar.loaders import Loader, build_loader
from fastcifar.target import Target
from fastcifar.ui.display import Display

CPU = torch.device("cpu")
NUM_IMAGES = 2560
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="no nvidia-dali-cuda130: pip install 'fastcifar[dali]'")
PEERS = ["torchvision", pytest.param("dali", marks=needs_dali)]
ALL = ["resident", "host", *PEERS]

Make = Callable[..., Loader]


@pytest.fixture
def make() -> Iterator[Make]:
    """make(name, split, **settings): a loader on the CPU that is closed at the end."""
    made: list[Loader] = []

    def loader(name: str, split: Split, **settings: object) -> Loader:
        where = {"loader": "resident", "images_on": "host"} if name == "host" else {"loader": name}
        config = tiny_config(**{"loader_workers": 2, **where, **settings})
        made.append(build_loader(split, Target(config), lambda text: None))
        return made[-1]

    yield loader
    for one in made:
        one.close()


def epoch_of(loader: Loader, epoch: int, first_step: int = 0) -> list[Batch]:
    loader.begin(epoch, first_step)
    return [loader.batch(step) for step in range(first_step, loader.num_batches)]


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = [p for x, y in zip(a, b, strict=True) for p in zip(vars(x).values(), vars(y).values(), strict=True)]
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in pairs)


def places() -> Split:
    """Images in which each pixel tells its row, its column and, together with the label, its image."""
    images = np.zeros((NUM_IMAGES, 32, 32, 3), np.uint8)
    images[..., 0] = np.arange(1, 33)[:, None]
    images[..., 1] = np.arange(1, 33)
    images[..., 2] = (np.arange(NUM_IMAGES) % 256)[:, None, None]
    return Split(images, np.arange(NUM_IMAGES) // 256)


IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # bytes come out as they are


def read_places(batches: list[Batch]) -> dict[str, np.ndarray]:
    """For each image of a batch its number, by pixels and by label, and its top, left and flip as in the draws."""
    x = torch.cat([b.images for b in batches]).round().long()
    labels = torch.cat([b.labels for b in batches])
    middle = x[:, :, 16, 16]  # inside the image for any crop
    flip = x[:, 1, 16, 17] < middle[:, 1]
    column = torch.where(flip, 15, 16)
    found = {
        "index": labels * 256 + middle[:, 2],
        "top": middle[:, 0] - 1 - 16 + 4,
        "left": middle[:, 1] - 1 - column + 4,
        "flip": flip,
    }
    return {name: tensor.numpy() for name, tensor in found.items()}


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", ALL)
def test_order_and_labels_are_the_draws_and_crops_and_flips_are_uniform(name: str, make: Make) -> None:
    loader = make(name, places(), batch_size=128, **IDENTITY)
    expected = [draw_epoch(0, epoch, num_images=NUM_IMAGES, batch_size=128) for epoch in (1, 2)]
    found = [read_places(epoch_of(loader, epoch)) for epoch in (1, 2)]
    for f, e in zip(found, expected, strict=True):
        assert np.array_equal(f["index"], e.index), "each image once, in the draws' order, its label with it"
        assert chi_square(np.bincount(f["top"] * 9 + f["left"], minlength=81)) < 124.8, "80 degrees of freedom, 0.1 %"
        assert chi_square(np.bincount(f["flip"].astype(int), minlength=2)) < 10.83, "1 degree of freedom, 0.1 %"
        if name != "torchvision":
            assert all(np.array_equal(f[what], getattr(e, what)) for what in ("top", "left", "flip"))
    for order in ([np.argsort(f["index"]) for f in found], [np.arange(NUM_IMAGES)] * 2):
        again = [found[0][what][order[0]] == found[1][what][order[1]] for what in ("top", "left", "flip")]
        assert np.logical_and.reduce(again).mean() < 0.02, "1 in 162 is cut the same in the next epoch"


@pytest.mark.parametrize("name", PEERS)
def test_alternating_flip_shows_both_sides(name: str, make: Make) -> None:
    loader = make(name, places(), batch_size=128, flip="alternating", crop_padding=2, **IDENTITY)
    draws = [draw_epoch(0, epoch, num_images=NUM_IMAGES, batch_size=128, flip="alternating") for epoch in (1, 2)]
    for epoch, d in zip((1, 2), draws, strict=True):
        assert np.array_equal(read_places(epoch_of(loader, epoch))["flip"], d.flip)


@pytest.mark.parametrize("mixing", [{"mixup_alpha": 0.5, "cutout": 9}, {"cutmix_alpha": 1.0, "cutout": 16}], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_a_padding_of_zero_and_no_flip_leave_the_image(name: str, mixing: dict[str, float], make: Make) -> None:
    plain = dict(crop_padding=0, flip="none", memory_format="contiguous", **mixing)
    ours, theirs = (epoch_of(make(n, tiny_split(100), **plain), 1) for n in (name, "resident"))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.labels, b.labels) and same_or_none(a.partner_labels, b.partner_labels)
        assert same_or_none(a.lam, b.lam) and a.images.is_contiguous()
        if name == "dali":
            assert torch.allclose(a.images, b.images, rtol=0, atol=5e-6)
        else:
            assert torch.equal(a.images, b.images), "MixUp and CutMix over the same pixels are the same to the last bit"


def same_or_none(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b is None or (a is not None and b is not None and torch.equal(a, b))


@needs_dali
@pytest.mark.parametrize(
    "settings",
    [{}, {"mixup_alpha": 0.4, "flip": "alternating", "crop_padding": 7}, {"cutmix_alpha": 1.0, "cutout": 16}],
)
def test_dali_makes_the_resident_loaders_batches(settings: dict[str, object], make: Make) -> None:
    for a, b in zip(
        epoch_of(make("dali", tiny_split(100), **settings), 3),
        epoch_of(make("resident", tiny_split(100), **settings), 3),
        strict=True,
    ):
        assert torch.equal(a.labels, b.labels) and same_or_none(a.partner_labels, b.partner_labels)
        assert torch.allclose(a.images, b.images, rtol=0, atol=5e-6) and a.images.stride() == b.images.stride()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("name", PEERS)
def test_batches_come_in_the_compute_dtype_rounded_once(
    name: str, precision: str, dtype: torch.dtype, make: Make
) -> None:
    half, full = (epoch_of(make(name, tiny_split(50), precision=p, mixup_alpha=0.4), 1) for p in (precision, "fp32"))
    for a, b in zip(half, full, strict=True):
        assert torch.equal(a.images, b.images.to(dtype))
        assert a.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", PEERS)
def test_an_epoch_goes_on_anywhere_with_any_number_of_workers(name: str, make: Make) -> None:
    whole = make(name, tiny_split(100), mixup_alpha=0.4)
    first, second = epoch_of(whole, 1), epoch_of(whole, 2)
    assert not same(first, second)
    other = make(name, tiny_split(100), mixup_alpha=0.4, loader_workers=3)
    other.begin(1)
    other.batch(0)
    for epoch, step, expected in ((1, 3, first), (2, 0, second), (2, 6, second), (1, 0, first)):
        assert same(epoch_of(other, epoch, step), expected[step:]), "also amid another epoch"


@pytest.mark.parametrize("name", [*PEERS, "host"])
def test_steps_go_in_order(name: str, make: Make) -> None:
    loader = make(name, tiny_split(100))
    loader.begin(1, 6)
    with pytest.raises(ValueError, match="step 0 .* 6 is next"):
        loader.batch(0)
    loader.batch(6)
    with pytest.raises(ValueError, match="step 7"):
        loader.batch(7)


@pytest.mark.parametrize("name", PEERS)
def test_a_cut_run_continues_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=2, mixup_alpha=0.2, loader=name, loader_workers=2)
    whole = trainer.train(config, tmp_path / "whole", [])
    taken = 0

    def interrupt(self: Display, count: int) -> None:
        nonlocal taken
        taken += 1
        if taken == 10:  # the third of the second epoch's seven steps
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "images", interrupt)
        with pytest.raises(InterruptedRunError):
            trainer.train(config, tmp_path / "cut", [])
    resumed = trainer.resume(tmp_path / "cut", {"loader_workers": 1}, [])
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
