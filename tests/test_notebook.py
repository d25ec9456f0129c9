"""The progress bar of a notebook, whose display is a stand-in for IPython's."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fastcifar.run.names import EPOCH_KEYS
from fastcifar.ui import notebook
from fastcifar.ui.display import Display


class Output:
    """The output of a cell: what it shows now, and how often that was replaced."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.updates = 0

    def display(self, html: Any, display_id: bool) -> "Output":
        assert display_id
        self.shown.append(html.data)
        return self

    def update(self, html: Any) -> None:
        self.updates += 1
        self.shown[-1] = html.data


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Output:
    """Makes this process a notebook's kernel, and returns the output of its cell."""
    output = Output()
    ipython: Any = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    inner: Any = ModuleType("IPython.display")
    inner.HTML, inner.display = (lambda data: SimpleNamespace(data=data)), output.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    return output


def record(epoch: int, **values: float) -> dict[str, Any]:
    made = dict.fromkeys(EPOCH_KEYS, 0.5) | {"epoch": epoch, "images_per_second": 1234.0, "val_accuracy": 0.25}
    return made | values


def test_a_script_and_a_shell_are_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.is_here()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not notebook.is_here()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not notebook.is_here(), "IPython in a terminal"


def test_a_run_is_one_bar(cell: Output, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Display(clock=lambda: now[0]) as display:
        display.phase("warming up")
        display.start(epochs=2, images_per_epoch=100)
        for epoch in (1, 2):
            for _ in range(10):
                now[0] += 0.1
                display.images(10)
            display.epoch(record(epoch))
        display.phase("testing")
        assert cell.updates < 20, "at most four times a second"
    assert len(cell.shown) == 1 and capsys.readouterr() == ("", "")
    assert 'value="1.0000"' in cell.shown[0]
    assert "epoch 2/2  loss 0.5000  val 25.00%  testing" in cell.shown[0]


def test_amid_an_epoch_the_bar_says_how_far_it_is(cell: Output) -> None:
    now = [0.0]
    display = Display(clock=lambda: now[0])
    display.start(epochs=4, images_per_epoch=100, start_epoch=2, start_image=50)
    now[0] = 1.0
    display.images(10)
    assert 'value="0.4000"' in cell.shown[0] and "epoch 2/4  10 images/s  0:24 left" in cell.shown[0]


def test_notes_stay_lines(cell: Output, capsys: pytest.CaptureFixture[str]) -> None:
    Display().note("all <b>images</b>")
    assert capsys.readouterr().err == "note: all <b>images</b>\n" and cell.shown == []
    notebook.Bar().show(0.5, "<b>")
    assert "&lt;b&gt;" in cell.shown[0]


def test_where_nothing_is_to_be_shown_there_is_no_bar(cell: Output) -> None:
    with Display(shown=False) as display:
        display.phase("warming up")
        display.start(epochs=1, images_per_epoch=10)
        display.images(10)
        display.epoch(record(1))
    assert cell.shown == []
