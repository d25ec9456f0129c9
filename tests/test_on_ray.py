"""A study on a local Ray with two workers: its runs, a worker that is lost, and a study that is stopped."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import DIGEST
from waiting import when

from fastcifar.cli import main as cli
from fastcifar.data import sources
from fastcifar.errors import InterruptedRunError
from fastcifar.run.folder import RunFolder
from fastcifar.studies import conduct as study
from fastcifar.studies import jobs
from fastcifar.studies.conduct import Result, conduct
from fastcifar.studies.plan import Request

TESTS = Path(__file__).resolve().parent
OUT = Path("s")
FAKE = (sys.executable, str(TESTS / "fake_run.py"))


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray on this machine, with places for two runs; its workers start tests/fake_run.py in place of training."""
    ray = pytest.importorskip("ray")

    def stand_in() -> None:
        from fastcifar.studies import jobs

        jobs.PROGRAM = FAKE

    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        before = signal.getsignal(signal.SIGTERM)
        hook = {"worker_process_setup_hook": stand_in}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", runtime_env=hook)
        signal.signal(signal.SIGTERM, before)
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(jobs, "PROGRAM", FAKE)
    monkeypatch.setattr(sources, "load", lambda data, mirror="": SimpleNamespace(digest=DIGEST))
    monkeypatch.setattr("fastcifar.report.writing.write_report", lambda runs, out, **others: out / "index.html")


def request(*trials: str, seeds: int = 2) -> Request:
    return Request(trials, seeds=tuple(range(seeds)), settings=(("epochs", "3"), ("device", "cpu")))


def trained() -> Counter[str]:
    file = Path("trained.txt")
    return Counter(file.read_text().splitlines() if file.exists() else [])


def whole(*names: str) -> Counter[str]:
    return Counter(f"{name} {epoch}" for name in names for epoch in (1, 2, 3))


ALL = whole("final-s0", "cosine-s0", "final-s1", "cosine-s1")


def starts(run: str) -> list[str]:
    """The command lines with which the processes of a run were started."""
    return [line for line in (OUT / f"logs/{run}.log").read_text().splitlines() if line.startswith("--- ")]


def pids(run: str) -> tuple[int, int]:
    """The process that trains a run, and the worker of Ray that started it."""
    pid = int((OUT / f"runs/{run}/.lock").read_text().split()[1])
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return pid, int(next(line.split()[1] for line in status if line.startswith("PPid:")))


@pytest.mark.slow
def test_the_runs_of_a_study_train_on_ray(ray: Any, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "study final cosine --seeds 2 --epochs 3 --device cpu --out s --ray auto".split()
    assert cli.main(argv) == 0
    assert trained() == ALL and "cosine  2 of 2" in capsys.readouterr().out
    seen = {path.stem: json.loads(path.read_text()) for path in Path().glob("seen-*.json")}
    assert {facts["OMP_NUM_THREADS"] for facts in seen.values()} == {"1"}, "its share of the node"
    assert {facts["FASTCIFAR_STUDY_JOBS"] for facts in seen.values()} == {"2"}
    assert cli.main(argv) == 0 and trained() == ALL, "nothing is trained twice"


@pytest.mark.slow
@pytest.mark.parametrize("survives", [False, True], ids=["the node is lost", "the process survives its worker"])
def test_a_lost_worker_loses_no_epoch_and_repeats_none(ray: Any, survives: bool) -> None:
    Path("fake-do.json").write_text(json.dumps({"final-s0": "hold"}))

    def lose() -> None:
        process, worker = pids("final-s0")
        os.kill(worker, signal.SIGKILL)
        if not survives:
            os.kill(process, signal.SIGKILL)
        when(lambda: trained()["cosine-s1 3"], Path("go").touch, seconds=90)

    loser = when(lambda: trained()["final-s0 1"], lose, seconds=90)
    result = conduct(OUT, request("final", "cosine"), ray="auto")
    loser.join()
    assert {run.state for run in result.runs} == {"finished"} and result.failed == []
    assert trained() == ALL
    found = starts("final-s0")
    assert len(found) == (1 if survives else 2) and "--seed 0" in found[0]
    assert survives or "--resume" in found[1]
    records = RunFolder.open(OUT / "runs/final-s0").records
    assert [record["epoch"] for record in records] == [1, 2, 3]


@pytest.mark.slow
def test_a_study_on_ray_that_is_stopped_goes_on_without_ray(ray: Any) -> None:
    Path("fake-do.json").write_text(json.dumps({"final-s0": "hold"}))
    stopper = when(
        lambda: trained()["final-s0 1"] and trained()["cosine-s0 3"],
        lambda: os.kill(os.getpid(), signal.SIGTERM),
        seconds=90,
    )
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
        conduct(OUT, request("final", "cosine"), ray="auto")
    stopper.join()
    assert "stopped by SIGTERM: saved at epoch 1" in (OUT / "logs/final-s0.log").read_text()
    Path("fake-do.json").unlink()
    result = conduct(OUT, request("final", "cosine"))
    assert {run.state for run in result.runs} == {"finished"} and trained() == ALL


@pytest.mark.slow
def test_what_fails_on_ray_says_why(ray: Any) -> None:
    Path("fake-do.json").write_text(json.dumps({"final-s0": "diverge", "final-s1": "die once"}))
    result: Result = conduct(OUT, request("final"), ray="auto")
    assert {run.name: run.state for run in result.runs} == {"final-s0": "failed", "final-s1": "finished"}
    assert result.failed[0].reason == "the training loss is not finite after epoch 2; lower --lr"
    assert trained()["final-s1 2"] == 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main("study final --ray auto --out s".split()) == 2
    assert "pip install 'fastcifar[ray]'" in capsys.readouterr().err and not OUT.exists()
