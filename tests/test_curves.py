"""The picture of a run: the epochs of every run can be drawn, and their last values are shown."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastcifar.run.curves import COLOURS, draw_curves
from fastcifar.run.names import EPOCH_KEYS


def epochs(count: int, val_every: int = 1, **more: Any) -> list[dict[str, Any]]:
    records = []
    for epoch in range(1, count + 1):
        val = (2.0 + 1 / epoch, 0.5) if val_every and epoch % val_every == 0 else (None, None)
        values = (epoch, 0.05, 4.0 / epoch, 1 - 1 / (epoch + 1), *val, 1000.0, 1.0)
        records.append(dict(zip(EPOCH_KEYS, values, strict=True)) | more)
    return records


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figure of the last picture, under the key `last`."""
    caught: dict[str, Figure] = {}
    save = Figure.savefig

    def catch(self: Figure, *args: Any, **kwargs: Any) -> None:
        caught["last"] = self
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", catch)
    return caught


def texts(figure: Figure) -> list[list[str]]:
    return [[text.get_text().replace("\n", " ") for text in axes.texts] for axes in figure.axes]


@pytest.mark.parametrize(
    ("records", "scale", "expected"),
    [
        (epochs(1), "linear", [["val 3.0000", "train 4.0000"], ["train 50.00%", "val 50.00%"], ["0.05"]]),
        (epochs(6, 4), "linear", [["train 0.6667", "val 2.2500"], ["val 50.00%", "train 85.71%"], ["0.05"]]),
        (epochs(300, 0), "log", [["train 0.0133"], ["train 99.67%"], ["0.05"]]),
        (epochs(3, train_loss=math.nan), "linear", [["val 2.3333"], ["val 50.00%", "train 75.00%"], ["0.05"]]),
        (epochs(3, 0, train_loss=math.inf), "linear", [["no finite value"], ["train 75.00%"], ["0.05"]]),
        (epochs(2, 0, train_loss=0, train_accuracy=0, lr=0), "linear", [["train 0.0000"], ["train 0.00%"], ["0"]]),
    ],
    ids=["one epoch", "some validated", "none validated", "nan", "no loss", "zeros"],
)
def test_any_run_gives_a_picture_with_its_last_values(
    records: list[dict[str, Any]], scale: str, expected: list[list[str]], tmp_path: Path, figure: dict[str, Figure]
) -> None:
    paths = draw_curves(records, tmp_path / "lr-0.05", "lr-0.05, seed 0")
    assert [path.name for path in paths] == ["lr-0.05.svg", "lr-0.05.png"]
    assert paths[0].read_text().startswith("<?xml")
    with Image.open(paths[1]) as image:
        assert image.size[0] >= 1200
        shown = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    if "val" in " ".join(expected[1]):
        assert {tuple(bytes.fromhex(COLOURS[kind][1:])) for kind in ("train", "val")} <= shown
    assert figure["last"].axes[0].get_yscale() == scale
    assert [sorted(row) for row in texts(figure["last"])] == [sorted(row) for row in expected]


def test_epochs_are_whole_numbers_and_labels_apart(tmp_path: Path, figure: dict[str, Figure]) -> None:
    draw_curves(epochs(2, val_loss=2.0, train_loss=2.001), tmp_path / "curves", "title")
    loss = figure["last"].axes[0]
    assert [tick for tick in loss.get_xticks() if 1 <= tick <= 2] == [1, 2]
    first, second = (text.get_window_extent() for text in loss.texts)
    assert not first.overlaps(second)


@pytest.mark.parametrize(("lr", "shown"), [(5.99e-11, "6e-11"), (0.000288, "0.0003"), (0.0123, "0.0123")])
def test_the_last_learning_rate_is_not_cut_off(
    lr: float, shown: str, tmp_path: Path, figure: dict[str, Figure]
) -> None:
    """The bug: a cosine's last rate, 5.99e-11, ended at the edge of the picture as 5.99e-1."""
    draw_curves(epochs(3, lr=lr), tmp_path / "curves", "title")
    (label,) = figure["last"].axes[2].texts
    assert label.get_text() == shown
    assert label.get_window_extent().x1 <= figure["last"].bbox.x1


def test_the_same_epochs_give_the_same_bytes_and_leave_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [draw_curves(epochs(3), tmp_path / name, "title") for name in "ab"]
    for first, second in zip(*pictures, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_no_epochs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no epoch"):
        draw_curves([], tmp_path / "curves", "title")
