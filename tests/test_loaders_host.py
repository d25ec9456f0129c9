"""The host loader: the same batches as from the resident loader, gathered ahead, and no thread left running."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split, weights, write_tiny

from fastcifar import trainer
from fastcifar.batch import Batch
from fastcifar.data.dataset import Split
from fastcifar.loaders import Augmentation, HostLoader, Loader, ResidentLoader, build_loader
from fastcifar.target import Target

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
NOTES: list[str] = []


def both(device: str = "cpu", how: Augmentation = "eager", **settings: object) -> tuple[HostLoader, ResidentLoader]:
    target, split = Target(tiny_config(**{"device": device, "precision": "bf16", **settings})), tiny_split(100)
    return HostLoader(split, target, NOTES.append, augmentation=how), ResidentLoader(split, target, augmentation=how)


def same(a: Batch, b: Batch) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(x == y if not torch.is_tensor(x) else torch.equal(x, y) and x.stride() == y.stride() for x, y in pairs)


CUT: dict[str, object] = {"cutmix_alpha": 1.0, "cutout": 16}


def threads() -> int:
    return sum(t.name == "fastcifar-gather" for t in threading.enumerate())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{}, {"mixup_alpha": 0.4, "flip": "alternating"}, {"batch_size": 128}, CUT])
@pytest.mark.parametrize("how", ["eager", "fused"])
def test_batches_are_the_resident_loaders_to_the_last_bit(
    device: str, how: Augmentation, settings: dict[str, object]
) -> None:
    host, resident = both(device, how, **settings)
    for epoch in (1, 2):
        host.begin(epoch)
        resident.begin(epoch)
        kept = [(host.batch(step), resident.batch(step)) for step in range(host.num_batches)]
        assert all(same(*pair) for pair in kept), "compared at the end: no later batch has overwritten an earlier one"
    host.close()


@pytest.mark.parametrize("device", DEVICES)
def test_begins_amid_an_epoch_from_anywhere(device: str) -> None:
    host, resident = both(device, mixup_alpha=0.4)
    for epoch, first_step in ((1, 0), (1, 3), (2, 6), (1, 1)):
        host.begin(epoch, first_step)
        resident.begin(epoch, first_step)
        assert same(host.batch(first_step), resident.batch(first_step))
    assert threads() == 1
    host.close()
    assert threads() == 0


def test_says_where_the_images_are() -> None:
    NOTES.clear()
    loader = build_loader(tiny_split(100), Target(tiny_config(images_on="host", engine="fused")), NOTES.append)
    assert isinstance(loader, HostLoader) and "GiB" in NOTES[0] and "host" in NOTES[0]
    assert loader._maker._images.numel() == 0, "no pixels on the device but those of a few batches"
    assert loader._maker._fused, "the fused engine's own op makes the batches here too"
    assert not isinstance(loader, ResidentLoader), "a captured graph may read a resident loader's images at any step"
    loader.close()


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    class Failing(np.ndarray):
        def take(self, *_: object, **__: object) -> None:
            raise OSError("disk of a memory-mapped split is gone")

    loader = HostLoader(
        Split(tiny_split(100).images.view(Failing), tiny_split(100).labels),
        Target(tiny_config()),
        NOTES.append,
    )
    loader.begin(1)
    with pytest.raises(OSError, match="disk"):
        loader.batch(0)
    loader.close()
    assert threads() == 0


def test_steps_out_of_order_are_refused() -> None:
    loader, _ = both()
    loader.begin(1, 2)
    with pytest.raises(ValueError, match="step 0.* 2 is next"):
        loader.batch(0)
    loader.close()


def test_closing_twice_or_unused_is_fine() -> None:
    loader: Loader
    loader, _ = both()
    loader.close()
    loader.begin(1)
    loader.close()
    loader.close()


def test_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    runs = [
        trainer.train(tiny_config(data, epochs=2, mixup_alpha=0.2, images_on=where), tmp_path / where, [])
        for where in ("device", "host")
    ]
    a, b = map(weights, runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert threads() == 0
