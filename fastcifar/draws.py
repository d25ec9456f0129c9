"""The only place where chance enters an epoch: (seed, epoch) -> order, crops, flips, MixUp pairs and lambdas.

Every kind of draw has a stream of its own, so that switching MixUp on leaves the order and the crops of a run as they
were, and trials with the same seed are paired. Nothing else in training draws a random number, so that a resumed run, a
compiled run and a captured graph all see the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Flip = Literal["random", "alternating", "none"]

_ORDER, _CROP, _FLIP, _PARTNER, _LAMBDA, _SEEDS = range(6)
_EVERY_EPOCH = 0  # the "epoch" of draws that hold for a whole run; epochs count from 1


@dataclass(frozen=True)
class EpochDraws:
    """The random draws of one epoch of `num_images` images in `num_batches` batches; the last batch may be smaller.

    Attributes:
        index: int64 [num_images], the image at each position of the epoch; a permutation.
        top: int64 [num_images] in [0, 2 * padding], the crop's first row in the padded image.
        left: int64 [num_images] in [0, 2 * padding], the crop's first column.
        flip: bool [num_images], whether the crop is mirrored left to right.
        partner: int64 [num_images], the image to mix with, as its position within the same batch; None without MixUp.
        lam: float32 [num_batches], for each batch the weight of the image itself; None without MixUp.
    """

    index: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]
    partner: NDArray[np.int64] | None
    lam: NDArray[np.float32] | None


def _stream(seed: int, epoch: int, kind: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, kind))))


def draw_epoch(
    seed: int,
    epoch: int,
    *,
    num_images: int,
    batch_size: int,
    crop_padding: int = 4,
    flip: Flip = "random",
    mixup_alpha: float = 0.0,
) -> EpochDraws:
    """Draws one epoch. The same arguments give the same draws on every device and in every process.

    Args:
        seed: the run's seed.
        epoch: counted from 1.
        num_images: the number of training images.
        batch_size: the number of images in a step.
        crop_padding: the number of pixels added on each side before the crop.
        flip: `random`, `none` or `alternating`. With `alternating`, each image is drawn mirrored or not once a run, and
            is mirrored again every other epoch, so that two epochs in a row show both sides of every image (Keller
            Jordan, airbench).
        mixup_alpha: the parameter of the Beta distribution of lambda; 0 switches MixUp off.

    Returns:
        The draws.
    """
    index = _stream(seed, epoch, _ORDER).permutation(num_images)
    top, left = _stream(seed, epoch, _CROP).integers(0, 2 * crop_padding, (2, num_images), endpoint=True)
    if flip == "random":
        flips = _stream(seed, epoch, _FLIP).integers(0, 2, num_images, dtype=np.int8).astype(np.bool_)
    elif flip == "alternating":
        side = _stream(seed, _EVERY_EPOCH, _FLIP).integers(0, 2, num_images, dtype=np.int8)
        flips = ((side[index] + epoch) % 2).astype(np.bool_)
    else:
        flips = np.zeros(num_images, np.bool_)
    if mixup_alpha == 0.0:
        return EpochDraws(index, top, left, flips, None, None)

    num_full, rest = divmod(num_images, batch_size)
    rng = _stream(seed, epoch, _PARTNER)
    full = rng.permuted(np.tile(np.arange(batch_size), (num_full, 1)), axis=1)
    partner = np.concatenate([full.ravel(), rng.permutation(rest)])
    lam = _stream(seed, epoch, _LAMBDA).beta(mixup_alpha, mixup_alpha, num_full + (rest > 0)).astype(np.float32)
    return EpochDraws(index, top, left, flips, partner, lam)


def draw_seeds(seed: int, epoch: int, num_images: int) -> NDArray[np.uint32]:
    """A seed for each image of an epoch, for a library that draws crop and flip itself.

    Args:
        seed: the run's seed.
        epoch: counted from 1.
        num_images: the number of training images.

    Returns:
        uint32 [num_images], the seed of the image at each position of the epoch.
    """
    return _stream(seed, epoch, _SEEDS).integers(0, 2**32, num_images, dtype=np.uint32)
