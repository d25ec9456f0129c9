"""The only place where chance enters an epoch: (seed, epoch) -> order, crops, flips, holes, pairs, lambdas and boxes.

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

_ORDER, _CROP, _FLIP, _PARTNER, _LAMBDA, _SEEDS, _HOLE, _BOX = range(8)
_EVERY_EPOCH = 0  # the "epoch" of draws that hold for a whole run; epochs count from 1


@dataclass(frozen=True)
class EpochDraws:
    """The random draws of one epoch of `num_images` images in `num_batches` batches; the last batch may be smaller.

    Attributes:
        index: int64 [num_images], the image at each position of the epoch; a permutation.
        top: int64 [num_images] in [0, 2 * padding], the crop's first row in the padded image.
        left: int64 [num_images] in [0, 2 * padding], the crop's first column.
        flip: bool [num_images], whether the crop is mirrored left to right.
        partner: int64 [num_images], the image to mix with, as its position within the same batch; None without MixUp
            and CutMix.
        lam: float32 [num_batches], for each batch the weight of the image itself; None exactly where `partner` is.
        box: int64 [num_batches, 4], the first row, the row after the last, the first column and the column after the
            last of what the partner covers; None without CutMix. `lam` is then the share of pixels outside the box.
        hole: int64 [num_images, 2], the first row and column of the square that is cut out, which may lie partly
            outside the image; None without cutout.
    """

    index: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]
    partner: NDArray[np.int64] | None
    lam: NDArray[np.float32] | None
    box: NDArray[np.int64] | None
    hole: NDArray[np.int64] | None


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
    cutmix_alpha: float = 0.0,
    cutout: int = 0,
    size: int = 32,
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
        cutmix_alpha: the parameter of the Beta distribution of the share that stays outside the box; 0 switches CutMix
            off. The box has the image's form and lies around a pixel drawn uniformly; what reaches beyond the image is
            cut off (Yun et al. 2019). MixUp and CutMix exclude each other.
        cutout: the side of the square that is cut out around a pixel drawn uniformly (DeVries and Taylor 2017); 0
            switches cutout off.
        size: the side of the images, in pixels.

    Returns:
        The draws.
    """
    index = _stream(seed, epoch, _ORDER).permutation(num_images)
    top, left = _stream(seed, epoch, _CROP).integers(0, 2 * crop_padding, (2, num_images), endpoint=True)
    if flip == "random":
        flips = _stream(seed, epoch, _FLIP).integers(0, 2, num_images, dtype=np.int8).astype(np.bool_)
    elif flip == "alternating":
        side = _stream(seed, _EVERY_EPOCH, _FLIP).integers(0, 2, num_images, dtype=np.int8)
        flips = side[index] != epoch % 2
    else:
        flips = np.zeros(num_images, np.bool_)
    hole = None
    if cutout:
        hole = _stream(seed, epoch, _HOLE).integers(0, size, (num_images, 2)) - cutout // 2
    if mixup_alpha == 0.0 and cutmix_alpha == 0.0:
        return EpochDraws(index, top, left, flips, None, None, None, hole)

    num_full, rest = divmod(num_images, batch_size)
    rng = _stream(seed, epoch, _PARTNER)
    full = rng.permuted(np.tile(np.arange(batch_size), (num_full, 1)), axis=1)
    partner = np.concatenate([full.ravel(), rng.permutation(rest)])
    alpha = mixup_alpha or cutmix_alpha
    share = _stream(seed, epoch, _LAMBDA).beta(alpha, alpha, num_full + (rest > 0))
    if mixup_alpha:
        return EpochDraws(index, top, left, flips, partner, share.astype(np.float32), None, hole)
    middle = _stream(seed, epoch, _BOX).integers(0, size, (len(share), 2))
    half = (size * np.sqrt(1 - share)).astype(np.int64)[:, None] // 2
    begin, end = np.clip(middle - half, 0, size), np.clip(middle + half, 0, size)
    lam = 1 - (end - begin).prod(axis=1) / size**2
    box = np.stack([begin[:, 0], end[:, 0], begin[:, 1], end[:, 1]], axis=1)
    return EpochDraws(index, top, left, flips, partner, lam.astype(np.float32), box, hole)


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
