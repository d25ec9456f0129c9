"""The search: what may be searched, what Optuna is told, trials that are given up, and a search that is killed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import DIGEST
from tiny import tiny_config, write_tiny

from fastcifar.cli import main as cli
from fastcifar.data import sources
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.report.assembly import build_document
from fastcifar.report.search import Searched, SearchTrial, search_blocks
from fastcifar.run.folder import RunFolder
from fastcifar.studies import conduct as study
from fastcifar.studies import jobs
from fastcifar.studies.conduct import conduct
from fastcifar.studies.folder import Study
from fastcifar.studies.plan import Request, plan
from fastcifar.studies.search import Search
from fastcifar.studies.space import Choice, Range, parse, space_of

TESTS = Path(__file__).resolve().parent
OUT = Path("s")
SPACE = "lr=log:0.01..1,mixup-alpha=0..0.5,batch_size=64|128"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "_num_gpus", lambda: 0)
    monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, str(TESTS / "fake_run.py")))
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sources, "load", lambda data, mirror="": SimpleNamespace(digest=DIGEST))


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna")


def asked(num_trials: int | None = 3, search: str = SPACE, epochs: int = 3, **others: Any) -> Request:
    others = {"trials": ("final",), "settings": (("epochs", str(epochs)),)} | others
    return Request(search=search, num_trials=num_trials, **others)


def trained() -> Counter[str]:
    file = Path("trained.txt")
    return Counter(file.read_text().splitlines() if file.exists() else [])


def tried(optuna: Any) -> list[Any]:
    return list(optuna.load_study(study_name="fastcifar", storage="sqlite:///s/optuna.db").trials)


# ---- what may be searched ----


def test_ranges_and_choices_are_read() -> None:
    space = space_of("lr=log:1e-2..1, weight-decay=0..5e-4,batch_size=32..64,flip=none|random,nesterov=true|false")
    assert parse(space) == {
        "lr": Range(0.01, 1.0, True, False),
        "weight_decay": Range(0.0, 5e-4, False, False),
        "batch_size": Range(32, 64, False, True),
        "flip": Choice(("none", "random")),
        "nesterov": Choice(("true", "false")),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr", "expected SETTING=VALUES"),
        ("learning_rate=0..1", "there is no such setting; did you mean lr?"),
        ("lr=0.1", "expected LOW..HIGH"),
        ("lr=a..b", "expected LOW..HIGH"),
        ("lr=1..0.1", "the first number must be below"),
        ("lr=log:0..1", "begins above 0"),
        ("lr=0..1", "lr = 0.0: expected a number above 0"),
        ("flip=0..1", "flip is no number"),
        ("flip=none|sideways", "flip = sideways: expected one of"),
        ("batch_size=1.5..3", "expected LOW..HIGH"),
        ("epochs=1..9", "epochs is the same for all trials"),
        ("val_size=1|2", "val_size is the same for all trials"),
        ("engine=eager|fused", "engine is the same for all trials"),
        ("lr=0.1..1,lr=1..2", "lr is there twice"),
    ],
)
def test_what_cannot_be_searched(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        space_of(text)
    assert problem in str(caught.value) and str(caught.value).startswith("--search ")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("study --search lr=0.1..1", "a search starts from one trial"),
        ("study final cosine --search lr=0.1..1", "a search starts from one trial"),
        ("study final --trials 3", "give --search, too"),
        ("study final --search lr=0.1..1 --lr 0.1", "--lr 0.1: not together with --search"),
        ("study final --search lr=0.1..1 --weight-decay 0,1e-4", "not together with several values of weight_decay"),
        ("study final --search lr=0.1..1 --seeds 2", "a search trains each trial with one seed"),
        ("study final --search lr=0.1..1 --test", "its test images are never looked at"),
        ("study final --search lr=0.1..1 --val-size 0", "a search needs validation images"),
        ("study final --search lr=fast", "--search lr=fast: expected LOW..HIGH"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(argv: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv.split()) == 2
    assert problem in capsys.readouterr().err and not Path("runs").exists()


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["study", "final", "--search", "lr=0.1..1", "--out", "s"]) == 2
    assert "pip install 'fastcifar[search]'" in capsys.readouterr().err and not OUT.exists()


# ---- what is searched ----


def test_a_search_from_the_command_to_the_page(
    optuna: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_ALL", "by lr")
    argv = ["study", "final", "--search", SPACE, "--trials", "4", "--epochs", "2", "--seeds", "1", "--jobs", "2"]
    assert cli.main(argv) == 0
    out = Path("runs/search-final")
    found = Study.open(out)
    assert list(found.trials) == [f"final-t{number}" for number in range(4)]
    for name, trial in found.trials.items():
        config = RunFolder.open(out / f"runs/{name}-s0").config
        assert config.lr == float(trial.settings["lr"]) and 0.01 <= config.lr <= 1, "what was chosen is trained"
        assert config.mixup_alpha <= 0.5 and config.batch_size in (64, 128) and not config.test
        assert RunFolder.open(out / f"runs/{name}-s0").summary()["test_accuracy"] is None  # type: ignore[index]
    values = [
        trial.value for trial in optuna.load_study(study_name="fastcifar", storage=f"sqlite:///{out}/optuna.db").trials
    ]
    assert values == [pytest.approx(1 - min(abs(float(t.settings["lr"]) - 0.1), 0.9)) for t in found.trials.values()]
    page = (out / "report/report.md").read_text()
    assert "## The search" in page and "History" in page and "Importance" in page and "test images were never" in page
    assert "fastcifar study final --epochs 2 --lr " in page and "What the models get wrong" not in page
    assert {"history.svg", "importance.svg"} <= {file.name for file in (out / "report/figures").iterdir()}

    assert cli.main(["study", "--out", str(out), "--trials", "5"]) == 0, "one trial more"
    assert sorted(trained().values()) == [1] * 10 and "final-t4-s0 2" in trained()
    with pytest.raises(UsageError, match="holds another search, final with lr=log:0.01..1"):
        plan(out, asked(search="lr=0.1..1"))
    capsys.readouterr()
    assert (
        cli.main(["report", str(out), "--out", "again"]) == 0 and "## The search" in Path("again/report.md").read_text()
    )


@pytest.mark.slow
def test_a_hopeless_trial_is_given_up(optuna: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's pruner decides; the run saves its state, and is not trained on by the same command."""
    monkeypatch.setenv("FAKE_ALL", "by lr slow")
    request = asked(9, "lr=0.05..1", epochs=6)
    result = conduct(OUT, request)
    states = Counter(run.state for run in result.runs)
    assert states["pruned"] >= 1 and states["finished"] >= 5 and sum(states.values()) == 9
    assert result.failed == []
    given_up = [run for run in result.runs if run.state == "pruned"]
    assert all(2 <= run.epochs_done < 6 and "given up" in run.reason for run in given_up), "not in the first third"
    assert Counter(trial.state.name for trial in tried(optuna)) == {
        "COMPLETE": states["finished"],
        "PRUNED": states["pruned"],
    }
    before = trained()
    conduct(OUT, request)
    assert trained() == before
    page = (OUT / "report/report.md").read_text()
    assert f"gave up {states['pruned']} of 9 trials" in page and "incomplete" not in page


def test_a_diverged_trial_is_a_result_and_a_crash_is_tried_again(optuna: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DO", json.dumps({"final-t0-s0": "diverge", "final-t1-s0": "crash"}))
    result = conduct(OUT, asked())
    assert {run.name: run.state for run in result.runs} == {
        "final-t0-s0": "pruned",
        "final-t1-s0": "failed",
        "final-t2-s0": "finished",
    }
    assert "not finite after epoch 2" in result.runs[0].reason and [run.name for run in result.failed] == [
        "final-t1-s0"
    ]
    assert [trial.state.name for trial in tried(optuna)] == ["PRUNED", "RUNNING", "COMPLETE"]
    monkeypatch.setenv("FAKE_DO", "{}")
    assert conduct(OUT, Request(num_trials=3)).failed == []
    assert [trial.state.name for trial in tried(optuna)] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert set(trained().values()) == {1}


def test_settings_that_exclude_each_other_are_given_up(optuna: Any) -> None:
    """The bug: the run of such settings failed, and then no command could go on with the search."""
    request = asked(6, "mixup_alpha=0|0.2,cutmix_alpha=0|1", epochs=1)
    result = conduct(OUT, request)
    states = Counter(run.state for run in result.runs)
    assert states["pruned"] and states["finished"] and states.total() == 6 and result.failed == []
    reasons = {run.reason for run in result.runs if run.state == "pruned"}
    assert reasons == {"command line: mixup_alpha = 0.2 and cutmix_alpha = 1: one of them must be 0"}
    assert Counter(trial.state.name for trial in tried(optuna)) == {
        "COMPLETE": states["finished"],
        "PRUNED": states["pruned"],
    }
    assert cli.main(["study", "--out", "s", "--trials", "7"]) == 0
    assert "one of them must be 0" in (OUT / "report/search.csv").read_text()


def test_a_plan_bears_settings_that_exclude_each_other() -> None:
    """As the search has chosen them; what is asked for is still compared."""
    planned, _ = plan(OUT, asked(1, "mixup_alpha=0|0.2,cutmix_alpha=0|1"))
    planned.trials["final-t0"] = replace(
        planned.trials["final-t0"], settings={"mixup_alpha": "0.2", "cutmix_alpha": "1"}
    )
    OUT.mkdir()
    planned.write()
    assert plan(OUT, Request())[1] == {"final-t0-s0"}
    with pytest.raises(UsageError, match=r"lr = 0.2 asked, 0.05 there   \(final-t0\)"):
        plan(OUT, Request(settings=(("lr", "0.2"),)))


def test_further_seeds_of_a_trial_are_not_judged_by_the_search(optuna: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: Optuna was told of them as if they were the run of the first seed, and refused what it had been told."""
    conduct(OUT, asked(2))
    before = [(trial.state, trial.value, trial.intermediate_values) for trial in tried(optuna)]
    monkeypatch.setenv("FAKE_DO", json.dumps({"final-t1-s2": "crash"}))
    result = conduct(OUT, Request(("final-t0", "final-t1"), seeds=(0, 1, 2)))
    assert [run.name for run in result.failed] == ["final-t1-s2"] and len(result.runs) == 6
    assert [(trial.state, trial.value, trial.intermediate_values) for trial in tried(optuna)] == before
    assert [trial.state for trial in Search(Study.open(OUT)).told().trials] == ["finished", "finished"]


def test_a_killed_search_goes_on(optuna: Any) -> None:
    """Nothing that was tried is lost, and nothing is trained twice."""
    script = f"""
        import sys
        from types import SimpleNamespace
        from fastcifar.cli import main as cli
        from fastcifar.data import sources
        from fastcifar.studies import jobs
        sources.load = lambda data, mirror="": SimpleNamespace(digest={DIGEST!r})
        jobs.PROGRAM = (sys.executable, {str(TESTS / "fake_run.py")!r})
        sys.exit(cli.main("study final --search {SPACE} --trials 3 --epochs 3 --out s".split()))
    """
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": paths, "FAKE_DO": json.dumps({"final-t1-s0": "hold"})}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=variables) as process:
        end = time.monotonic() + 60
        while not trained()["final-t1-s0 1"] and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
    os.kill(int((OUT / "runs/final-t1-s0/.lock").read_text().split()[1]), signal.SIGKILL)
    before = [trial.params for trial in tried(optuna)]
    assert len(before) == 2
    conduct(OUT, asked(3))
    after = tried(optuna)
    assert [trial.params for trial in after[:2]] == before and [t.state.name for t in after] == ["COMPLETE"] * 3
    assert trained() == Counter(f"final-t{t}-s0 {epoch}" for t in range(3) for epoch in (1, 2, 3))
    for number, trial in enumerate(Study.open(OUT).trials.values()):
        assert float(trial.settings["lr"]) == after[number].params["lr"]
    assert len({trial.params["lr"] for trial in after}) == 3, "the sampler does not draw the same again"


def test_a_choice_that_was_not_recorded_is_taken_up_again(optuna: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is killed after Optuna's file has the trial, and before study.json has it."""
    from fastcifar.studies import search

    class Killed(BaseException):
        pass

    def killed(self: Study) -> None:
        raise Killed

    planned, _ = plan(OUT, asked(1))
    OUT.mkdir()
    planned.write()
    with monkeypatch.context() as patch:
        patch.setattr(Study, "write", killed)
        with pytest.raises(Killed):
            search.Search(planned).choose(planned.planned()[0])
    (params,) = [trial.params for trial in tried(optuna)]
    conduct(OUT, asked(1))
    assert Study.open(OUT).trials["final-t0"].settings["lr"] == repr(params["lr"]) and len(tried(optuna)) == 1


@pytest.mark.parametrize("content", ["not a database", None])
def test_a_lost_or_damaged_file_is_named(optuna: Any, content: str | None) -> None:
    conduct(OUT, asked(1, epochs=1))
    (OUT / "optuna.db").unlink()
    if content:
        (OUT / "optuna.db").write_text(content)
    with pytest.raises(CheckpointError, match="s/optuna.db (is missing|cannot be used)"):
        conduct(OUT, asked(2, epochs=1))


def test_folders_with_any_name(optuna: Any) -> None:
    conduct(Path("a ?b#c%20"), asked(1, epochs=1))
    assert (Path("a ?b#c%20") / "optuna.db").is_file()


def test_a_run_of_a_search_never_evaluates_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcifar import trainer

    monkeypatch.undo()
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "cache"))
    data = sources.load(str(write_tiny(tmp_path / "tiny.npz")))
    seen: list[int] = []
    evaluate = trainer.Session.evaluate

    def noted(self: Any, split: Any, *others: Any) -> Any:
        seen.append(len(split))
        return evaluate(self, split, *others)

    monkeypatch.setattr(trainer.Session, "evaluate", noted)
    run = trainer.train(tiny_config(tmp_path / "tiny.npz", epochs=2, test=False), tmp_path / "run", [], progress=False)
    assert len(seen) == 2 and not (run / "predictions.npz").exists() and len(data.test) not in seen
    summary = RunFolder.open(run).summary()
    assert summary is not None and summary["test_accuracy"] is None and summary["val_accuracy"] is not None
    document = build_document([run])
    assert not (run / "predictions.npz").exists(), "nor does a page of it"
    assert document.title


def test_the_chapter_without_a_finished_trial() -> None:
    tried = SearchTrial("a-t0", "pruned", None, 0, {"lr": 0.5})
    blocks = search_blocks(Searched("a", {}, {"lr": "0..1"}, [tried], {}, "Optuna"))
    assert "gave up 1 of 1 trials" in str(blocks) and "To confirm it" not in str(blocks)


def test_the_command_that_confirms_makes_the_same_runs(optuna: Any) -> None:
    """The bug: it left out `quick` and --epochs-scale, and named no file."""
    Path("my own.toml").write_text('base = "final"\n')
    request = asked(1, "lr=0.1|0.2", trials=("my own.toml",), quick=True, epochs_scale=0.5, settings=())
    study = conduct(OUT, request).study
    page = (OUT / "report/report.md").read_text()
    options = f"--epochs-scale 0.5 --lr {study.trials['my-own-t0'].settings['lr']} --seeds 5 --out runs/my-own-t0"
    assert f"To confirm it: `fastcifar study quick s/settings/my-own.toml {options}`" in page
