"""`--json`: what a script reads is one JSON value on stdout, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run
from tiny import tiny_config, write_tiny

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.presets import find_preset, list_presets
from fastcifar.run.planned import PlannedRun
from fastcifar.studies import conduct
from fastcifar.studies.folder import Study, Trial


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(*argv: object, code: int = 0) -> Any:
        assert cli.main([*map(str, argv), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return ask


def test_presets(asked: Any) -> None:
    assert [preset["name"] for preset in asked("presets")] == [preset.name for preset in list_presets()]
    final = asked("presets", "final")
    assert final["settings"] == find_preset("final").config.model_dump(mode="json") and final["about"]["command"]


def test_data_info(asked: Any, tmp_path: Path) -> None:
    found = asked("data", "info", write_tiny(tmp_path / "tiny.npz"))
    assert found["splits"]["train"]["count"] == 124 and found["image_size"] == 32 and not found["is_grey"]
    assert found["class_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert cli.main(["data", "get", "cifar100", "--json"]) == 2


def test_compare(asked: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{seed}", "lr-0.05", seed) for seed in (0, 1)]
    found = [run for column in asked("compare", *runs, "--each") for run in column["runs"]]
    assert [Path(run["run"]) for run in found] == runs
    assert found[1]["summary"]["test_accuracy"] == 0.401 and found[1]["settings"]["seed"] == 1


def test_doctor(asked: Any) -> None:
    found = asked("doctor")
    assert {"status", "name", "text", "advice", "fatal", "device"} == set(found[0])
    assert "python" in [finding["name"] for finding in found]


def test_train(asked: Any, tmp_path: Path) -> None:
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=1)
    names = ("data", "val_size", "width_mult", "batch_size", "epochs", "device", "engine")
    options = [word for name in names for word in (f"--{name.replace('_', '-')}", getattr(config, name))]
    done = asked("train", *options, "--out", tmp_path / "run")
    assert done["run"] == str(tmp_path / "run") and 0 <= done["test_accuracy"] <= 1


def test_study(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = PlannedRun("lr-0.05", 0, make_run(tmp_path / "r0", "lr-0.05"), 15, "finished", 15)
    failed = PlannedRun("lr-0.05", 1, tmp_path / "r1", 15, "failed", reason="out of memory")
    study = Study(tmp_path)
    monkeypatch.setattr(
        conduct, "conduct", lambda *asked: conduct.Result(study, [done, failed], [failed], tmp_path / "p")
    )
    found = asked("study", "lr-0.05", code=1)
    assert (found["study"], found["report"]) == (str(tmp_path), str(tmp_path / "p"))
    assert found["runs"][0]["summary"]["test_accuracy"] == 0.4 and found["runs"][1]["summary"] is None
    assert [(run["run"], run["state"], run["reason"]) for run in found["runs"]] == [
        (str(tmp_path / "r0"), "finished", ""),
        (str(tmp_path / "r1"), "failed", "out of memory"),
    ]


def test_a_damaged_run_of_a_study_takes_no_result_away(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bug: the command ended with an error and no result; so did `fastcifar.study`."""
    paths = [make_run(tmp_path / f"lr-0.05-s{seed}", "lr-0.05", seed) for seed in (0, 1)]
    (paths[0] / "summary.json").write_text("{")
    runs = [PlannedRun("lr-0.05", seed, path, 15, "finished", 15) for seed, path in enumerate(paths)]
    study = Study(tmp_path, trials={"lr-0.05": Trial("lr-0.05", {}, (0, 1), 15)})
    monkeypatch.setattr(conduct, "conduct", lambda *asked: conduct.Result(study, runs, [], None))
    found = asked("study", "lr-0.05", code=1)
    assert [run["state"] for run in found["runs"]] == ["unreadable", "finished"]
    assert "summary.json is damaged" in found["runs"][0]["reason"] and found["runs"][0]["summary"] is None
    assert cli.main(["study", "lr-0.05"]) == 1
    out, err = capsys.readouterr()
    assert "lr-0.05  1 of 2" in out and "1 of 2 runs cannot be read" in err and "  lr-0.05-s0: " in err
    done = fastcifar.study("lr-0.05")
    assert [run.path for run in done.runs] == paths[1:] and list(done.failed) == ["lr-0.05-s0"]


def test_report(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "r0", "lr-0.05")
    monkeypatch.setattr("fastcifar.report.writing.write_report", lambda runs, out, **given: out / "index.html")
    assert asked("report", "r0") == {"report": "report/index.html", "runs": ["r0"]}
