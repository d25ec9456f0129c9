"""The study: its plan, and runs that finish, fail, are killed, are stopped or belong to another study.

Most runs here are of tests/fake_run.py; one test has real runs.
"""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import DIGEST
from tiny import write_tiny
from waiting import when

from fastcifar.cli import arguments
from fastcifar.cli import main as cli
from fastcifar.data import sources
from fastcifar.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteError, UsageError
from fastcifar.presets import TRIALS, load_preset
from fastcifar.run import failure
from fastcifar.run.folder import RunFolder
from fastcifar.run.planned import PlannedRun
from fastcifar.studies import conduct as study
from fastcifar.studies import folder as study_folder
from fastcifar.studies import jobs
from fastcifar.studies.conduct import Result, conduct
from fastcifar.studies.folder import Study, Trial
from fastcifar.studies.plan import Request, default_folder, plan
from fastcifar.studies.progress import Progress

TESTS = Path(__file__).resolve().parent
OUT = Path("s")
SHORT = (("epochs", "3"),)


class Report:
    """Stands in for fastcifar.report.writing, and keeps its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Path], dict[str, PlannedRun]]] = []

    def write_report(
        self,
        runs: Sequence[Path],
        out: Path,
        *,
        planned: Sequence[PlannedRun] = (),
        data: str | None = None,
        search: Any = None,
        note: Callable[[str], None] = print,
    ) -> Path:
        self.calls.append((list(runs), {run.name: run for run in planned}))
        return out / "index.html"


@pytest.fixture(autouse=True)
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    written = Report()
    monkeypatch.setattr("fastcifar.report.writing.write_report", written.write_report)
    return written


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "FASTCIFAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs, "_num_gpus", lambda: 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces runs by tests/fake_run.py. The fixture is a function that sets what they do."""
    monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, str(TESTS / "fake_run.py")))
    monkeypatch.setattr(study, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sources, "load", lambda data, mirror="": SimpleNamespace(digest=DIGEST))
    return lambda **actions: monkeypatch.setenv(
        "FAKE_DO", json.dumps({k.replace("_", "-"): v for k, v in actions.items()})
    )


def request(*trials: str, seeds: int | None = 1, **options: Any) -> Request:
    return Request(trials, seeds=None if seeds is None else tuple(range(seeds)), settings=SHORT, **options)


def trained() -> Counter[str]:
    """The number of times that each epoch was trained, such as `final-s0 3` -> 1."""
    file = Path("trained.txt")
    return Counter(file.read_text().splitlines() if file.exists() else [])


def whole(*names: str, epochs: int = 3) -> Counter[str]:
    return Counter(f"{name} {epoch}" for name in names for epoch in range(1, epochs + 1))


def states(result: Result) -> dict[str, str]:
    return {run.name: run.state for run in result.runs}


def pid_of(run: str) -> int:
    """The process that holds the lock of a run, according to the lock file."""
    return int((OUT / "runs" / run / ".lock").read_text().split()[1])


# ---- what is planned ----


def test_all_trials_with_the_first_seed_come_first() -> None:
    planned, wanted = plan(OUT, Request())
    runs = planned.planned()
    assert [run.name for run in runs[:3]] == ["lr-0.05-s0", "lr-0.5-s0", "lr-0.01-s0"]
    assert [(run.trial, run.seed) for run in runs] == [(t, s) for s in (0, 1, 2) for t in TRIALS]
    assert wanted == {run.name for run in runs}
    assert sum(run.epochs for run in runs) == 3 * 1545
    assert {run.state for run in runs} == {"missing"} and runs[7].path == OUT / "runs" / "final-s0"
    assert planned.config("final", 2) == load_preset("final").model_copy(update={"seed": 2})
    assert not OUT.exists(), "planning writes nothing"


def test_epochs_scale_shrinks_warm_up_too() -> None:
    scaled, _ = plan(OUT, Request(epochs_scale=0.01))
    assert {name: trial.epochs for name, trial in scaled.trials.items()} == {
        name: 1 if name.startswith("lr") else 3 for name in TRIALS
    }
    Path("warm.toml").write_text('base = "final"\n[settings]\nlr_warmup_epochs = 10.0\n')
    config = plan(OUT, Request(("warm.toml",), epochs_scale=0.1))[0].config("warm", 0)
    assert (config.epochs, config.lr_warmup_epochs) == (30, 1.0)


def test_quick_is_small_and_settings_go_before_it() -> None:
    quick, _ = plan(OUT, Request(("lr-0.05", "final"), quick=True, settings=(("width-mult", "0.5"),)))
    config = quick.config("final", 1)
    assert (config.data, config.width_mult, config.mixup_alpha, config.seed) == ("procedural", 0.5, 0.2, 1)
    assert [trial.epochs for trial in quick.trials.values()] == list(study_folder.QUICK_EPOCHS)


def test_a_study_grows_and_keeps_its_settings() -> None:
    first, _ = plan(OUT, Request(("final",), seeds=(0,), epochs_scale=0.1, settings=(("lr", "0.1"),)))
    OUT.mkdir()
    first.write()
    assert Study.open(OUT) == first
    more, wanted = plan(OUT, Request(("lr-0.05", "final"), seeds=(0, 1)))
    assert more.config("lr-0.05", 0).lr == 0.1 and more.trials["lr-0.05"].epochs == 2
    assert {name: trial.seeds for name, trial in more.trials.items()} == {"final": (0, 1), "lr-0.05": (0, 1)}
    more.write()
    again, wanted = plan(OUT, Request())
    assert again == more and len(wanted) == 4, "without names, all that was asked for before"
    _, wanted = plan(OUT, Request(("final",), seeds=(1,)))
    assert wanted == {"final-s1"}
    plan(OUT, Request(settings=(("device", "cpu"), ("data", "other.npz"), ("lr", "0.10"))))  # no other result


def test_a_study_goes_on_with_the_seeds_that_each_trial_has() -> None:
    """The bug: every trial got the seeds of all trials together."""
    OUT.mkdir()
    plan(OUT, Request(("lr-0.05",), seeds=(0, 1)))[0].write()
    plan(OUT, Request(("final",), seeds=(7,)))[0].write()
    again, wanted = plan(OUT, Request())
    assert wanted == {"lr-0.05-s0", "lr-0.05-s1", "final-s7"} and again == Study.open(OUT)
    assert plan(OUT, Request(("final",)))[1] == {"final-s7"}
    assert plan(OUT, Request(("cosine",)))[1] == {f"cosine-s{seed}" for seed in (0, 1, 7)}, "a new trial has all"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (Request(settings=(("lr", "0.2"),)), "lr = 0.2 asked, 0.1 there   (final, lr-0.05)"),
        (Request(epochs_scale=1.0), "epochs = 15 asked, 2 there   (lr-0.05)"),
        (Request(quick=True), "width_mult = 0.25 asked, 1.0 there   (final, lr-0.05)"),
    ],
)
def test_other_settings_are_refused_with_what_differs(asked: Request, line: str) -> None:
    OUT.mkdir()
    plan(OUT, Request(("final", "lr-0.05"), epochs_scale=0.1, settings=(("lr", "0.1"),)))[0].write()
    with pytest.raises(UsageError) as caught:
        plan(OUT, asked)
    assert line in str(caught.value).splitlines() and "s holds a study with other settings" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "study finl quick --seed 3 --lr fast --epohcs 3 lr-0.05 --epochs-scale 2 --epochs 4"
    assert cli.main(argv.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    for line, part in zip(
        lines,
        ["--seed: a study takes --seeds", "--epochs and --epochs-scale: give one", "finl: there is no such",
         "--epohcs 3: there is no such option; did you mean --epochs?", "--lr fast: expected a number"],
        strict=True,
    ):  # fmt: skip
        assert part in line
    assert "did you mean final?" in lines[2] and list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seeds 0", "--seeds: '0': expected a number of seeds, or seeds such as 3,4,5"),
        ("--seeds 1,-2", "--seeds: '1,-2'"),
        ("--jobs none", "--jobs: 'none': expected a number from 1"),
        ("--epochs-scale nan", "--epochs-scale: 'nan': expected a number above 0"),
        (
            "final lr-0.05 --lr-warmup-epochs 20",
            "lr-0.05: configs/lr-0.05.toml, command line: lr_warmup_epochs = 20 must",
        ),
    ],
)
def test_wrong_numbers(capsys: pytest.CaptureFixture[str], argv: str, message: str) -> None:
    assert cli.main(["study", *argv.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seeds"), [("2", (0, 1)), ("5,3,3", (3, 5)), ("7,", None)])
def test_seeds(text: str, seeds: tuple[int, ...] | None) -> None:
    if seeds is None:
        with pytest.raises(ValueError):
            arguments.seeds(text)
    else:
        assert arguments.seeds(text) == seeds


@pytest.mark.parametrize("what", ["--lr 0.05,0.1", "--search lr=log:0.01..1"])
def test_what_quick_means_is_said_where_it_is_no_trial(capsys: pytest.CaptureFixture[str], what: str) -> None:
    said = "`quick` is here a mode (small models on procedural images), not the preset: to vary that, name a settings"
    assert cli.main(["study", "quick", *what.split()]) == 2
    assert capsys.readouterr().err.endswith(f'{said} file with the line base = "quick"\n')
    assert cli.main(["study", *what.split()]) == 2
    assert "mode" not in capsys.readouterr().err
    Path("mine.toml").write_text('base = "quick"\n')
    request = Request(("mine.toml",), settings=[("lr", "0.05,0.1")])
    study, runs = plan(Path("grid"), request)
    assert {study.config(run.trial, run.seed).data for run in study.planned()} == {"procedural"} and len(runs) == 6


def test_folders_of_other_things_are_refused() -> None:
    OUT.mkdir()
    (OUT / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"holds no study but thesis.tex; give a new or empty folder"):
        plan(OUT, Request())
    with pytest.raises(UsageError, match="cannot be used: Not a directory"):
        plan(OUT / "thesis.tex", Request())


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1, "trials": 3}'])
def test_a_damaged_study_can_be_made_anew(content: str) -> None:
    (OUT / "runs").mkdir(parents=True)
    (OUT / "study.json").write_text(content)
    with pytest.raises(CheckpointError, match="study.json is damaged .*The runs beside it are intact: remove it"):
        plan(OUT, Request())
    (OUT / "study.json").unlink()
    plan(OUT, Request())


# ---- trials of one's own ----


def write_mine(lr: float = 0.1, file: str = "mine.toml") -> None:
    Path(file).write_text(f'base = "final"\n[settings]\nlr = {lr}\n')


def test_a_settings_file_is_a_trial_and_the_study_keeps_a_copy(fake: Any, report: Report) -> None:
    write_mine()
    asked = Request(("final", "mine.toml"), seeds=(0, 1), settings=SHORT)
    conduct(OUT, asked)
    assert trained() == whole("final-s0", "mine-s0", "final-s1", "mine-s1")
    config = RunFolder.open(OUT / "runs/mine-s1").config
    assert (config.preset, config.lr, config.mixup_alpha, config.seed) == ("mine", 0.1, 0.2, 1)
    assert "--config s/settings/mine.toml --seed 1" in (OUT / "logs/mine-s1.log").read_text()

    write_mine(lr=0.2)
    with pytest.raises(UsageError, match=r"lr = 0.2 asked, 0.1 there   \(mine\)"):
        plan(OUT, asked)
    Path("mine.toml").unlink()
    again, wanted = plan(OUT, Request(seeds=(2,)))
    assert wanted == {"final-s2", "mine-s2"} and again.config("mine", 2).lr == 0.1, "the copy counts"


@pytest.mark.parametrize("trial", ["final", "mine.toml"])
def test_relative_places_are_the_same_when_a_study_goes_on(
    trial: str, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a run records absolute places, and the study compared them with the relative ones asked for."""
    Path("mine.toml").write_text('base = "final"\n[settings]\ninit_from = "runs/base"\ndata = "tiny.npz"\n')
    places = (("init-from", "runs/base"), ("data", "tiny.npz")) if trial == "final" else ()
    asked = Request((trial,), seeds=(0,), settings=(*SHORT, *places))
    conduct(OUT, asked)
    conduct(OUT, asked)
    absolute = [str(Path(place).absolute()) for place in ("runs/base", "tiny.npz")]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    result = conduct(".." / OUT, Request(seeds=(0, 1)))
    config = result.study.config(Path(trial).stem, 1)
    assert [config.init_from, config.data] == absolute and set(states(result).values()) == {"finished"}


def test_a_run_goes_on_where_its_settings_file_says(fake: Any) -> None:
    """The bug: a run of a file with `device` went on with --device=auto."""
    Path("mine.toml").write_text('base = "final"\n[settings]\ndevice = "cpu"\n')
    fake(mine_s0="die once", final_s0="stop once")
    conduct(OUT, request("mine.toml", "final"))
    logs = {name: (OUT / f"logs/{name}-s0.log").read_text() for name in ("mine", "final")}
    assert "--resume s/runs/mine-s0 --device=cpu" in logs["mine"]
    assert "--resume s/runs/final-s0 --device=auto" in logs["final"]


def test_a_grid_has_a_trial_for_each_combination(fake: Any) -> None:
    argv = "study final --lr 0.05,1e-1,0.10 --weight-decay 1e-4,5e-4 --nesterov --epochs 3 --seeds 1".split()
    assert cli.main(argv) == 0
    out = Path("runs/study-final-lr-weight_decay")
    names = [f"final-lr={lr}-weight_decay={wd}" for lr in ("0.05", "0.1") for wd in ("0.0001", "0.0005")]
    assert trained() == whole(*(f"{name}-s0" for name in names))
    found = {name: Study.open(out).config(name, 0) for name in names}
    assert [(c.lr, c.weight_decay, c.nesterov, c.preset) for c in found.values()] == [
        (0.05, 1e-4, True, "final"),
        (0.05, 5e-4, True, "final"),
        (0.1, 1e-4, True, "final"),
        (0.1, 5e-4, True, "final"),
    ]
    assert cli.main(argv) == 0 and set(trained().values()) == {1}, "the same command trains nothing again"


def test_a_grid_grows_by_values_trials_and_seeds() -> None:
    write_mine()
    OUT.mkdir()
    plan(OUT, Request(("final",), seeds=(0,), settings=(("lr", "0.05,0.1"),)))[0].write()
    more, wanted = plan(OUT, Request(("final", "mine.toml"), settings=(("lr", "0.2"), ("epochs", "300"))))
    assert wanted == {"final-lr=0.2-s0", "mine-lr=0.2-s0"} and len(more.trials) == 4, "one value more, and not for all"
    assert (more.config("mine-lr=0.2", 0).preset, more.config("final-lr=0.1", 0).lr) == ("mine", 0.1)
    _, wanted = plan(OUT, Request(("final-lr=0.1",), seeds=(0, 1, 2)))
    assert wanted == {f"final-lr=0.1-s{seed}" for seed in range(3)}, "more seeds for one of its trials"
    with pytest.raises(UsageError, match=r"fial-lr=0.1: there is no such trial; did you mean final-lr=0.1\?"):
        plan(OUT, Request(("fial-lr=0.1",)))


def test_all_that_is_wrong_with_own_trials_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    write_mine(lr=-1)
    write_mine(file="final.toml")
    argv = "study mine.toml final.toml none.toml final --config x.toml --lr 0.1,fast --label-smoothing 0,2".split()
    assert cli.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    for line, part in zip(
        lines,
        [
            "--config: a study takes the names of settings files, without --config",
            "mine.toml: lr = -1: expected a number above 0",
            "final.toml: a preset is called final, and this file is another trial: rename it",
            "none.toml: there is no such file",
            "--lr fast: expected a number above 0",
            "--label-smoothing 2: expected",
        ],
        strict=True,
    ):
        assert part in line
    assert cli.main("study --lr 0.1,0.2".split()) == 2
    assert "such as: fastcifar study final --lr 0.1,0.2" in capsys.readouterr().err
    Path("sub").mkdir()
    write_mine()
    write_mine(0.3, "sub/mine.toml")
    assert cli.main("study mine.toml sub/mine.toml".split()) == 2
    assert "both are called mine: rename one" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_conflict_in_one_point_of_a_grid_is_found() -> None:
    with pytest.raises(UsageError, match=r"^command line: lr_warmup_epochs = 20 must be at most epochs = 5$"):
        plan(OUT, Request(("final",), settings=(("epochs", "5,30"), ("lr-warmup-epochs", "20"))))


@pytest.mark.parametrize(
    ("request_", "folder"),
    [
        (Request(), "study"),
        (Request(("final", "cosine"), quick=True), "study-quick"),
        (Request(("final",), settings=(("lr", "1,2"), ("epochs", "3"))), "study-final-lr"),
        (Request(("a/my own.toml", "final"), quick=True), "study-quick-my-own-final"),
        (Request(("final",), settings=(("mean", "0.5,0.5,0.5"), ("data", "a,b.npz"))), "study"),
    ],
)
def test_each_study_of_ones_own_has_its_folder(request_: Request, folder: str) -> None:
    assert default_folder(request_) == Path("runs") / folder


def test_a_study_of_format_1_goes_on(fake: Any) -> None:
    OUT.mkdir()
    trials = {"final": {"seeds": [0], "epochs": 3, "dataset_digest": ""}}
    old = {"format": 1, "quick": False, "epochs_scale": 1.0, "settings": {"epochs": "3"}, "failures": {}}
    (OUT / "study.json").write_text(json.dumps(old | {"trials": trials}))
    conduct(OUT, Request(seeds=(0, 1)))
    assert trained() == whole("final-s0", "final-s1")


# ---- what becomes of the runs ----


def test_a_study_from_the_command_to_the_page(fake: Any, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "study final lr-0.05 --seeds 2 --out s --epochs 3 --jobs 2 --checkpoint-seconds 5".split()
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert out == (
        "trial    runs    val accuracy %  test accuracy %\n"
        "final    2 of 2  50.80 ± 0.71    51.80 ± 0.71\n"
        "lr-0.05  2 of 2  50.80 ± 0.71    51.80 ± 0.71\n"
        "\n"
        "study   s\n"
        "report  s/report/index.html\n"
    )
    first, *others = err.splitlines()
    assert first == "study s: 2 trials, 2 seeds; epochs = 3; checkpoint_seconds = 5" and "no trial" not in err
    assert [line[:4] for line in others[:4]] == ["1/4 ", "2/4 ", "3/4 ", "4/4 "]
    assert "val 50.30%  test 51.30%  in 1:01," in others[0] and others[3].endswith(" 0:00 left")
    names = ("final-s0", "lr-0.05-s0", "final-s1", "lr-0.05-s1")
    assert trained() == whole(*names)
    ((runs, planned),) = report.calls
    assert [run.name for run in runs] == list(planned) == list(names)
    assert {run.state for run in planned.values()} == {"finished"}
    folder = RunFolder.open(OUT / "runs" / "final-s1")
    assert (folder.config.preset, folder.config.seed, folder.config.checkpoint_seconds) == ("final", 1, 5.0)
    assert "fastcifar train --preset final --seed 1 --out s/runs/final-s1" in (OUT / "logs/final-s1.log").read_text()

    assert cli.main(["study", "--out", "s"]) == 0
    assert trained() == whole(*names), "nothing is trained twice"
    err = capsys.readouterr().err
    assert "4 of 4 runs finished before\nno trial is named: it goes on with its 2; name others to add them" in err


def test_seed_0_of_every_trial_is_trained_first(fake: Any) -> None:
    conduct(OUT, request("final", "constant", seeds=2))
    order = list(dict.fromkeys(line.split()[0] for line in Path("trained.txt").read_text().splitlines()))
    assert order == ["final-s0", "constant-s0", "final-s1", "constant-s1"]


def test_side_by_side_they_share_the_cores(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "usable_cores", lambda: 7.5)
    fake(final_s0="meet", constant_s0="meet", cosine_s0="meet")
    conduct(OUT, request("final", "constant", "cosine", seeds=2), jobs=3)
    seen = {path.stem: json.loads(path.read_text()) for path in Path().glob("seen-*.json")}
    assert len(seen) == 6
    for facts in seen.values():
        assert (facts["OMP_NUM_THREADS"], facts["OMP_WAIT_POLICY"], facts["FASTCIFAR_STUDY_JOBS"]) == (
            "2",
            "PASSIVE",
            "3",
        )
    at_once = [sum(f["times"][0] <= g["times"][0] < f["times"][1] for f in seen.values()) for g in seen.values()]
    assert max(at_once) == 3
    conduct(Path("alone"), request("final"))
    assert json.loads(Path("seen-final-s0.json").read_text())["OMP_NUM_THREADS"] is None


def test_gpus_are_dealt_out(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_num_gpus", lambda: 2)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.6)  # two runs end between two looks, and one run is waiting
    conduct(OUT, request("final", "constant", "cosine"))
    devices = Counter(json.loads(path.read_text())["device"] for path in Path().glob("seen-*.json"))
    assert devices in ({"cuda:0": 2, "cuda:1": 1}, {"cuda:0": 1, "cuda:1": 2})

    def places(jobs_: int | None, **asked: Any) -> list[str]:
        return jobs.Local(plan(Path("t"), Request(**asked))[0], 24, jobs_)._devices

    assert places(3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert places(2, settings=(("device", "cuda:1"),)) == ["", ""]
    assert places(None, quick=True) == [""] * min(4, int(jobs.usable_cores() or 1))
    monkeypatch.setattr(jobs, "_num_gpus", lambda: 1)
    assert places(None) == [""]


def test_what_fails_takes_nothing_else_down(
    fake: Any, report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fake(final_s0="diverge", cosine_s0="crash")
    argv = "study final cosine constant --seeds 1 --out s --epochs 3 --jobs 3".split()
    assert cli.main(argv) == 1
    out, err = capsys.readouterr()
    assert "constant  1 of 1" in out and "final     0 of 1  -" in out and "report  s/report/index.html" in out
    first, *lines = [line for line in err.splitlines() if line.startswith("fastcifar: ")]
    assert first == "fastcifar: 2 of 3 runs failed; the same command tries them again:"
    reason = "the training loss is not finite after epoch 2; lower --lr"
    assert lines[0] == f"fastcifar:   final-s0: {reason} (s/logs/final-s0.log)"
    assert "cosine-s0: unexpected KeyError: 'lr'; this is a fault of fastcifar" in lines[1]
    ((runs, planned),) = report.calls
    assert [run.name for run in runs] == ["constant-s0", "final-s0", "cosine-s0"], "the finished ones first"
    assert (planned["final-s0"].state, planned["final-s0"].epochs_done, planned["final-s0"].reason) == (
        "failed",
        1,
        reason,
    )
    assert Study.open(OUT).planned()[0].reason == reason, "and it is known later"

    fake()
    assert conduct(OUT, request("constant")).failed == [], "what is not asked for now is no failure of now"
    assert cli.main(argv) == 0
    assert trained() == whole("final-s0", "cosine-s0", "constant-s0"), "they go on where they stood"
    assert Study.open(OUT).failures == {}


def test_the_reason_of_a_failure_is_its_record_and_not_its_log(fake: Any) -> None:
    """The bug: the reason was taken from the last lines of the log with `fastcifar: `, which notes have too."""
    fake(final_s0="note and die silently", constant_s0="refuse", cosine_s0="diverge")
    result = conduct(OUT, request("final", "constant", "cosine"))
    reasons = {run.trial: run.reason for run in result.failed}
    assert reasons["final"] == "exit code 9: it left no record of the reason, but its log may tell"
    assert reasons["constant"] == "device = 'cuda': there is no GPU; give --device cpu", "before there is a run folder"
    assert not (OUT / "runs/constant-s0").exists()
    assert reasons["cosine"] == "the training loss is not finite after epoch 2; lower --lr"
    fake()
    assert conduct(OUT, request("final", "constant", "cosine")).failed == []
    assert list((OUT / "logs").glob("*.failure.json")) == []


def test_a_record_in_the_run_folder_is_enough(fake: Any) -> None:
    """The reasons are not lost with study.json."""
    fake(final_s0="diverge")
    conduct(OUT, request("final"))
    study_file = json.loads((OUT / "study.json").read_text()) | {"failures": {}}
    (OUT / "study.json").write_text(json.dumps(study_file))
    assert Study.open(OUT).planned()[0].state == "cut"
    failure.write(OUT / "runs/final-s0" / failure.FAILURE, NonFiniteError("the training loss is not finite"))
    (planned,) = Study.open(OUT).planned()
    assert (planned.state, planned.reason) == ("failed", "the training loss is not finite")


def test_a_page_of_somebody_else_is_refused_before_training(fake: Any) -> None:
    (OUT / "report").mkdir(parents=True)
    (OUT / "report" / "index.html").write_text("mine")
    with pytest.raises(UsageError, match="not a page of fastcifar's"):
        conduct(OUT, request("final"))
    assert trained() == Counter() and (OUT / "report" / "index.html").read_text() == "mine"


def test_a_page_that_cannot_be_written_costs_no_run(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: Any, **others: Any) -> Path:
        raise UsageError("s/report holds files that fastcifar did not write")

    monkeypatch.setattr("fastcifar.report.writing.write_report", refuses)
    with pytest.raises(UsageError, match="did not write\nThe runs .* intact: fastcifar report s --out DIR"):
        conduct(OUT, request("final"))
    assert trained() == whole("final-s0")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": 1}', "[]", "{", '{"format": 1, "trials": 3}'])
def test_a_damaged_study_is_named(content: str) -> None:
    OUT.mkdir()
    (OUT / "study.json").write_text(content)
    with pytest.raises(CheckpointError, match="study.json is damaged"):
        Study.open(OUT)


def test_metrics_that_are_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert study_folder.last_record(tmp_path) is None


def test_a_run_without_validation_images_has_its_line(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake(final_s0="no validation")
    assert cli.main("study final --seeds 1 --out s --epochs 3".split()) == 0
    out, err = capsys.readouterr()
    assert "final  1 of 1  -               51.30" in out and "final-s0  test 51.30%  in 1:01" in err


def test_without_any_result_there_is_no_page(fake: Any, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    fake(final_s0="diverge")
    assert cli.main("study final --seeds 1 --out s --epochs 3".split()) == 1
    assert report.calls == [] and "report" not in capsys.readouterr().out


def test_a_run_that_was_stopped_beside_the_study_goes_on(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch system may send its signal to every process of a job, and exit code 75 is no failure."""
    fake(final_s0="stop once")
    assert states(conduct(OUT, request("final"))) == {"final-s0": "finished"}
    assert "final-s0: stopped by SIGUSR1; it goes on from its last checkpoint" in capsys.readouterr().err


def test_a_killed_run_goes_on_once(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake(final_s0="die once")
    assert states(conduct(OUT, request("final", "constant"))) == {"final-s0": "finished", "constant-s0": "finished"}
    assert trained() == whole("final-s0", "constant-s0")
    assert "final-s0: killed by SIGKILL; it goes on from its last checkpoint" in capsys.readouterr().err
    fake(cosine_s0="die")
    result = conduct(OUT, request("cosine"))
    assert result.runs[2].reason == "killed by SIGKILL, twice"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)], ids=["TERM", "USR1"])
def test_a_stopped_study_goes_on(fake: Any, report: Report, number: signal.Signals, code: int) -> None:
    fake(final_s0="hold")
    stopper = when(
        lambda: trained()["final-s0 1"] and trained()["constant-s0 3"],
        lambda: os.kill(os.getpid(), number),
    )
    with pytest.raises(InterruptedRunError) as caught:
        conduct(OUT, request("final", "constant", seeds=2), jobs=2)
    stopper.join()
    assert caught.value.exit_code == code and signal.getsignal(number) == signal.SIG_DFL
    assert str(caught.value).startswith(f"stopped by {number.name}: ")
    assert str(caught.value).endswith("go on with: fastcifar study --out s")
    saved = next(run for run in Study.open(OUT).planned() if run.name == "final-s0")
    assert (saved.state, saved.epochs_done, report.calls) == ("cut", 1, [])
    assert "stopped by SIGTERM: saved at epoch 1" in (OUT / "logs/final-s0.log").read_text()
    fake()
    conduct(OUT, Request())
    assert trained() == whole("final-s0", "final-s1", "constant-s0", "constant-s1")


@pytest.fixture
def other_study(fake: Any) -> Iterator[subprocess.Popen[str]]:
    """A study in another process. Its run final-s0 waits in its second epoch, and constant-s0 has not started."""
    fake(final_s0="hold")
    script = f"""
        import sys
        from types import SimpleNamespace
        from fastcifar.cli import main as cli
        from fastcifar.data import sources
        from fastcifar.studies import jobs
        sources.load = lambda data, mirror="": SimpleNamespace(digest={DIGEST!r})
        jobs.PROGRAM = (sys.executable, {str(TESTS / "fake_run.py")!r})
        sys.exit(cli.main("study final constant --seeds 1 --epochs 3 --out s".split()))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        when(lambda: trained()["final-s0 1"], lambda: None).join()
        yield process
        process.kill()


def test_ctrl_c_reaches_each_run_once(other_study: subprocess.Popen[str]) -> None:
    os.killpg(other_study.pid, signal.SIGINT)  # as a terminal sends it, to all processes in the foreground
    _, err = other_study.communicate(timeout=60)
    assert other_study.returncode == 130
    assert "SIGINT: the runs save their state and end" in err.splitlines()
    assert err.splitlines()[-1].endswith(
        "stopped by SIGINT: 0 of 2 runs are finished, the others saved; go on with: fastcifar study --out s"
    )
    assert "stopped by SIGTERM: saved at epoch 1" in (OUT / "logs/final-s0.log").read_text()
    Path("go").touch()
    conduct(OUT, Request())
    assert trained() == whole("final-s0", "constant-s0")


@pytest.mark.parametrize("orphan_ends", ["finished", "killed"])
def test_a_killed_study_leaves_its_runs_to_the_next(
    other_study: subprocess.Popen[str], orphan_ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other_study.kill()
    other_study.wait()
    orphan = pid_of("final-s0")
    os.kill(orphan, 0)  # it lives

    def end() -> None:
        if orphan_ends == "killed":
            os.kill(orphan, signal.SIGKILL)
        Path("go").touch()

    ender = when(lambda: trained()["constant-s0 3"], end)
    result = conduct(OUT, request("final", "constant"), jobs=2)
    ender.join()
    assert states(result) == {"final-s0": "finished", "constant-s0": "finished"}
    assert trained() == whole("final-s0", "constant-s0")
    assert "final-s0: another process is training it already" in capsys.readouterr().err
    by = json.loads(Path("seen-final-s0.json").read_text())["FASTCIFAR_STUDY_JOBS"]
    assert by == (None if orphan_ends == "finished" else "2"), "whose run it was"


def test_one_study_at_a_time_in_a_folder(fake: Any) -> None:
    with study._locked(OUT), pytest.raises(UsageError, match=rf"s is in use: .*\(process {os.getpid()} on "):
        conduct(OUT, request("final"))
    assert trained() == Counter()


def test_a_half_made_run_folder_is_made_anew_and_no_other(fake: Any) -> None:
    plan(OUT, request("final"))
    half, strange = OUT / "runs" / "final-s0", OUT / "runs" / "constant-s0"
    for folder in (half, strange):
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text("{")
    (half / "metrics.csv.new").touch()
    (strange / "notes.txt").touch()
    result = conduct(OUT, request("final", "constant"))
    assert states(result) == {"final-s0": "finished", "constant-s0": "failed"}
    assert "holds no run and is not empty" in result.runs[1].reason and (strange / "notes.txt").exists()


def test_a_run_that_is_not_the_studys_is_refused(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conduct(OUT, request("final"))
    (OUT / "study.json").unlink()
    with pytest.raises(UsageError, match=r"s/runs/final-s0 is not the run .*: epochs = 4 asked, 3 there. Move it away"):
        conduct(OUT, Request(("final",), seeds=(0,), settings=(("epochs", "4"),)))
    conduct(OUT, request("final"))
    monkeypatch.setattr(sources, "load", lambda data, mirror="": SimpleNamespace(digest="e" * 64))
    with pytest.raises(DataError, match="s was begun with other images: their digest is dddddddddddd, .* eeeeeeeeeeee"):
        conduct(OUT, request("final", seeds=2))
    assert trained() == whole("final-s0")


def test_a_damaged_run_fails_alone(fake: Any) -> None:
    fake(final_s0="diverge")
    conduct(OUT, request("final"))
    (OUT / "runs/final-s0/environment.json").write_text("{")
    fake()
    result = conduct(OUT, request("final", "constant"))
    assert states(result) == {"final-s0": "failed", "constant-s0": "finished"}
    assert "environment.json is damaged" in result.failed[0].reason


def test_images_that_cannot_be_had_leave_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError):
        conduct(OUT, Request(settings=(("data", "nowhere/images"),)))
    assert not OUT.exists()


@pytest.mark.slow
def test_real_runs_side_by_side_one_of_them_killed(tmp_path: Path, report: Report) -> None:
    """The result equals, bit for bit, the result of a run that was never killed."""
    data = write_tiny(tmp_path / "tiny.npz")
    small = dict(data=str(data), val_size=24, width_mult=0.125, batch_size=16, epochs=4, device="cpu", precision="fp32")
    settings = tuple((key, str(value)) for key, value in (small | {"engine": "eager", "checkpoint_seconds": 0}).items())
    asked = Request(("wd-5e-4",), seeds=(0, 1), settings=settings)
    killer = when(
        lambda: (OUT / "runs/wd-5e-4-s0/checkpoint.json").exists(),
        lambda: os.kill(pid_of("wd-5e-4-s0"), signal.SIGKILL),
    )
    result = conduct(OUT, asked, jobs=2)
    killer.join()
    assert states(result) == {"wd-5e-4-s0": "finished", "wd-5e-4-s1": "finished"}
    log = (OUT / "logs/wd-5e-4-s0.log").read_text()
    assert "--preset wd-5e-4 --seed 0" in log and "--resume s/runs/wd-5e-4-s0" in log
    untouched = Path("untouched")
    config = result.study.config("wd-5e-4", 0)
    import torch

    from fastcifar import trainer

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # as each of the two runs had: the last bits depend on it
    try:
        trainer.train(config, untouched, [])
    finally:
        torch.set_num_threads(threads)
    keys = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    there, here = (RunFolder.open(path).records for path in (OUT / "runs/wd-5e-4-s0", untouched))
    assert [[r[k] for k in keys] for r in there] == [[r[k] for k in keys] for r in here]


# ---- what a person sees ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress_of(*seconds: float, file: io.StringIO) -> tuple[Progress, list[PlannedRun], Callable[[float], None]]:
    planned = Study(OUT, trials={"final": Trial("final", {}, (0, 1), 10)})
    runs, now = planned.planned(), [0.0]

    def at(second: float) -> None:
        now[0] = second

    return Progress(planned, runs, file, lambda: now[0]), runs, at


def record(run: PlannedRun, epoch: int, val: float | None) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"epoch": epoch, "val_accuracy": val})
    (run.path / "metrics.jsonl").write_text(f'{line}\n{{"epoch": 99, "val')  # half a line is being written


def test_elsewhere_a_line_a_minute() -> None:
    file = io.StringIO()
    progress, runs, at = progress_of(file=file)
    with progress:
        for second in (10, 30, 59):
            at(second)
            record(runs[0], 1, None)
            progress.update(runs[:1])
        record(runs[0], 5, 0.25)
        at(60)
        progress.update(runs[:1])
        at(61)
        progress.update(runs[:1])
        progress.ended(runs[0], "failed: it rained")
    assert file.getvalue().splitlines() == [
        "study s: 1 trial, 2 seeds",
        "0/2 runs, 5/20 epochs, 3:00 left; now final-s0 5/10 val 25.00%",
        "final-s0 failed: it rained",
    ]
    assert progress._seconds_left() == pytest.approx(61 * 10 / 5), "what failed is not waited for"


def test_what_a_search_gave_up_before_is_not_waited_for() -> None:
    """The bug: a run given up by an earlier command kept all of its epochs in the total."""
    runs = [PlannedRun("final", 0, OUT, 10, "pruned", 3, "given up"), PlannedRun("final", 1, OUT, 10)]
    assert Progress(Study(OUT), runs, io.StringIO())._totals() == "0/2 runs, 3/13 epochs"


def test_on_a_terminal_one_live_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    file = Terminal()
    progress, runs, at = progress_of(file=file)
    with progress:
        at(60)
        record(runs[0], 5, 0.25)
        progress.update(runs[:1])
        progress._live.refresh()  # type: ignore[union-attr]
    shown = file.getvalue()
    assert "0/2 runs, 5/20 epochs" in shown and "3:00 left" in shown and "final-s0 5/10 val 25.00%" in shown


def test_the_study_imports_no_torch() -> None:
    script = "import sys, fastcifar.studies.conduct, fastcifar.studies.compare; print('torch' in sys.modules)"
    done = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=TESTS.parent)
    assert done == "False\n"
