"""Pictures: names are drawn unchanged and without warnings, and matplotlib's settings are left as they were."""

import warnings
from pathlib import Path

import matplotlib
import pytest

from fastcifar.ui import drawing

NAMES = ["Ba$$in", "$x^2", "猫", "مرحبا", "\U0001f408", "a_b^c", "\\frac", "x" * 200, "\x07", "<b>&"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_drawn_without_a_warning(tmp_path: Path, name: str) -> None:
    """The bugs: `$` began a formula; each character that no font has caused a warning with a path on stderr."""
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with drawing.styled({"axes.grid": True}):
            figure = drawing.new_figure(3, 2)
            axes = figure.add_subplot()
            axes.set_title(name)
            axes.bar([name], [1])
            paths = drawing.save(figure, tmp_path / "picture")
    assert [path.name for path in paths] == ["picture.svg", "picture.png"]
    assert all(path.stat().st_size for path in paths)
    assert dict(matplotlib.rcParams) == before


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        with drawing.styled():
            figure = drawing.new_figure(3, 2)
            figure.add_subplot().plot([1, 2])
            contents.append([path.read_bytes() for path in drawing.save(figure, tmp_path / name)])
    assert contents[0] == contents[1]
