"""Runs side by side: which runs share a column, which settings are shown, and the arithmetic of every cell."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastcifar.cli import main as cli
from fastcifar.errors import CheckpointError
from fastcifar.presets import load_preset
from fastcifar.run import folder as run
from fastcifar.run.encoding import unsealed
from fastcifar.run.folder import RunFolder
from fastcifar.studies import compare
from fastcifar.studies.compare import blocks, columns, load, table
from fastcifar.studies.folder import Study, Trial

ENVIRONMENT = {
    "torch": "2.13.0", "threads": {"torch": 2}, "gpu": None, "cpu": {"model": "Xeon"}, "variables": {},
    "source": {"commit": "0123456789abcdef", "dirty": False},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(
        path: str,
        preset: str = "final",
        val: float | None = 0.7,
        digest: str = "d" * 64,
        env: Any = None,
        **settings: Any,
    ) -> Path:
        """Makes a run folder; without `val`, the run was interrupted in epoch 2."""
        monkeypatch.setattr(run, "collect", lambda device: ENVIRONMENT | (env or {}))
        config = load_preset(preset).model_copy(update=settings)
        folder = RunFolder.create(config, Path(path), [], digest)
        for epoch in (1, 2):
            speeds = {"images_per_second": 1000.0 * epoch, "train_seconds": (10.0, 40.0)[epoch - 1]}
            losses = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 2.0, "val_accuracy": 0.1}
            folder.append({"epoch": epoch, "lr": 0.1, **losses, **speeds})
        if val is not None:
            result = {"val_accuracy": val, "test_accuracy": val + 0.01, "val_loss": 2 - val, "train_seconds": 100 * val}
            folder.write_summary(result)
        folder.close()
        return folder.path

    return make


def cells(cols: list[compare.Column]) -> dict[str, list[str]]:
    return {name: values for name, *values in table(cols)}


def test_seeds_are_one_column_with_mean_and_deviation(make: Any) -> None:
    paths = [make(f"wd{seed}", "wd-5e-4", val, seed=seed) for seed, val in enumerate((0.60, 0.62, 0.64))]
    paths += [make(f"final{seed}", "final", val, seed=seed) for seed, val in enumerate((0.70, 0.71))]
    cols = columns(load(paths))
    assert [(col.title, col.seeds, len(col.runs)) for col in cols] == [("A wd-5e-4", "0-2", 3), ("B final", "0-1", 2)]
    rows = cells(cols)
    assert rows["mixup_alpha"] == ["0.0", "0.2"]
    assert rows["val accuracy %"] == ["62.00 ± 2.00", "70.50 ± 0.71 (+8.50)"]
    assert rows["test accuracy %"] == ["63.00 ± 2.00", "71.50 ± 0.71 (+8.50)"]
    assert rows["val loss"] == ["1.3800 ± 0.0200", "1.2950 ± 0.0071 (-0.0850)"]
    assert rows["training s"] == ["62.0 ± 2.0", "70.5 ± 0.7 (1.14x)"]
    assert rows["images/s"] == ["1,750 ± 0", "1,750 ± 0 (1.00x)"], "all images over the training clock"
    assert set(rows) == {"mixup_alpha", "val accuracy %", "test accuracy %", "val loss", "training s", "images/s"}


def test_seeds_of_one_setting_stand_beside_each_other_and_their_mean(make: Any) -> None:
    cols = columns(load([make("a", val=0.6, seed=3), make("b", val=0.7, seed=1, data="elsewhere.npz", device="cpu")]))
    assert [(col.title, col.seeds) for col in cols] == [("A final", "3"), ("B final", "1"), ("C final", "1, 3")]
    assert cells(cols)["val accuracy %"] == ["60.00", "70.00 (+10.00)", "65.00 ± 7.07 (+5.00)"]


def test_the_same_seed_twice_is_compared_not_averaged(make: Any) -> None:
    old = {"torch": "2.12.0", "threads": {"torch": 1}, "variables": {"FASTCIFAR_STUDY_JOBS": "2"}}
    cols = columns(load([make("a", val=0.6, env=old), make("b", val=0.6), make("c", val=0.6, seed=1)]))
    assert [[str(r.path) for r in col.runs] for col in cols] == [["a", "c"], ["b"]]
    rows = cells(columns(load([Path("a"), Path("b")])))
    assert (
        rows["torch"] == ["2.12.0", "2.13.0"] and rows["threads"] == ["1", "2"] and rows["side by side"] == ["2", "-"]
    )
    assert "commit" not in rows and "images" not in rows
    each = columns(load([Path("c"), Path("a")]), each=True)
    assert [str(col.runs[0].path) for col in each] == ["c", "a"]


def test_other_images_are_another_column(make: Any) -> None:
    cols = columns(load([make("a"), make("b", seed=1, digest="e" * 64)]))
    assert cells(cols)["images"] == ["cifar100 (dddddddd)", "cifar100 (eeeeeeee)"]


def test_a_study_stands_for_the_runs_that_have_begun(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s").mkdir()
    Study(
        Path("s"), trials={name: Trial(name, {}, (0, 1), 300, "d") for name in ("final", "cosine", "constant")}
    ).write()
    for name, seed, val in (("final", 0, 0.7), ("final", 1, None), ("cosine", 0, 0.6)):
        make(f"s/runs/{name}-s{seed}", name, val, seed=seed)
    assert cli.main(["compare", "s", "s/runs/final-s0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second, _, header, *rows = out.splitlines()
    assert first == "A final, seeds 0-1  s/runs/final-s0, final-s1"
    assert second == "B cosine, seed 0    s/runs/cosine-s0"
    assert re.split("  +", header.strip()) == ["A final", "B cosine"]
    found = {re.split("  +", row)[0]: re.split("  +", row)[1:] for row in rows}
    assert found["epochs done"] == ["300, 2 of 300", "300"]
    assert found["val accuracy %"] == ["70.00", "60.00 (-10.00)"], "a run without a result has none"
    assert out.endswith("\n± is the standard deviation over seeds\n")


def test_what_cannot_be_compared(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    assert cli.main(["compare", "a", "./a"]) == 2
    assert capsys.readouterr().err == "fastcifar: compare: two runs are needed, or a study with two; found 1\n"
    assert cli.main(["compare", "a", "b"]) == 2
    assert "there is no run at b" in capsys.readouterr().err


def test_a_folder_stands_for_the_runs_in_it(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: `compare study/runs` and `compare docs/study` did not work where `report` does."""
    make("docs/study/runs/a", val=0.6)
    make("docs/study/runs/b", lr=0.2)
    for path in ("docs/study", "docs/study/runs"):
        assert [str(run.path) for run in load([Path(path)])] == ["docs/study/runs/a", "docs/study/runs/b"]
    damaged = make("docs/study/runs/c", lr=0.3)
    (damaged / "environment.json").write_text("{")
    notes: list[str] = []
    assert len(load([Path("docs/study")], notes.append)) == 2
    assert len(notes) == 1 and notes[0].startswith("docs/study/runs/c is left out: ")
    (make("docs/study/runs/d", lr=0.4) / "summary.json").write_text("{")
    assert cli.main(["compare", "docs/study"]) == 0, "a damaged result takes no table away"
    assert "docs/study/runs/d is left out: " in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="environment.json is damaged"):
        load([damaged, Path("docs/study")])


def change_summary(run: Path, **changes: object) -> None:
    content = unsealed(json.loads((run / "summary.json").read_text()))
    (run / "summary.json").write_text(json.dumps(content | changes))


def test_runs_without_validation_images_have_no_validation(make: Any) -> None:
    for name, size in (("a", 0), ("b", 5000)):
        path = make(name, val_size=size)
        if not size:
            change_summary(path, val_accuracy=None, val_loss=None)
    rows = cells(columns(load([Path("a"), Path("b")])))
    assert rows["val accuracy %"] == ["-", "70.00"] and rows["test accuracy %"] == ["71.00", "71.00 (+0.00)"]


def test_a_wide_table_comes_in_parts() -> None:
    titles = [f"{letter} final" for letter in "ABCDE"]
    rows = [["val accuracy %", "60.00", *["61.00 (+1.00)"] * 4]]
    parts = blocks(titles, rows, 60)
    assert [header for header, _ in parts] == [
        ["", "A final", "B final", "C final"],
        ["", "A final", "D final", "E final"],
    ]
    assert parts[1][1] == [["val accuracy %", "60.00", "61.00 (+1.00)", "61.00 (+1.00)"]]
    assert len(blocks(titles, rows, 1)) == 4 and len(blocks(titles, rows, 10**6)) == 1


def test_energy_and_a_diverged_run(make: Any) -> None:
    for name, joules in (("a", 5e4), ("b", 2e4)):
        path = make(name, lr=0.1 if name == "a" else 0.2)
        change_summary(path, energy_joules=joules, val_loss=float("nan"))
    rows = cells(columns(load([Path("a"), Path("b")])))
    assert rows["energy kJ"] == ["50.0", "20.0 (0.40x)"] and rows["lr"] == ["0.1", "0.2"]
    assert rows["val loss"] == ["nan", "nan (+nan)"]


def test_many_commits_are_cut_short(make: Any) -> None:
    for seed in range(3):
        make(f"a{seed}", seed=seed, env={"source": {"commit": f"{seed}" * 40}})
    make("b", lr=0.1, env={"source": None})
    rows = cells(columns(load([Path("a0"), Path("a1"), Path("a2"), Path("b")])))
    assert rows["commit"] == ["0000000000 / 1111111111 / ...", "-"]


@pytest.mark.parametrize(("index", "letters"), [(0, "A"), (25, "Z"), (26, "AA"), (52, "BA")])
def test_letters(index: int, letters: str) -> None:
    assert compare._letter(index) == letters
