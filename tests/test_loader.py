"""The resident loader against each of the bugs seen in public reproductions of the protocol."""

import threading

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split

from fastcifar.augment import normalization_table, normalize
from fastcifar.batch import Batch
from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.draws import draw_epoch
from fastcifar.loaders import EvalBatches, ResidentLoader
from fastcifar.loaders.resident import _Ahead
from fastcifar.target import Target

pytestmark = pytest.mark.machine


def loader_of(config: Config, num_images: int = 100) -> ResidentLoader:
    return ResidentLoader(tiny_split(num_images), Target(config))


def epoch_of(loader: ResidentLoader, epoch: int) -> list[Batch]:
    loader.begin(epoch)
    return [loader.batch(step) for step in range(loader.num_batches)]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in zip(a, b, strict=True))


def test_every_image_once_an_epoch_and_the_last_batch_is_kept() -> None:
    loader = loader_of(tiny_config(flip="none", crop_padding=0))
    batches = epoch_of(loader, 1)
    assert [len(b.labels) for b in batches] == [16] * 6 + [4]
    seen = torch.cat([b.images for b in batches])
    images = torch.from_numpy(tiny_split(100).images)
    config = tiny_config()
    expected = normalize(images, normalization_table(config.mean, config.std), torch.float32)
    assert sorted(x.numpy().tobytes() for x in seen) == sorted(x.numpy().tobytes() for x in expected)


def test_labels_follow_their_images() -> None:
    config = tiny_config(flip="none", crop_padding=0)
    split = tiny_split(100)
    table = normalization_table(config.mean, config.std)
    of_image = {
        x.contiguous().numpy().tobytes(): int(y)
        for x, y in zip(normalize(torch.from_numpy(split.images), table, torch.float32), split.labels, strict=True)
    }
    for batch in epoch_of(loader_of(config), 3):
        assert [of_image[x.contiguous().numpy().tobytes()] for x in batch.images] == batch.labels.tolist()


def test_the_protocols_epoch_has_313_steps_and_ends_with_64_images() -> None:
    split = Split(np.zeros((40_000, 32, 32, 3), np.uint8), np.zeros(40_000, np.int64))
    loader = ResidentLoader(split, Target(tiny_config(batch_size=128)))
    loader.begin(1)
    assert loader.num_batches == 313 and len(loader.batch(312).labels) == 64


def test_an_epoch_is_a_function_of_its_number() -> None:
    loader = loader_of(tiny_config(mixup_alpha=0.2))
    first = epoch_of(loader, 1)
    second = epoch_of(loader, 2)
    assert same(first, epoch_of(loader, 1)) and same(second, epoch_of(loader_of(tiny_config(mixup_alpha=0.2)), 2))


def test_augmentation_is_not_frozen() -> None:
    """The bug: augmentation drawn once, the same pixels every epoch (43.6 % in one reproduction)."""
    config = tiny_config(batch_size=100)
    crops = []
    for epoch in (1, 2):
        batch = epoch_of(loader_of(config), epoch)[0]
        index = draw_epoch(0, epoch, num_images=100, batch_size=100).index
        crops.append(batch.images[torch.from_numpy(np.argsort(index))])
    differing = sum(not torch.equal(a, b) for a, b in zip(*crops, strict=True))
    assert differing > 90, "1 in 162 keeps its crop and side by chance"


def test_validation_is_neither_augmented_nor_shuffled() -> None:
    """The bug: the augmenting transform shared with validation."""
    config, split = tiny_config(mixup_alpha=0.5), tiny_split(50)
    source = EvalBatches(split, Target(config))
    batches, again = list(source), list(source)
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, again, strict=True))
    assert [len(b.labels) for b in batches] == [20, 20, 10]
    table = normalization_table(config.mean, config.std)
    assert torch.equal(
        torch.cat([b.images for b in batches]), normalize(torch.from_numpy(split.images), table, torch.float32)
    )
    assert torch.cat([b.labels for b in batches]).tolist() == split.labels.tolist()
    assert all(b.lam is None and b.partner_labels is None for b in batches)


def test_every_image_of_a_batch_has_a_crop_and_a_side_of_its_own() -> None:
    """The bug: one crop and one flip for a whole batch."""
    loader = loader_of(tiny_config(batch_size=100))
    loader._images = loader._images[:1].expand_as(loader._images).contiguous()
    loader.begin(1)
    assert len({x.contiguous().numpy().tobytes() for x in loader.batch(0).images}) > 60


def test_the_mix_reaches_the_batch() -> None:
    """The bug: a mixed batch computed and then discarded."""
    mixed, plain = (epoch_of(loader_of(tiny_config(mixup_alpha=a)), 1) for a in (1.0, 0.0))
    for m, p in zip(mixed, plain, strict=True):
        assert m.lam is not None and m.partner_labels is not None
        partner = draw_partner(m, p)
        assert torch.equal(m.images, m.lam * p.images + (1 - m.lam) * p.images[partner])
        assert torch.equal(m.partner_labels, p.labels[partner])


def draw_partner(mixed: Batch, plain: Batch) -> torch.Tensor:
    draws = draw_epoch(0, 1, num_images=100, batch_size=16, mixup_alpha=1.0)
    assert draws.lam is not None and draws.partner is not None and mixed.lam is not None
    step = draws.lam.tolist().index(float(mixed.lam))
    return torch.from_numpy(draws.partner[step * 16 : (step + 1) * 16])


def test_training_batches_are_normalised() -> None:
    """The bug: a second transform silently replacing the first, so that nothing normalises."""
    config = tiny_config(batch_size=100, crop_padding=0)
    split = tiny_split(100)
    images = epoch_of(loader_of(config), 1)[0].images
    channels = split.images.reshape(-1, 3) / 255.0
    expected = (channels.mean(0) - np.array(config.mean)) / np.array(config.std)
    assert np.allclose(images.mean((0, 2, 3)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_batches_come_in_the_compute_dtype_rounded_once(precision: str, dtype: torch.dtype) -> None:
    half_loader = loader_of(tiny_config(precision=precision))
    for half, full in zip(epoch_of(half_loader, 1), epoch_of(loader_of(tiny_config()), 1), strict=True):
        assert torch.equal(half.images, full.images.to(dtype))
        assert half.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "mixing", [{}, {"mixup_alpha": 0.2, "cutout": 9}, {"cutmix_alpha": 1.0, "cutout": 16}], ids=str
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_augmentation_is_the_same_to_the_last_bit(precision: str, mixing: dict[str, float]) -> None:
    config = tiny_config(precision=precision, **mixing)
    fused = ResidentLoader(tiny_split(100), Target(config), augmentation="fused")
    for ours, theirs in zip(epoch_of(fused, 1), epoch_of(loader_of(config), 1), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert ours.images.stride() == theirs.images.stride()
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.lam is None) == (theirs.lam is None) == (not mixing)
        if ours.lam is not None and ours.partner_labels is not None:
            assert torch.equal(ours.lam, theirs.lam) and torch.equal(ours.partner_labels, theirs.partner_labels)


def test_the_next_epoch_is_drawn_while_one_is_trained_on() -> None:
    """As on CUDA. An epoch that was not expected is drawn when it is asked for."""
    drawn: list[tuple[int, bool]] = []

    def draw(epoch: int) -> dict[str, torch.Tensor]:
        drawn.append((epoch, threading.current_thread() is threading.main_thread()))
        return {"epoch": torch.tensor(epoch)}

    ahead = _Ahead(draw)
    assert [int(ahead(epoch)["epoch"]) for epoch in (1, 2, 3, 7, 8)] == [1, 2, 3, 7, 8]
    ahead.close()
    here = [epoch for epoch, in_main_thread in drawn if in_main_thread]
    assert here == [1, 7] and {epoch for epoch, _ in drawn} >= {2, 3, 4, 8}
    assert len(drawn) == len(set(drawn)), "nothing is drawn twice"


def test_draws_stay_in_the_same_device_memory() -> None:
    """A captured graph reads the draws at fixed addresses, so that they must not move between epochs."""
    loader = loader_of(tiny_config(cutmix_alpha=0.2, cutout=8))
    loader.begin(1)
    before = {name: tensor.data_ptr() for name, tensor in loader._draws.items()}
    loader.begin(2)
    assert before == {name: tensor.data_ptr() for name, tensor in loader._draws.items()}
