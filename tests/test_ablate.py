"""The ablation: its cells, their order, the results from their measurements, and an early end."""

import csv
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import be_on
from matplotlib.figure import Figure
from PIL import Image

from fastcifar import ops
from fastcifar.cli import main as cli
from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.measuring import ablation as ablate
from fastcifar.measuring import ablation_results, ablation_text, grid
from fastcifar.measuring.ablation_chart import ENGINE_COLOURS
from fastcifar.measuring.ablation_results import Ablation
from fastcifar.measuring.cell import Cell, Failure, Measurement, Method
from fastcifar.measuring.grid import Entry
from fastcifar.measuring.layers import list_layers
from fastcifar.measuring.roofline import rows_of
from fastcifar.measuring.roofs import Roofs
from fastcifar.target import Target

pytestmark = pytest.mark.machine

Captured = pytest.CaptureFixture[str]
RATES = {"eager": 400.0, "compiled": 300.0, "fused": 1000.0}
ROOFS = {p: Roofs(((1, 5e10), (2**29, 5e10)), flops) for p, flops in (("fp32", 1e12), ("bf16", 4e12))}
"""Copies at 50 GB/s whatever their size, and products at 1 and 4 TFLOP/s."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX and with the extension, on every machine."""
    monkeypatch.chdir(tmp_path)
    be_on(monkeypatch, "amx")
    monkeypatch.setattr(ops, "why_unavailable", lambda device: "")
    monkeypatch.setattr(ops, "available", lambda device: not ops.why_unavailable(device))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)


class Machine:
    """Stands in for `cell.measure`: a machine on which every choice always costs the same.

    Attributes:
        asked: the cells that were to be measured, in order.
        caches: for each of them the environment that names its cache of compiled code.
        others: the share of the cores that other programs use in each window.
        trouble: what happens instead of a measurement, by cell.
        roofs_asked: the precisions in which the best speeds of the machine were asked for, in order.
    """

    def __init__(self) -> None:
        self.asked: list[Cell] = []
        self.caches: list[str] = []
        self.others: list[float] | None = [0.0, 0.02, 0.01]
        self.roofs_asked: list[str] = []
        self.trouble: Callable[[Cell, int], Failure | None] = lambda cell, number: None

    def __call__(self, cell: Cell, method: Method, environment: dict[str, str]) -> Measurement | Failure:
        self.asked.append(cell)
        self.caches.append(environment.get("TORCHINDUCTOR_CACHE_DIR", "the user's"))
        assert method.num_windows == 3
        if (failure := self.trouble(cell, len(self.asked))) is not None:
            return failure
        c = cell.config
        rate = RATES[c.engine] * (2 if c.precision == "bf16" else 1) * (1 if c.tuned else 0.5)
        rate *= 0.9 if c.memory_format == "contiguous" else 1
        rate *= 0.6 if c.batch_size < 128 else 1
        rate *= 0.95 if cell.augmentation == "eager" else 1
        slow_start = 40.0 if self.asked.count(cell) == 1 and c.engine == "compiled" else 0.5
        beside = [0.6 * rate] * 3 if method.neighbour else []
        self.roofs_asked += [c.precision] * method.roofs
        rates = [rate, 0.98 * rate, 1.04 * rate]
        roofs = ROOFS[c.precision] if method.roofs else None
        return Measurement(rates, self.others, 5, slow_start, 3.0, 1.25, None, 4.6, [], beside, roofs)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(ablate, "measure", machine)
    return machine


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the pictures."""
    caught: list[Figure] = []
    save = Figure.savefig

    def catch(self: Figure, *args: Any, **kwargs: Any) -> None:
        caught.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", catch)
    return caught


def pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return [(key.removeprefix("--"), value) for key, value in zip(words[::2], words[1::2], strict=True)]


def one_line(text: str) -> str:
    """Text without its breaks."""
    return " ".join(text.split())


def names(text: str) -> list[str]:
    return [entry.name for entry in grid.plan(pairs(text))]


def by_name(ablation: Ablation) -> dict[str, Entry]:
    return {entry.name: entry for entry in ablation.all_entries}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / ablation_results.JSONL).read_text().splitlines()]


DEFAULT = ["stock eager fp32", "eager fp32", "eager bf16", "compiled fp32", "compiled bf16", "fused fp32", "fused bf16"]

CHANNELS_LAST = "engine = fused computes in memory_format = channels_last; contiguous is for eager and compiled"

# ---- the grid ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DEFAULT),
        ("--precision bf16", ["stock eager fp32", "eager bf16", "compiled bf16", "fused bf16"]),
        ("--batch-size 64 --engine fused", ["stock eager fp32", "fused fp32", "fused bf16"]),
        ("--engine eager,compiled --tuned true --precision auto", ["eager bf16", "compiled bf16"]),
        ("--tuned true,false", ["fused bf16", "fused bf16, untuned"]),
        (
            "--batch_size 64,256 --loader resident,dali --tuned true",
            [
                "fused bf16, resident, batch 64",
                "fused bf16, resident, batch 256",
                "fused bf16, dali, batch 64",
                "fused bf16, dali, batch 256",
            ],
        ),
        (
            "--engine eager,compiled --compile-mode default,max-autotune --precision fp32 --tuned true",
            ["eager fp32", "compiled fp32, default", "compiled fp32, max-autotune"],
        ),
        ("--engine auto,fused --precision bf16,auto --tuned true", ["fused bf16"]),
    ],
)
def test_the_cells(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_the_reference_is_pytorch_as_it_comes() -> None:
    first = grid.plan(pairs("--batch-size 64,256 --engine fused --memory-format contiguous,channels_last"))[0]
    assert first.cell is not None
    config = first.cell.config
    assert (config.engine, config.precision, config.tuned) == ("eager", "fp32", False)
    assert (config.memory_format, config.batch_size) == ("channels_last", 64)


def test_settings_hold_in_every_cell() -> None:
    for entry in grid.plan(pairs("--width-mult 0.5 --mixup-alpha 0.2")):
        assert entry.cell is not None
        assert (entry.cell.config.width_mult, entry.cell.config.mixup_alpha) == (0.5, 0.2)


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_without_bf16_instructions_only_fp32_pays(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, level)
    assert names("") == ["stock eager fp32", "eager fp32", "compiled fp32", "fused fp32"]


def test_on_a_gpu_without_bf16_the_half_precision_is_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, "avx512_bf16", (7, 5))
    assert names("") == [
        f"{engine} {precision}" for engine in ("eager", "compiled", "fused") for precision in ("fp32", "fp16")
    ]


def test_cells_that_cannot_run_stay_with_their_reason() -> None:
    entries = grid.plan(pairs("--engine eager,fused --precision fp16,bf16 --memory-format contiguous,channels_last"))
    assert {entry.name: entry.problem for entry in entries} == {
        "stock eager fp32, channels_last": "",
        "eager fp16, contiguous": "",
        "eager fp16, channels_last": "",
        "eager bf16, contiguous": "",
        "eager bf16, channels_last": "",
        "fused fp16, contiguous": CHANNELS_LAST,
        "fused fp16, channels_last": "engine = 'fused', precision = 'fp16': on the CPU the fused ops know fp32 and "
        "bf16 only",
        "fused bf16, contiguous": CHANNELS_LAST,
        "fused bf16, channels_last": "",
    }


def test_without_the_extension_fused_is_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "why_unavailable", lambda device: "the extension _C is not built")
    problems = {entry.name: entry.problem for entry in grid.plan([])}
    assert [name for name, problem in problems.items() if problem] == ["fused fp32", "fused bf16"]
    with pytest.raises(UsageError, match="fused fp32: cannot run: the extension _C is not built"):
        ablate.ablate(pairs("--engine fused --tuned true"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            "--engine eager,fussed --loader dahli",
            [
                "command line: --engine fussed: expected one of auto, eager, compiled, fused; did you mean fused?",
                "command line: --loader dahli: expected one of resident, torchvision, dali; did you mean dali?",
            ],
        ),
        (
            "--batch-size 64,x --lr 1,2 --epohcs 3",
            [
                "command line: --batch-size x: expected an integer from 1 to 65536",
                "command line: --epohcs 3: there is no such option; did you mean --epochs?",
                "command line: --lr 1,2: expected a number above 0, at most 100",
            ],
        ),
        ("--repeat 3", ["command line: --repeat 3: there is no such option; did you mean --repeats?"]),
        ("--engine eager,", ['command line: --engine "": expected one of auto, eager, compiled, fused']),
        (
            "--data procedural",
            [
                "command line: --data procedural: nothing to set here: 40,000 images of random bytes are trained on, "
                "and nothing is evaluated or saved"
            ],
        ),
        (
            "--compile-mode default,max-autotune --engine eager",
            ["command line: --compile-mode: only for engine = compiled: name it in --engine"],
        ),
        ("--repeats 0", ["argument --repeats: '0': expected a number from 1 (see fastcifar ablate --help)"]),
        ("--seconds -1", ["argument --seconds: '-1': expected a number above 0 (see fastcifar ablate --help)"]),
        ("--device cuda", ["device = 'cuda': PyTorch"]),
        ("--out here", ["--out here is a file; a new or empty folder is wanted."]),
    ],
)
def test_wrong_usage(argv: str, expected: list[str], capsys: Captured) -> None:
    Path("here").write_text("")
    assert cli.main(["ablate", *argv.split()]) == 2
    said = [line.removeprefix("fastcifar: ") for line in capsys.readouterr().err.splitlines()]
    assert len(said) == len(expected)
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True)), said
    assert not Path("runs").exists()


# ---- measuring ----


def test_every_round_measures_every_cell_in_another_order(machine: Machine) -> None:
    for _ in range(2):
        ablate.ablate([], repeats=3, attribution=False)
    assert len(machine.asked) == 2 * 21
    rounds = [machine.asked[i : i + 7] for i in (0, 7, 14)]
    assert all(len(set(cells)) == 7 for cells in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert machine.asked[:21] == machine.asked[21:], "the order is the seed's"
    assert sorted(p.name[:15] for p in Path("runs/ablate").iterdir()) and len(list(Path("runs/ablate").iterdir())) == 2


def test_a_cell_keeps_its_compiled_code_to_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ablate.ablate([], repeats=2, attribution=False)
    cache_of = {cell: cache for cell, cache in zip(machine.asked, machine.caches, strict=True)}
    assert len(set(cache_of.values())) == 7
    assert [cache_of[cell] for cell in machine.asked] == machine.caches
    assert not Path(machine.caches[0]).parent.exists(), "nothing stays behind"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    ablate.ablate([], repeats=1, attribution=False)
    assert set(machine.caches[14:]) == {"the user's"}


def test_what_the_numbers_are() -> None:
    entry = Entry("a", {})
    assert entry.rate != entry.rate
    for rates in ([10.0, 30.0, 20.0], [40.0, 50.0, 15.0]):
        entry.measurements.append(Measurement(rates, None, 1, 1.0, 1.0, 1.0, None, 1.0, []))
    assert (entry.rate, entry.spread) == (25.0, (10.0, 50.0))


def test_attribution_removes_one_factor_at_a_time(machine: Machine) -> None:
    ablation = ablate.ablate([], repeats=2)
    assert ablation.fastest is by_name(ablation)["fused bf16"]
    found = {f.name: (f.change, f.without.name, f.of.name, round(f.cost, 3)) for f in ablation.factors}
    assert found == {
        "engine": ("fused -> eager", "eager bf16", "fused bf16", 0.6),
        "precision": ("bf16 -> fp32", "fused fp32", "fused bf16", 0.5),
        "loader": ("resident -> torchvision", "fused bf16, torchvision", "fused bf16", 0.0),
        "augmentation": ("fused -> op by op", "fused bf16, augmented op by op", "fused bf16", 0.05),
        "memory format": ("channels_last -> contiguous", "eager bf16, contiguous", "eager bf16", 0.1),
        "tuned": ("true -> false", "fused bf16, untuned", "fused bf16", 0.5),
        "batch size": ("128 -> 64", "fused bf16, batch 64", "fused bf16", 0.4),
    }
    assert len(machine.asked) == 2 * (7 + 5), "cells of the grid are not measured twice"
    assert all(len(entry.measurements) == 2 for entry in ablation.all_entries)
    for factor in ablation.factors:
        if factor.of is ablation.fastest and factor.without.cell is not None and ablation.fastest.cell is not None:
            before, after = (cell.config.model_dump() for cell in (ablation.fastest.cell, factor.without.cell))
            assert sum(before[key] != after[key] for key in before) == (factor.name != "augmentation"), factor.name
    header, rows = ablation_text.factor_table(ablation)
    assert [row[0] for row in rows] == [
        "engine", "precision", "tuned", "batch size", "memory format", "augmentation", "loader",
    ]  # fmt: skip
    assert rows[0] == ["engine", "fused -> eager", "800", "784-832", "-60.0% "]
    assert rows[4] == ["memory format", "channels_last -> contiguous", "720", "706-749", "-10.0%*"]


def test_attribution_of_other_cells(machine: Machine) -> None:
    text = "--engine compiled --compile-mode max-autotune --tuned true --loader torchvision --precision fp32"
    ablation = ablate.ablate(pairs(f"{text} --batch-size 1"), repeats=1)
    assert [(f.name, f.change) for f in ablation.factors] == [
        ("engine", "compiled -> eager"),
        ("compile mode", "max-autotune -> default"),
        ("memory format", "channels_last -> contiguous"),
        ("tuned", "true -> false"),
    ]
    engine = ablation.factors[0].without
    assert engine.cell is not None and engine.cell.config.compile_mode == "default"


@pytest.mark.parametrize("engine", ["eager", "compiled", "fused"])
def test_on_a_gpu_the_graph_is_a_factor_of_every_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_on(monkeypatch, "amx", (9, 0))
    config = Config.model_validate({"engine": engine, "precision": "bf16", "device": "cuda:0"})
    fastest = grid._entry_of(Cell(config), torch.device("cuda", 0))
    fastest.name = f"{engine} bf16"
    factors = {f.name: f for f in grid.factors_of(fastest, [fastest], torch.device("cuda", 0))}
    graph = factors["CUDA graph"]
    assert graph.without.cell == Cell(config, launched=True) and graph.without.name == f"{engine} bf16, launched"
    assert "tuned" not in factors


# ---- what is written and shown ----


def test_tables_files_and_chart(machine: Machine, figures: list[Figure], capsys: Captured) -> None:
    assert cli.main(["ablate", "--repeats", "2", "--out", "here"]) == 0
    out, err = capsys.readouterr()
    rows = {line[:18].strip(): line[18:].split() for line in out.splitlines()[:8]}
    assert "warm-up s" in out.splitlines()[0] and "compile s" not in out
    assert rows["stock eager fp32"] == ["200", "196-208", "1.00x", "16:40:00", "0.5", "(0.5)", "1.25"]
    assert rows["fused bf16"] == ["2,000", "1,960-2,080", "10.00x", "1:40:00", "0.5", "(0.5)", "1.25"]
    assert rows["compiled fp32"][-3:] == ["40.0", "(0.5)", "1.25"]
    assert "fused bf16 (2,000 images/s) with one thing changed:" in out and "-60.0%" in out
    assert "computed from images/s" in out and "not run" in out and out.endswith("results  here\n")
    assert Path("here/ablation.txt").read_text() + "\nresults  here\n" == out
    assert max(map(len, out.splitlines()[:17])) <= 80, "the tables fit a terminal"
    progress = err.splitlines()
    assert len(progress) == 24 and progress[0].startswith("[1/") and progress[-1].startswith("[24/24] ")

    everything = lines(Path("here"))
    kinds = [line["kind"] for line in everything]
    assert kinds == ["environment"] + ["measurement"] * 24 + ["cell"] * 12 + ["factor"] * 7
    assert everything[0]["command"] == ["fastcifar", "ablate", "--repeats", "2", "--out", "here"]
    assert {"torch", "cpu", "source", "num_images", "repeats", "settings"} <= everything[0].keys()
    first = everything[1]
    assert len(first["images_per_second"]) == 3 and first["round"] == 1 and first["engine"] in RATES
    with open("here/ablation.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["cell"] for cell in cells if cell["in_grid"] == "True"] == DEFAULT
    fused = next(cell for cell in cells if cell["cell"] == "fused bf16")
    assert float(fused["speed_up"]) == 10 and float(fused["run_seconds_computed"]) == 6000
    assert fused["torch"] == torch.__version__ and fused["num_processes"] == "2" and fused["num_windows"] == "6"

    bars, factors = figures[0].axes
    assert [label.get_text() for label in bars.get_yticklabels()] == DEFAULT
    assert [text.get_text() for text in bars.texts][-1] == "2,000  10.00x"
    assert [label.get_text() for label in factors.get_yticklabels()][0] == "engine\nfused -> eager"
    assert [text.get_text() for text in factors.texts][0] == "-60.0%"
    assert Path("here/ablation.svg").read_text().startswith("<?xml")
    with Image.open("here/ablation.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in ENGINE_COLOURS.values()} <= shown


def test_what_was_measured_is_named(machine: Machine, figures: list[Figure], capsys: Captured) -> None:
    argv = "ablate --engine fused --width-mult 0.25 --mixup_alpha 0.2 --repeats 1 --json --out here"
    assert cli.main(argv.split()) == 0
    line = "batch 128, width 0.25, mixup_alpha=0.2"
    assert f"\n{line}; " in Path("here/ablation.txt").read_text()
    assert figures[0].get_suptitle().startswith(f"{line}\n")
    with open("here/ablation.csv", newline="") as file:
        assert all((row["width_mult"], row["mixup_alpha"]) == ("0.25", "0.2") for row in csv.DictReader(file))
    assert json.loads(capsys.readouterr().out)["environment"]["settings"]["width_mult"] == 0.25
    several = ablate.ablate(pairs("--batch-size 64,256"), repeats=1)
    assert ablation_results.settings_line(several) == "width 1", "each cell's name has its batch size"


def test_labels_of_the_chart_do_not_overlap(machine: Machine, figures: list[Figure]) -> None:
    text = "--engine eager,compiled,fused --precision fp32,bf16 --batch-size 64,128,256"
    ablate.ablate(pairs(text), repeats=1)
    figure = figures[-1]
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in [*axes.get_yticklabels(), *axes.texts]]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_windows_in_which_other_programs_ran_do_not_count(machine: Machine) -> None:
    machine.others = [0.0, 0.2, 0.05]
    ablation = ablate.ablate(pairs("--engine fused"), repeats=2, attribution=False)
    fused = by_name(ablation)["fused bf16"]
    assert fused.windows == [2000, 2080] * 2 and fused.rate == 2040 and fused.num_left_out == 2
    assert one_line(ablation_text.text(ablation)).endswith(
        "6 windows left out: other programs used more than 5% of the cores"
    )
    machine.others = [0.1, 0.2, 0.06]
    ablation = ablate.ablate(pairs("--engine fused"), repeats=2, attribution=False)
    assert by_name(ablation)["fused bf16"].rate == 2000, "better a disturbed number, said to be one, than none"
    assert "more than 5% of the cores in all windows of all cells" in one_line(ablation_text.text(ablation))
    ablation.entries[0].measurements[0] = dataclasses.replace(ablation.entries[0].measurements[0], others=[0.0] * 3)
    assert one_line(ablation_text.text(ablation)).endswith("in all windows of fused fp32; fused bf16")
    for unknown_or_quiet in (None, [0.0, 0.02, 0.01]):
        machine.others = unknown_or_quiet
        assert "cores" not in ablation_text.text(ablate.ablate(pairs("--engine fused"), repeats=1))


def test_remarks_are_short_and_fit_a_terminal(machine: Machine) -> None:
    machine.others = [0.1] * 3
    ablation = ablate.ablate(pairs("--mixup-alpha 0.2 --lr 0.1 --epochs 30"), repeats=2)
    processes = [measurement for entry in ablation.all_entries for measurement in entry.measurements]
    for number, measurement in enumerate(processes):
        measurement.notes.append(f"other programs use {number / 10} of 2 cores: each thread stays on its core")
    ablation.entries[0].problem = "no compiler\ninstall g++"
    text = ablation_text.text(ablation)
    assert max(map(len, text.partition("images/s: ")[2].splitlines())) <= 79 and "no compiler\ninstall g++" in text
    assert "all cells: other programs use some of 2 cores: each" in one_line(text)
    assert one_line(text).count("other programs use ") == 1


def test_epochs_on_small_images_are_said_to_count_as_whole_ones(machine: Machine) -> None:
    said = "not run; those on small images count as whole ones "
    for settings, expected in (("", False), ("--low-res-epochs 8", True)):
        ablation = ablate.ablate(pairs(settings), repeats=1, attribution=False)
        assert (said in one_line(ablation_text.text(ablation))) == expected


# ---- trouble ----


def test_a_cell_that_fails_is_a_row_and_the_others_go_on(machine: Machine, capsys: Captured) -> None:
    def trouble(cell: Cell, number: int) -> Failure | None:
        if cell.config.engine == "compiled":
            return Failure("CompileError", "torch.compile failed: no compiler\ninstall g++", "Traceback ...")
        if cell.config.loader == "torchvision":
            return Failure("UsageError", "loader = torchvision: the package is missing")
        return None

    machine.trouble = trouble
    assert cli.main(["ablate", "--repeats", "2", "--out", "here"]) == 1
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("compiled")][:2] == [
        ["compiled", "fp32", "failed"],
        ["compiled", "bf16", "failed"],
    ]
    assert "compiled fp32; compiled bf16: failed: torch.compile failed: no compiler\ninstall g++\n" in out
    assert "fused bf16, torchvision: cannot run: loader = torchvision: the package is missing" in one_line(out)
    assert "not measured" in out
    assert sum(cell.config.engine == "compiled" for cell in machine.asked) == 2, "what failed is not tried again"
    failures = [line for line in lines(Path("here")) if line["kind"] == "failure"]
    assert len(failures) == 3 and failures[0].keys() >= {"cell", "error", "message", "traceback"}


def test_a_reference_that_fails_leaves_no_speed_up(machine: Machine) -> None:
    machine.trouble = lambda cell, number: None if cell.config.tuned else Failure("exit", "bad luck")
    ablation = ablate.ablate(pairs("--engine fused"), repeats=1, attribution=False)
    _, rows = ablation_text.cell_table(ablation)
    assert [row[3] for row in rows] == ["", "-", "-"] and rows[0][1] == "failed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_measured_is_shown_when_it_is_stopped(
    number: signal.Signals, code: int, machine: Machine, capsys: Captured
) -> None:
    def trouble(cell: Cell, count: int) -> None:
        if count == 10:
            os.kill(os.getpid(), number)

    machine.trouble = trouble
    before = signal.getsignal(signal.SIGTERM)
    argv = ["ablate", "--repeats", "2", "--out", "here", "--no-attribution", "--precision", "fp32,bf16"]
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts ignoring it
    try:
        assert cli.main(argv) == code
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    out, err = capsys.readouterr()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "fused bf16" in out and "2,000" in out
    missing = err.splitlines()[-1]
    assert missing.startswith(f"fastcifar: stopped by {number.name}; missing: ") and missing.count("(1 of 2)") == 5
    assert [line["kind"] for line in lines(Path("here"))].count("measurement") == 9
    assert Path("here/ablation.svg").exists() and Path("here/ablation.csv").exists()


def test_stopped_before_anything_is_measured(machine: Machine, capsys: Captured) -> None:
    def trouble(cell: Cell, count: int) -> None:
        raise KeyboardInterrupt

    machine.trouble = trouble
    assert cli.main(["ablate", "--out", "here"]) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["stock", "eager", "fp32", "-"]
    assert "stock eager fp32 (0 of 3)" in err and err.rstrip().endswith("the attribution")
    assert not Path("here/ablation.svg").exists()


def test_a_busy_neighbours_share_is_a_column_of_the_grid(machine: Machine, capsys: Captured) -> None:
    assert cli.main("ablate --repeats 1 --engine fused --neighbour --out here".split()) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("neighbour") and all(row.endswith("60%") for row in table[1:4])
    cells = [line for line in lines(Path("here")) if line["kind"] == "cell"]
    assert [cell["beside_neighbour"] for cell in cells if not cell["in_grid"]].count(None) == len(cells) - 3
    assert all(cell["beside_neighbour"] == pytest.approx(0.6) for cell in cells[:3])


def test_a_cells_share_of_its_floor(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(Target, "fuses_pointwise", False)  # else it depends on the processor
    machine.trouble = lambda cell, number: Failure("OSError", "lost") if number == 1 else None
    assert cli.main("ablate --repeats 2 --no-attribution --out here".split()) == 1
    assert sorted(machine.roofs_asked) == ["bf16", "fp32"], "once for each product, though the first process failed"
    for cell in (line for line in lines(Path("here")) if line["kind"] == "cell" and line["images_per_second"]):
        config = next(c.config for c in machine.asked if c.config.engine == cell["engine"])
        config = config.model_copy(update={"precision": cell["precision"]})
        rows = rows_of(layers := list_layers(Target(config)), ROOFS[cell["precision"]], [None] * len(layers))
        assert cell["floor_seconds"] == pytest.approx(sum(row.layer.count * row.floor_seconds for row in rows))
        by_memory = [row.layer.count * row.floor_seconds for row in rows if row.memory_bound]
        assert cell["memory_bound_floor_seconds"] == pytest.approx(sum(by_memory)) and by_memory
        assert cell["step_seconds"] == pytest.approx(128 / cell["images_per_second"])
    out = capsys.readouterr().out
    said = "(from memory 50 GB/s) or its operations at that of a large product (bf16 4, fp32 1"
    assert said in one_line(out)
    table = out.partition("of floor by memory\n")[2].partition("\n\n")[0].splitlines()
    assert next(row.split() for row in table if row.startswith("fused fp32"))[2:] == ["128.00", "50.99", "40%", "37%"]


# ---- as a whole ----


def test_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv: Sequence[str] = "ablate --engine eager --precision fp32 --width-mult 0.125 --batch-size 16".split()
    assert (
        cli.main(
            [
                *argv,
                *"--seconds 0.05 --repeats 1 --no-attribution --neighbour --device cpu --json --out".split(),
                "here",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["results"] == "here" and found["environment"]["neighbour"] and found["factors"] == []
    assert [cell["cell"] for cell in found["cells"]] == ["stock eager fp32", "eager fp32"]
    out = Path("here/ablation.txt").read_text().splitlines()
    assert out[1].startswith("stock eager fp32") and out[2].startswith("eager fp32")
    measured = [line for line in lines(Path("here")) if line["kind"] == "measurement"]
    assert len(measured) == 2 and all(min(m["images_per_second"]) > 0 for m in measured)
    assert [m["roofs"] is not None for m in measured].count(True) == 1
    assert all(0 < cell["floor_seconds"] < cell["step_seconds"] for cell in found["cells"])
    assert all(len(m["beside_neighbour"]) == 3 and min(m["beside_neighbour"]) > 0 for m in measured)
