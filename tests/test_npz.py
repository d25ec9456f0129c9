"""An .npz is read if each of its arrays is what it should be."""

from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import SPLITS, load

from fastcifar.errors import DataError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((200, 3, 32, 32), np.uint8)},
            r"not uint8 \[N, 32, 32, 3\]; transpose\(0, 2, 3, 1\)",
        ),
        ({"train_images": np.zeros((200, 32, 32, 3), np.float32)}, r"train_images is float32 \[200, 32, 32, 3\], not"),
        ({"test_images": np.zeros((100, 28, 28, 3), np.uint8)}, r"test_images is uint8 \[100, 28, 28, 3\], not"),
        ({"train_labels": np.zeros(200)}, r"train_labels is float64 \[200\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros((200, 1), int)}, r"train_labels is int64 \[200, 1\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros(199, int)}, "200 train_images, but 199 train_labels"),
        ({"train_labels": np.full(200, 100)}, "label 100 in the train split; allowed: 0 to 99"),
        ({"test_labels": np.full(100, -1)}, "label -1 in the test split; allowed: 0 to 99"),
        (
            {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "test split holds no image",
        ),
        ({"label_names": np.arange(100)}, r"label_names is int64 \[100\], not a list of strings"),
        ({"train_labels": np.array([object()] * 200)}, "damaged or no .npz of plain arrays .*allow_pickle"),
    ],
)
def test_wrong_npz(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(data_files.write_npz(tmp_path / "c.npz", SPLITS, **change))


def test_npz_with_a_misspelt_key(tmp_path: Path) -> None:
    arrays = {"train_image": SPLITS["train"][0], "train_labels": SPLITS["train"][1]}
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=r"no array 'train_images'; it holds .* Did you mean 'train_image'\?"):
        load(tmp_path / "c.npz")


def test_unnamed_labels_start_at_0(tmp_path: Path) -> None:
    splits = {split: (images, labels + 1) for split, (images, labels) in SPLITS.items()}
    arrays = {
        f"{s}_{kind}": a for s, pair in splits.items() for kind, a in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match="labels start at 1, not at 0"):
        load(tmp_path / "c.npz")


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_npz_cut_short(kept: float, tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"c\.npz"):
        load(path)


def test_npz_with_a_flipped_bit(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load(path)
