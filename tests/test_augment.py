"""With the same draws, a batch equals torchvision's to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcifar.augment import augment, normalization_table, normalize
from fastcifar.draws import draw_epoch
from fastcifar.loaders.torchvision_import import import_torchvision

pytestmark = pytest.mark.machine

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)
IDENTITY = torch.arange(256, dtype=torch.float32)[:, None].expand(256, 3)  # a table that leaves bytes as they are
TABLE = normalization_table(MEAN, STD)
HOLE = 12
NO_MIX: dict[str, Any] = {"partner": None, "lam": None, "box": None, "hole": None}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))


def draws(epoch: int = 1, **settings: Any) -> dict[str, Tensor | None]:
    d = draw_epoch(0, epoch, num_images=64, batch_size=64, **settings)
    tensors = {name: None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for name, a in vars(d).items()}
    for name in ("lam", "box"):  # one a batch
        if (tensor := tensors[name]) is not None:
            tensors[name] = tensor[0]
    return tensors


def cut(images: Tensor, table: Tensor = TABLE, dtype: torch.dtype = torch.float32, **d: Tensor | None) -> Tensor:
    return augment(images, **d, table=table, padding=4, hole_size=HOLE, dtype=dtype)  # type: ignore[arg-type]


def torchvision_crops(images: Tensor, d: dict[str, Tensor | None]) -> Tensor:
    """uint8 [B, 3, 32, 32]: the same draws through torchvision's own pad, crop and hflip."""
    import_torchvision()
    from torchvision.transforms import functional as tv

    crops = []
    for i, top, left, flip in zip(d["index"], d["top"], d["left"], d["flip"], strict=True):  # type: ignore[arg-type]
        crop = tv.crop(tv.pad(images[i].permute(2, 0, 1), 4), int(top), int(left), 32, 32)
        crops.append(tv.hflip(crop) if flip else crop)
    return torch.stack(crops)


def torchvision_normalize(crops: Tensor) -> Tensor:
    import_torchvision()
    from torchvision.transforms import functional as tv

    hwc = crops.permute(0, 2, 3, 1).numpy()
    return torch.stack([tv.normalize(tv.to_tensor(image), MEAN, STD) for image in hwc])


def test_crop_and_flip_give_torchvisions_bytes(images: Tensor) -> None:
    d = draws()
    ours = cut(images, IDENTITY, **d)
    assert torch.equal(ours.to(torch.uint8), torchvision_crops(images, d))


def test_normalised_batch_is_torchvisions_to_the_last_bit(images: Tensor) -> None:
    d = draws()
    assert torch.equal(cut(images, **d), torchvision_normalize(torchvision_crops(images, d)))


def test_validation_only_normalises(images: Tensor) -> None:
    expected = torchvision_normalize(images.permute(0, 3, 1, 2))
    assert torch.equal(normalize(images, TABLE, torch.float32), expected)


def test_every_byte_of_every_channel_normalises_as_torchvision_does() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    expected = torchvision_normalize(ramp.permute(0, 3, 1, 2))
    assert torch.equal(normalize(ramp, TABLE, torch.float32), expected)


def test_distribution_of_crops_and_flips_is_torchvisions() -> None:
    """Crop and flip of each image are read from its pixels, for 4,000 crops by each of the two libraries."""
    tv = import_torchvision()
    count, size = 4000, 32
    # each pixel of this image tells its place; only the padding is 0
    place = torch.arange(1, size * size + 1).view(size, size)
    image = torch.stack((place % 251 + 1, place // 8 + 1, torch.ones_like(place)), -1).to(torch.uint8)
    torch.manual_seed(0)
    theirs = tv.transforms.Compose([tv.transforms.RandomCrop(size, padding=4), tv.transforms.RandomHorizontalFlip()])
    crops = torch.stack([theirs(image.permute(2, 0, 1)) for _ in range(count)])
    d = draw_epoch(0, 1, num_images=count, batch_size=count)
    t = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in vars(d).items() if v is not None}
    t["index"] = torch.zeros_like(t["index"])
    ours = augment(image[None], **t, **NO_MIX, table=IDENTITY, padding=4, hole_size=0, dtype=torch.float32)  # type: ignore[arg-type]

    def histogram(batch: Tensor) -> Tensor:
        variants = {}
        for flip in (False, True):
            for top in range(9):
                for left in range(9):
                    corner = (torch.tensor([top]), torch.tensor([left]), torch.tensor([flip]))
                    out = augment(
                        image[None], torch.tensor([0]), *corner, None, None, None, None, IDENTITY, 4, 0, torch.float32
                    )
                    variants[out.to(torch.uint8).contiguous().numpy().tobytes()] = len(variants)
        assert len(variants) == 162
        kinds = [variants[x.contiguous().numpy().tobytes()] for x in batch.to(torch.uint8)]
        return torch.bincount(torch.tensor(kinds), minlength=162).double()

    a, b = histogram(crops), histogram(ours)
    chi_squared = ((a - b) ** 2 / (a + b)).sum()
    assert 95 < chi_squared < 245, "161 degrees of freedom: outside has a probability below 1e-4"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixup_mixes_with_the_partners_own_crop(images: Tensor, dtype: torch.dtype) -> None:
    d = draws(mixup_alpha=0.2)
    plain = cut(images, **(d | {"partner": None, "lam": None}))
    lam, partner = d["lam"], d["partner"]
    assert lam is not None
    expected = (lam * plain + (1 - lam) * plain[partner]).to(dtype)
    assert torch.equal(cut(images, dtype=dtype, **d), expected)
    assert not torch.equal(expected.float(), plain), "a mix that is computed and then discarded"


def test_cutout_and_cutmix_on_the_same_crops(images: Tensor) -> None:
    """Against loops over images, and torchvision's erase."""
    import_torchvision()
    from torchvision.transforms import functional as tv

    d = draws(cutmix_alpha=1.0, cutout=HOLE)
    plain = cut(images, **(d | NO_MIX))
    (top, bottom, left, right), partner, hole, lam = d["box"].tolist(), d["partner"], d["hole"], d["lam"]  # type: ignore[union-attr]
    assert partner is not None and hole is not None and lam is not None
    cut_out = []
    for x, (row, column) in zip(plain, hole.tolist(), strict=True):
        up, beside = max(row, 0), max(column, 0)
        cut_out.append(tv.erase(x, up, beside, row + HOLE - up, column + HOLE - beside, torch.zeros(())))
    expected = torch.stack(cut_out)
    assert torch.equal(cut(images, **(d | NO_MIX | {"hole": hole})), expected)
    pasted = expected.clone()
    pasted[:, :, top:bottom, left:right] = expected[partner][:, :, top:bottom, left:right]
    assert torch.equal(cut(images, **d), pasted) and not torch.equal(pasted, expected)
    assert lam == 1 - np.float32((bottom - top) * (right - left) / 32**2)


def test_output_is_channels_last(images: Tensor) -> None:
    for batch in (cut(images, **draws()), normalize(images, TABLE, torch.bfloat16)):
        assert batch.shape == (64, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last)


def test_one_crop_an_image_not_one_a_batch(images: Tensor) -> None:
    same = images[:1].expand_as(images).contiguous()
    crops = cut(same, **draws())
    assert len({x.numpy().tobytes() for x in crops.contiguous()}) > 40


@pytest.mark.sanitized
def test_compiled_augmentation_is_the_same_to_the_last_bit(images: Tensor) -> None:
    d = draws(cutmix_alpha=1.0, cutout=HOLE)
    compiled = torch.compile(augment, dynamic=False, fullgraph=True)
    rest = {"table": TABLE, "padding": 4, "hole_size": HOLE, "dtype": torch.float32}
    assert torch.equal(compiled(images, **d, **rest), cut(images, **d))
