"""The page as a reader finds it: complete, self-contained, every link and name in order, and honest about gaps."""

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_folders import fake_cifar100, make_run

from fastcifar.cli.main import main
from fastcifar.data import procedural, sources
from fastcifar.data.dataset import Dataset, Split
from fastcifar.errors import DataError, FastcifarError, NonFiniteError, UsageError
from fastcifar.presets import TRIALS, list_presets
from fastcifar.report.assembly import build_document
from fastcifar.report.document import Figure, Table
from fastcifar.report.drawing import colour_of
from fastcifar.report.provenance import shortened, shortened_word
from fastcifar.report.writing import write_report
from fastcifar.run import failure
from fastcifar.run.planned import PlannedRun

LABELS = tuple(i % 100 for i in range(500))


class Page(HTMLParser):
    """The parts of an HTML page that the tests look at."""

    VOID = {"meta", "link", "br", "img", "path", "use", "rect"}

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.styles = 0
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.update([found["id"]] if found.get("id") else [])
        if tag == "a":
            self.links.append(str(found.get("href")))
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if tag != "a" and key in found:
                self.resources.append(str(found[key]))
        if tag in ("svg", "img"):
            self.pictures.append(found)
        assert tag not in ("script", "iframe", "object", "embed")
        assert not any(key.startswith("on") for key in found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Eight trials with three seeds each and a ninth with one seed, all at full length, and their page."""
    folder = tmp_path_factory.mktemp("study")
    runs = [
        make_run(folder / "runs" / f"{name}-s{seed}", name, seed, labels=LABELS)
        for name in [*TRIALS, "final-alpha-0.5"]
        for seed in range(3 if name in TRIALS else 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load", lambda data: fake_cifar100())
        return write_report(runs, folder / "report"), runs


@pytest.fixture(scope="module")
def page(study: tuple[Path, list[Path]]) -> Page:
    return Page(study[0])


def test_every_table_and_figure_of_the_report_is_there(page: Page) -> None:
    assert [f"table-{n:02}" for n in range(1, 13) if f"table-{n:02}" not in page.ids] == []
    assert [f"figure-{n:02}" for n in (1, *range(4, 11)) if f"figure-{n:02}" not in page.ids] == []
    for number in range(1, 13):
        assert f"Table {number}." in page.text
    for number in (1, *range(4, 11)):
        assert f"Figure {number}." in page.text
    for what in (
        "Confusion matrix",
        "Most confused pairs",
        "Calibration",
        "Accuracy by superclass",
        "Accuracy by class",
    ):
        assert what in page.text


def test_the_page_stands_alone(page: Page) -> None:
    assert [target for target in page.resources if not target.startswith(("data:", "#"))] == []
    assert [link for link in page.links if not link.startswith(("#", "data:text/csv;base64,"))] == []
    outside = set(re.findall(r"""(?:https?:)?//[^\s"'<)]+""", re.sub(r"base64,[\w+/=\s]+", "", page.source)))
    assert {url for url in outside if "www.w3.org" not in url} == set()  # names of SVG, fetched by nobody
    assert "url(" not in page.source.replace("url(#", "")
    assert len(page.source) < 5_000_000


def test_every_name_is_one_and_every_link_leads_somewhere(page: Page) -> None:
    assert [name for name, times in page.ids.items() if times > 1] == []
    inner = [link[1:] for link in [*page.links, *page.resources] if link.startswith("#")]
    inner += re.findall(r"url\(#([^)]+)\)", page.source)
    assert inner and set(inner) - set(page.ids) == set()


def test_every_drawing_says_what_it_shows(page: Page) -> None:
    assert len(page.pictures) > 30
    for picture in page.pictures:
        assert picture.get("role") == "img" and len(str(picture.get("aria-label"))) > 25
    assert 'name="viewport"' in page.source and 'lang="en"' in page.source


def test_drawings_follow_the_colour_scheme(page: Page) -> None:
    """No drawing has a fixed colour, and each variable has a value for both schemes."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawings)) == set()
    used = set(re.findall(r"var\(--([\w-]+)\)", page.source)) - {"width"}
    light, dark = page.source.split("prefers-color-scheme: dark", 1)
    for name in used:
        assert f"--{name}:" in light and f"--{name}:" in dark


def test_presets_that_meet_on_a_page_have_colours_of_their_own() -> None:
    """The bug: best and speedrun, side by side on the page of a whole study, were drawn in one colour."""
    names = [preset.name for preset in list_presets() if preset.name != "quick"]
    assert len({colour_of(name) for name in names}) == len(names) > 9


def test_numbers_stand_beside_the_reports(page: Page) -> None:
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "validation accuracy, lr-0.05 3 45.10 ± 0.10 % 44.85 to 45.35 % 43.71 % 44.00 to 47.20 % inside" in text
    assert "training loss, constant 3 0.6225 ± 0.0000" in text
    assert "The split into training and validation is the same for all seeds" in text
    assert "does not cover the variance of the split" in text
    assert "78.18 % is 95.5 % of the ceiling at 0.5" in text and "89.9 %" in text and "81.8 %" in text
    assert "cosine − constant: cosine schedule in place of a constant learning rate 3" in text
    assert "not measured" in text and "Energy was not measured" in text


def test_the_tables_are_files_too_and_the_links_hold_them(study: tuple[Path, list[Path]], page: Page) -> None:
    out = study[0].parent
    held = {base64.b64decode(link.partition("base64,")[2]) for link in page.links if link.startswith("data:")}
    files = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    assert held == set(files.values()) and {f"table-{n:02}.csv" for n in range(1, 13)} <= files.keys()
    rows = list(csv.DictReader(io.StringIO(files["table-04.csv"].decode())))
    (row,) = (row for row in rows if (row["trial"], row["metric"]) == ("lr-0.05", "val_accuracy"))
    assert float(row["mean"]) == pytest.approx(0.451) and row["n"] == "3" and row["verdict"] == "inside"
    assert (float(row["report"]), float(row["reproductions_high"])) == (0.4371, 0.472)
    assert [float(value) for value in row["values"].split()] == pytest.approx([0.45, 0.451, 0.452])


def test_markdown_says_the_same(study: tuple[Path, list[Path]], page: Page) -> None:
    out = study[0].parent
    text = (out / "report.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and [t for t in targets if not t.startswith("#") and not (out / t).is_file()] == []
    assert all(alt for alt in re.findall(r"!\[(.*?)\]", text))
    for number in range(1, 13):
        assert f"**Table {number}.**" in text
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page.source)
    bare = re.sub(r"[*`]|\\", "", text).replace("\N{NO-BREAK SPACE}", " ")
    for cell in cells[:: len(cells) // 200]:
        plain = re.sub(r"<[^>]+>", "", cell).replace("&#x27;", "'").replace("&quot;", '"')
        assert plain.replace("\N{NO-BREAK SPACE}", " ") in bare


def test_drawings_beside_the_markdown_are_whole_and_on_paper(study: tuple[Path, list[Path]]) -> None:
    from xml.etree import ElementTree

    drawings = list((study[0].parent / "figures").glob("*.svg"))
    assert len(drawings) > 30
    for path in drawings:
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg") and "#fefefe" in text and "var(" not in text


def test_one_colour_a_trial(study: tuple[Path, list[Path]]) -> None:
    from fastcifar.report.drawing import COLOURS, THEME, colour_of

    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS) and set(TRIALS) < set(COLOURS)
    assert all(colour in THEME for colour in (colour_of("final"), colour_of("somebody's own")))
    for name in ("figure-05-loss", "figure-05-accuracy", "calibration-lr-0.5"):
        assert COLOURS["lr-0.5"][0] in (study[0].parent / "figures" / f"{name}.svg").read_text()


def test_no_folder_of_this_machine_is_told(study: tuple[Path, list[Path]]) -> None:
    for path in study[0].parent.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert str(study[0].parents[2]) not in text and "/home/somebody" not in text
    assert "--data .../cifar100.npz" in study[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/data/c.npz", ".../c.npz"), ("~/data/c.npz", ".../c.npz"), ("../../c.npz", ".../c.npz"),
        ("runs/final-s0", "runs/final-s0"), ("--out=/a/b/c x", "--out=.../c x"), ("images/s, 3/4", "images/s, 3/4"),
        ("/a/b: gone (/c/d)", ".../b: gone (.../d)"), ("'/a/b'", "'.../b'"),
    ],
)  # fmt: skip
def test_folders_are_shortened(text: str, expected: str) -> None:
    assert shortened(text) == expected


def test_folders_of_a_word_may_have_any_names() -> None:
    """The bug: the page had what stood before the last blank or quote of a path."""
    words = {"/a b'é/c d/e f.npz": ".../e f.npz", "--out=~/a b/c": "--out=.../c", "lr=0.1/2": "lr=0.1/2"}
    assert [shortened_word(word) for word in words] == list(words.values())
    assert shortened_word("--mirror=https://a/b/c") == "--mirror=https://a/b/c"


@pytest.mark.real_data
def test_table_1_of_the_real_images_is_the_reports(real_data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "lr-0.05")
    document = build_document([run], data=str(real_data / "cifar100.npz"))
    (table,) = (table for table in document.tables() if table.name == "table-01")
    assert [row[-1] for row in table.rows] == ["same", "same", "not in the report"]
    (figure,) = (block for block in document.walk() if isinstance(block, Figure) and block.name == "figure-04")
    assert "40,000 for training, 10,000 for validation, seed 0" in figure.caption


# ---- gaps ----


def gone(data: str) -> Any:
    raise DataError(f"data = '/home/somebody/{data}': there is no such file")


def test_a_page_of_incomplete_results_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    whole = make_run(tmp_path / "runs/lr-0.05-s0", "lr-0.05")
    cut = make_run(tmp_path / "runs/lr-0.5-s0", "lr-0.5", epochs_done=3)
    planned = [
        PlannedRun("lr-0.05", 0, whole, 15, "finished", 15),
        PlannedRun("lr-0.5", 0, cut, 15, "failed", 3, "exit code 6: out of memory"),
        PlannedRun("cosine", 1, tmp_path / "runs/cosine-s1", 300),
    ]
    text = Page(write_report([whole, cut], tmp_path / "out", planned=planned)).text
    assert "These results are incomplete." in text and "1 of 3 planned runs are finished." in text
    assert "No finished run of lr-0.5, lr-0.01, constant, cosine, wd-1e-4, wd-5e-4, final." in text
    assert "lr-0.5, seed 0 (failed): 3 of 15 epochs done; exit code 6: out of memory." in text
    assert "Not begun : cosine, seed 1." in text
    assert "The images were not at hand" in text and "neither predictions nor a checkpoint" in text
    assert "Figure 6. Loss and accuracy without and with cosine annealing: no finished run." in text
    assert "somebody" not in text


def test_the_page_does_not_claim_to_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of two of the eight trials with one run each, a diverged run, and a run without validation images."""
    monkeypatch.setattr(sources, "load", gone)
    runs = [make_run(tmp_path / "a", "lr-0.05"), make_run(tmp_path / "b", "lr-0.01", summary={"val_loss": 9.0})]
    diverged = make_run(tmp_path / "c", "lr-0.5", epochs_done=2)
    failure.write(diverged / failure.FAILURE, NonFiniteError("the training loss is not finite after epoch 3"))
    blind = make_run(tmp_path / "d", "cosine", val_size=0, summary={"val_loss": None, "val_accuracy": None})
    lines = (blind / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"val_loss": None, "val_accuracy": None} for line in lines]
    (blind / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    notes: list[str] = []
    page = Page(write_report([*runs, diverged, blind], tmp_path / "out", note=notes.append))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("MobileNet on CIFAR-100: the report, reproduced in part (2 of 8 trials)")
    assert "lr-0.5, seed 0 (failed): 2 of 15 epochs done; the training loss is not finite after epoch 3." in text
    assert "no run: 1 failed" in text and "one run against one" in text and "inside 43.71 to 47.20 %: one run" in text
    assert "An interval of an accuracy is cut at 0 and 100 %" in text and "compares two single numbers" in text
    assert "Trained without validation images: cosine (val_size = 0)" in text or "images: cosine" in text
    assert any("no pictures of the images" in line and "there is no such file" in line for line in notes)
    assert sum("what the model gets wrong" in line for line in notes) == 3


def test_a_shortened_study_on_procedural_images_gets_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = replace(fake_cifar100(), digest=procedural.DIGEST)
    monkeypatch.setattr(sources, "load", lambda data: dataset)
    settings: dict[str, Any] = {"data": "procedural", "val_size": 1000, "width_mult": 0.25, "epochs": 2}
    labels = dataset.test.labels.tolist()
    runs = [
        make_run(tmp_path / name, name, digest=procedural.DIGEST, labels=labels, **settings)
        for name in ("lr-0.05", "cosine")
    ]
    path = write_report(runs, tmp_path / "out")
    page = Page(path)
    assert "No run here compares with the published numbers, and gets no verdict." in page.text
    assert "procedural images" in page.text and "epochs = 2" in page.text and "width_mult = 0.25" in page.text
    for file in (tmp_path / "out").glob("*.csv"):
        for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
            assert row.get("verdict") not in ("inside", "above", "below"), file
    assert 'class="inside"' not in page.source and "figure-01" in page.ids and "figure-pairs" in page.ids


def test_final_without_mixup_has_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the chapter of MixUp drew lambdas with the alpha of the run, 0, and failed."""
    monkeypatch.setattr(sources, "load", lambda data: fake_cifar100())
    document = build_document([make_run(tmp_path / "run", "final", mixup_alpha=0.0)])
    panels = {panel.name for figure in document.figures() for panel in figure.panels}
    assert {"figure-08-alpha-0.5", "figure-08-alpha-0.2", "figure-09"} <= panels


def test_two_seeds_give_effects_without_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    runs = [make_run(tmp_path / f"{name}{seed}", name, seed) for name in ("lr-0.05", "lr-0.5") for seed in (0, 1)]
    document = build_document(runs)
    (table,) = (table for table in document.tables() if table.name == "effects-val-accuracy")
    assert table.data is not None
    first = table.data[0]
    assert (first["n"], first["ci95_low"], first["reading"]) == (2, None, "n = 2: too few seeds for an interval")


def test_runs_of_no_trial_of_the_report_have_their_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    runs = [make_run(tmp_path / "a", "quick"), make_run(tmp_path / "b", "lr-0.05", preset="mine", epochs=4)]
    document = build_document(runs)
    figures = {block.name: block for block in document.walk() if isinstance(block, Figure)}
    assert "quick" in figures["other-1"].caption + figures["other-2"].caption
    tables = {block.name: block for block in document.walk() if isinstance(block, Table)}
    assert {"mine", "quick"} <= {str(row["trial"]) for row in tables["accuracy"].data or ()}


def test_images_of_another_kind_have_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images without superclasses, of classes that are not CIFAR-100's."""
    other, num_classes = fake_cifar100(), 10
    names = tuple(f"kind_{i:02}" for i in range(num_classes))
    splits = [Split(split.images, split.labels % num_classes) for split in (other.train, other.test)]
    dataset = Dataset("mine", *splits, names, (), (), "1" * 64)
    monkeypatch.setattr(sources, "load", lambda data: dataset)
    run = make_run(tmp_path / "run", "lr-0.05", digest="1" * 64, labels=splits[1].labels.tolist(), data="mine")
    page = Page(write_report([run], tmp_path / "out"))
    assert "other images than the report's" in page.text and "images that are not CIFAR-100" in page.text
    assert {"figure-01", "figure-08", "figure-confusion"} <= page.ids.keys()
    assert "kind 01" in page.text and "uperclass" not in page.text


def test_what_users_write_is_text_and_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    command = ["fastcifar", "train", "--data", "<script>alert(1)</script>&\"'|`x`**b**[a](#top)"]
    out = write_report([make_run(tmp_path / "run", "lr-0.05", command=command)], tmp_path / "out")
    page = Page(out)  # refuses a script
    assert "alert(1)" in page.text


def test_energy_is_shown_where_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    measured = {"energy_joules": 7200.0, "energy_seconds": 15.0, "energy_source": "power samples"}
    runs = [make_run(tmp_path / "a", "lr-0.05", 0, summary=measured), make_run(tmp_path / "b", "lr-0.05", 1)]
    text = Page(write_report(runs, tmp_path / "out")).text
    assert "7.2 kJ (2.0 Wh) (from samples of the power)" in text and text.count("not measured") == 1


# ---- writing ----


def test_a_page_replaces_an_earlier_one_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    run, out = make_run(tmp_path / "run", "lr-0.05"), tmp_path / "out"
    write_report([run, make_run(tmp_path / "more", "quick")], out)
    assert (out / "figures/other-1-loss.svg").is_file()
    (out / "mine.csv").write_text("1")
    before = write_report([run], out).read_text(encoding="utf-8")
    assert write_report([run], out).read_text(encoding="utf-8") == before
    assert not (out / "figures/other-1-loss.svg").exists() and (out / "mine.csv").exists()
    assert not list(out.rglob("*.new"))
    (out / "index.html").write_text("<html>mine</html>")
    with pytest.raises(UsageError, match="not a page of fastcifar's"):
        write_report([run], out)
    (tmp_path / "file").touch()
    with pytest.raises(FastcifarError, match="cannot be written"):
        write_report([run], tmp_path / "file")


def test_the_command_says_where_the_page_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "load", gone)
    run = make_run(tmp_path / "runs/lr-0.05-s0", "lr-0.05")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == "report  report/index.html\n" and Path("report/index.html").is_file()
    assert main(["report", "runs", "--out", "there"]) == 0 and Path("there/report.md").is_file()
    assert "note: the page has no pictures of the images, which were not at hand" in capsys.readouterr().err
    Path("report/runs.csv").write_text("mine")
    assert main(["report", str(run)]) == 2 and Path("report/runs.csv").read_text() == "mine"
    assert main(["report", "runs/lr-0.05-s1"]) == 2
    assert "The nearest run is runs/lr-0.05-s0." in capsys.readouterr().err


def test_finished_runs_need_no_torch(study: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """NumPy and matplotlib alone make the page of runs with predictions, and nothing is printed."""
    script = (
        "import sys; from pathlib import Path; from fastcifar.report.writing import write_report\n"
        "write_report([Path(sys.argv[1])], Path(sys.argv[2]), data='gone.npz')\n"
        "print(sorted({'torch', 'fastcifar.evaluation'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(study[1][0]), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent, env=os.environ,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
