"""Names chosen by others are plain text in HTML, Markdown, CSV and drawings."""

import csv
import html
import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from run_folders import make_run

from fastcifar.data import sources
from fastcifar.data.dataset import Dataset, Split
from fastcifar.report.as_csv import to_csv
from fastcifar.report.as_html import to_html
from fastcifar.report.as_markdown import to_markdown
from fastcifar.report.document import Bullets, Document, Heading, Paragraph, Table
from fastcifar.report.markup import code, plain, printable, without_marks
from fastcifar.report.wording import file_name, label, width
from fastcifar.report.writing import write_report

NAMES = (
    "Ba$$in", "$x_1$ and $\\frac{", "<b>bold", "a|b", "`code`", "**bold**", "[l](#top)", "_under_", "=1+1", "-2", "猫",
    "狗" * 30, "قطة", "חתול", "\N{CAT FACE}\N{ZERO WIDTH JOINER}\N{DOG FACE}", "bell\x07 and\x00nul", "two\nlines",
    "\u202ereversed", "half \udce9", "x" * 200, "&amp; \\ ~~gone~~", "plain", "&", "\\", "#heading", "- item",
)  # fmt: skip
DIGEST = "9" * 64


def dataset(names: tuple[str, ...], labels: list[int], test_labels: list[int] | None = None) -> Dataset:
    def split(of: list[int]) -> Split:
        images = np.random.default_rng(0).integers(0, 256, (len(of), 32, 32, 3), dtype=np.uint8)
        return Split(images, np.array(of, np.int64))

    return Dataset(
        "mine <i>", split(labels), split(labels if test_labels is None else test_labels), names, (), (), DIGEST
    )


def page_of(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    monkeypatch.setattr(sources, "load", lambda name, **others: data)
    labels = data.test.labels.tolist()
    small: dict[str, Any] = {"val_size": 2, "batch_size": 8, "epochs": 2, "data": "mine"} | settings
    runs = [make_run(tmp_path / f"run-{seed}", "final", seed, digest=DIGEST, labels=labels, **small) for seed in (0, 1)]
    return write_report(runs, tmp_path / "out")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of classes with all of `NAMES`. Warnings are errors here, as in every test."""
    folder = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        return page_of(dataset(NAMES, list(range(len(NAMES))) * 3), folder, patch).parent


class Text(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_every_name_as_text(out: Path) -> None:
    page = Text((out / "index.html").read_text(encoding="utf-8"))
    told = "".join(page.words)
    for name in NAMES:
        assert printable(name.replace("_", " ")) in told
    in_bold = re.findall(r"<b>(.*?)</b>", (out / "index.html").read_text(encoding="utf-8"))
    assert "bold" not in in_bold


def test_markdown_holds_no_name_as_markup(out: Path) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r'<a id="[\w.-]+"></a>|</?details>|</?summary>', "", text)
    assert "<" not in outside, "no name opens a tag"
    (rows,) = re.findall(r"^\| class \|.*\n((?:\|.*\n)+)", text, re.M)
    assert all(row.replace("\\\\", "").replace("\\|", "").count("|") == 3 for row in rows.splitlines())
    assert len(rows.splitlines()) == 1 + len(NAMES)


def test_drawings_are_whole_and_hold_the_names(out: Path) -> None:
    told = ""
    for path in (out / "figures").glob("*.svg"):
        told += "".join(ElementTree.fromstring(path.read_text(encoding="utf-8")).itertext())
    for name in ("Ba$$in", "猫", "<b>bold", "=1+1", "bell\\x07 and\\x00nul", "half \\udce9"):
        assert name in told
    assert "x" * 33 not in told and "\N{HORIZONTAL ELLIPSIS}" in told, "a long name has its middle left out"


def test_tables_as_csv_keep_the_names_and_compute_nothing(out: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((out / "classes.csv").read_text(encoding="utf-8"), newline="")))
    names = {int(row["class_number"]): row["class"] for row in rows}
    assert len(names) == len(NAMES)
    for number, name in enumerate(NAMES):
        expected = name.encode("utf-8", "backslashreplace").decode()
        assert names[number] == (f"'{expected}" if name in ("=1+1", "- item") else expected)


# ---- classes without test images ----


def test_a_class_without_test_images_has_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: `nan` in the table and in the CSV, and a bar of length 0."""
    names = tuple(f"kind {i}" for i in range(6))
    data = dataset(names, [0, 1, 3, 4, 5] * 8, [0, 1, 3, 4] * 5)
    out = page_of(data, tmp_path, monkeypatch).parent
    for path in out.rglob("*"):
        if path.is_file():
            assert not re.search(r"\bnan\b", path.read_text(encoding="utf-8")), path
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| kind 2 | \N{EN DASH} |" in text and "| kind 5 | \N{EN DASH} |" in text
    assert "2 classes have no test images" in text and "1 classes have a number and no image" in text
    rows = {row["class"]: row for row in csv.DictReader(io.StringIO((out / "classes.csv").read_text()))}
    assert rows["kind 2"]["accuracy"] == rows["kind 5"]["accuracy"] == "" and rows["kind 0"]["accuracy"] != ""
    drawn = (out / "figures/classes-1.svg").read_text(encoding="utf-8")
    assert "kind 4" in drawn and "kind 2" not in drawn and "kind 5" not in drawn


def test_forty_thousand_classes_of_which_four_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a table of 40,001 x 40,001 numbers, which takes 12 GiB."""
    names = tuple(f"class {i}" for i in range(40_001))
    out = page_of(dataset(names, [0, 1, 39_999, 40_000] * 8), tmp_path, monkeypatch).parent
    rows = list(csv.DictReader(io.StringIO((out / "classes.csv").read_text())))
    assert {row["class_number"] for row in rows} == {"0", "1", "39999", "40000"}
    assert (out / "index.html").stat().st_size < 2_000_000
    assert "39,997 classes have no test images, and no row" in (out / "report.md").read_text(encoding="utf-8")


def test_confused_images_are_named_by_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(("cat", "dog"), [0, 1] * 6)
    monkeypatch.setattr(sources, "load", lambda name, **others: data)
    small: dict[str, Any] = {"val_size": 2, "batch_size": 8, "epochs": 2, "data": "mine"}
    run = make_run(tmp_path / "run", "final", digest=DIGEST, labels=data.test.labels.tolist(), **small)
    with np.load(run / "predictions.npz") as arrays:
        files = np.array([f"test/{('cat', 'dog')[i % 2]}/{i}|.png" for i in range(12)])
        np.savez(run / "predictions.npz", **dict(arrays) | {"places": files})
    out = write_report([run], tmp_path / "out").parent
    rows = list(csv.DictReader(io.StringIO((out / "pair-images.csv").read_text(encoding="utf-8"))))
    assert {(row["place"], row["class"], row["taken_for"]) for row in rows} == {
        (f"test/cat/{i}|.png", "cat", "dog") for i in (0, 4, 8)
    }
    assert "| test/cat/0\\|.png | cat | dog | 1 of 1 |" in (out / "report.md").read_text(encoding="utf-8")


# ---- the marks ----


@pytest.mark.parametrize("name", NAMES)
def test_what_is_plain_is_no_mark(name: str) -> None:
    shown = printable(name)
    assert without_marks(plain(name)) == shown and without_marks(code(name)) == shown
    table = Table("t", plain(name), [plain(name), "verdict"], [[plain(name), code(name)]])
    sentence = Paragraph(f"**{plain(name)}** and {plain(name)}")
    blocks = [Heading(1, "title", "top"), sentence, Bullets([code(name)]), table]
    page = Text(to_html(Document("title", blocks), {}))
    assert page.tags.count("b") == 1 and page.tags.count("code") == 2 and page.tags.count("i") == 0
    assert "".join(page.words).count(shown) >= 6
    assert "<" not in re.sub(r'<a id="[\w.-]+"></a>', "", to_markdown(Document("t", [sentence, table]), "f")).replace(
        code(name)[1:-1], ""
    )
    assert list(csv.reader(io.StringIO(to_csv(table))))[1][0].lstrip("'") == shown


def test_code_that_holds_backquotes_is_fenced_by_more() -> None:
    text = to_markdown(Document("t", [Paragraph(f"see {code('a`b``c')} and {code('`x`')}")]), "f")
    assert text == "see ```a`b``c``` and `` `x` ``\n"
    assert html.escape("a`b") in to_html(Document("t", [Heading(1, "t", "top"), Paragraph(code("a`b"))]), {})


def test_a_number_is_no_formula() -> None:
    table = Table("t", "", ["a"], [["x"]], [{"a": -0.5, "b": "-0.5 -0.25", "c": "-x", "d": "@x", "e": None}])
    assert to_csv(table).splitlines()[1] == "-0.5,-0.5 -0.25,'-x,'@x,"


def test_long_names_keep_both_ends() -> None:
    assert label("maple_tree") == "maple tree" and label("a" * 40 + "z").endswith("a" * 9 + "z")
    assert all(width(label(name)) <= 32 for name in NAMES)
    assert file_name("final (lr = 0.1)") == "final-lr-0.1-" and file_name("狗", ["-"]) == "--2"
    assert len(file_name("x" * 999)) == 60
