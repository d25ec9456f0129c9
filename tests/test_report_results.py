"""From run folders to numbers: which runs count, what they are compared with, and why other runs do not count."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import make_run

from fastcifar.errors import CheckpointError, NonFiniteError, UsageError
from fastcifar.report import course
from fastcifar.report.classes import Classes
from fastcifar.report.figures import mixup_ceiling
from fastcifar.report.predictions import (
    Predictions,
    confused_pairs,
    read_predictions,
    superclass_accuracy,
    taken_for,
)
from fastcifar.report.results import Trial, effect, published_span, read_results, verdict
from fastcifar.run import failure
from fastcifar.run.planned import PlannedRun
from fastcifar.stats import Sample
from fastcifar.studies.finding import find_runs
from fastcifar.studies.folder import Study
from fastcifar.studies.folder import Trial as StudyTrial


def only(path: Path, **summary: Any) -> Trial:
    (trial,) = read_results([make_run(path, "lr-0.05", summary=summary)]).trials
    return trial


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.4370, "below"), (0.4371, "inside"), (0.4720, "inside"), (0.4721, "above")],
)
def test_a_verdict_is_where_our_mean_lies_in_the_published_range(value: float, expected: str, tmp_path: Path) -> None:
    """The report says 43.71 %, the reproductions 44.0 to 47.2 %: the published range includes both."""
    trial = only(tmp_path / "run", val_accuracy=value)
    assert published_span(trial, "val_accuracy") == (0.4371, 0.472)
    assert verdict(trial, "val_accuracy") == expected


def test_the_mean_is_judged_and_not_a_single_run(tmp_path: Path) -> None:
    values = [0.40, 0.46, 0.50]
    runs = [
        make_run(tmp_path / str(seed), "lr-0.05", seed, summary={"val_accuracy": value})
        for seed, value in enumerate(values)
    ]
    (trial,) = read_results(runs).trials
    sample = trial.sample("val_accuracy")
    assert sample is not None and (sample.n, sample.mean) == (3, pytest.approx(0.4533333))
    assert verdict(trial, "val_accuracy") == "inside"
    assert verdict(trial, "test_accuracy") == "nothing published"


def test_intervals_keep_to_what_can_be(tmp_path: Path) -> None:
    def trial(name: str, values: Sequence[float]) -> Trial:
        return read_results(
            [
                make_run(tmp_path / f"{name}{seed}", name, seed, summary={"val_accuracy": value, "val_loss": value})
                for seed, value in enumerate(values)
            ]
        ).trials[0]

    high, low = trial("lr-0.05", (0.90, 0.99, 0.999)), trial("lr-0.5", (0.0, 0.1, 0.9))
    accuracy, loss = high.sample("val_accuracy"), low.sample("val_loss")
    assert accuracy is not None and accuracy.interval is not None and accuracy.interval[1] == 1
    assert loss is not None and loss.interval is not None and loss.interval[0] == 0 and loss.interval[1] > 1
    found = effect(low, high, "val_accuracy")
    assert isinstance(found, Sample) and found.interval is not None and found.interval[1] == 1


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"epochs": 3}, ("epochs = 3",)),
        ({"lr": 0.06, "width_mult": 0.5}, ("width_mult = 0.5", "lr = 0.06")),
        ({"digest": "0" * 64}, ()),
        ({"preset": "mine"}, None),
    ],
    ids=["shortened", "changed", "other images", "no preset"],
)
def test_what_does_not_compare_gets_no_verdict(settings: dict[str, Any], changes: Any, tmp_path: Path) -> None:
    (trial,) = read_results([make_run(tmp_path / "run", "lr-0.05", **settings)]).trials
    assert verdict(trial, "val_accuracy") == "no verdict"
    if changes is not None:
        assert trial.changes == changes


def test_how_a_run_was_computed_sets_no_trial_apart(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", "lr-0.05", 0)
    how: dict[str, Any] = {"engine": "eager", "precision": "fp32", "eval_batch_size": 77, "loader_workers": 3}
    second = make_run(tmp_path / "b", "lr-0.05", 1, data="there", **how)
    (trial,) = read_results([first, second]).trials
    assert trial.n == 2 and trial.is_comparable


def test_shortened_runs_are_another_trial_and_the_reports_own_comes_first(tmp_path: Path) -> None:
    short = [make_run(tmp_path / f"short-{seed}", "lr-0.05", seed, epochs=2) for seed in range(3)]
    results = read_results([*short, make_run(tmp_path / "whole", "lr-0.05")])
    assert [(trial.label, trial.n) for trial in results.trials] == [("lr-0.05", 1), ("lr-0.05 (epochs = 2)", 3)]
    standing = results.trial("lr-0.05")
    assert standing is not None and standing.is_comparable


def test_one_seed_twice_counts_once(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", "lr-0.05", 0)
    results = read_results([first, make_run(tmp_path / "b", "lr-0.05", 0, engine="eager"), first])
    assert [trial.n for trial in results.trials] == [1]
    (absence,) = results.absences
    assert absence.state == "left out" and "two runs of one seed are not two samples" in absence.reason


def test_what_is_not_finished_is_told_and_not_counted(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", "lr-0.05")
    cut = make_run(tmp_path / "cut", "lr-0.5", epochs_done=7)
    diverged = make_run(tmp_path / "diverged", "lr-0.01", epochs_done=4)
    lines = (diverged / "metrics.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"train_loss": float("nan")})
    (diverged / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    broken = make_run(tmp_path / "broken", "cosine", epochs_done=1)
    (broken / "environment.json").write_text("{")
    planned = [
        PlannedRun("lr-0.05", 0, whole, 15, "finished", 15),
        PlannedRun("lr-0.01", 0, diverged, 15, "failed", 4, "exit code 5"),
        PlannedRun("final", 2, tmp_path / "runs/final-s2", 300),
    ]
    results = read_results([whole, cut, diverged, broken], planned)
    assert [trial.label for trial in results.trials] == ["lr-0.05"]
    told = {absence.name: (absence.state, absence.reason) for absence in results.absences}
    assert told["lr-0.5, seed 0"] == ("unfinished", "7 of 15 epochs done")
    assert told["lr-0.01, seed 0"] == ("failed", "the training loss is not finite in epoch 4; exit code 5")
    assert told["broken"][0] == "unreadable" and "environment.json is damaged" in told["broken"][1]
    assert told["final, seed 2"] == ("missing", "not begun")
    with pytest.raises(UsageError, match="no finished run to report on\n.*7 of 15 epochs done"):
        read_results([cut])


def test_the_record_of_a_failure_says_why(tmp_path: Path) -> None:
    """Also if all recorded losses are finite and the run belongs to no study."""
    whole, cut = make_run(tmp_path / "whole", "lr-0.05"), make_run(tmp_path / "cut", "lr-0.5", epochs_done=7)
    failure.write(cut / failure.FAILURE, NonFiniteError("the validation loss is not finite\nraise --std"))
    results = read_results([whole, cut])
    (absence,) = results.absences
    assert (absence.state, absence.trial) == ("failed", "lr-0.5") and results.failures("lr-0.5") == [absence]
    assert absence.reason == "7 of 15 epochs done; the validation loss is not finite; raise --std"


def test_what_reading_dropped_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "lr-0.05")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 16, "val')
    results = read_results([run])
    assert len(results.notes) == 1 and "metrics.jsonl" in results.notes[0]


def test_a_run_without_validation_images_has_no_validation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "lr-0.05", val_size=0, summary={"val_accuracy": None, "val_loss": None})
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"val_loss": None, "val_accuracy": None} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (trial,) = read_results([run]).trials
    assert trial.changes == ("val_size = 0",) and trial.sample("val_accuracy") is None
    assert trial.curve("val_loss") == [] and len(trial.curve("train_loss")) == 15
    assert verdict(trial, "val_accuracy") == "not measured" and effect(trial, trial, "val_accuracy") == "not measured"


def test_effects_are_paired_over_seeds(tmp_path: Path) -> None:
    """The seeds differ by 10 points, the trials by one: only pairs show it."""

    def trial(preset: str, values: dict[int, float], **settings: Any) -> Trial:
        paths = [
            make_run(
                tmp_path / f"{preset}-{seed}{len(settings)}", preset, seed, summary={"val_accuracy": v}, **settings
            )
            for seed, v in values.items()
        ]
        return read_results(paths).trials[0]

    before = trial("lr-0.05", {0: 0.40, 1: 0.50, 2: 0.60})
    after = trial("lr-0.5", {0: 0.409, 1: 0.51, 2: 0.611, 3: 0.9})
    found = effect(before, after, "val_accuracy")
    assert isinstance(found, Sample)
    assert found.values == pytest.approx((0.009, 0.010, 0.011))
    assert found.interval is not None and found.interval[0] > 0
    assert effect(before, None, "val_accuracy") == "a run of one of them is missing"
    assert effect(None, None, "val_accuracy") == "no run of either"
    assert effect(before, trial("lr-0.01", {7: 0.4}), "val_accuracy") == "no seed in common"
    short = trial("lr-0.5", {0: 0.4}, epochs=2)
    assert effect(before, short, "val_accuracy") == "the runs differ in more: epochs = 2"
    other = trial("lr-0.5", {0: 0.4}, digest="0" * 64, flip="none")
    assert effect(before, other, "val_accuracy") == "trained on different images"


def test_speed_is_that_of_the_whole_training(tmp_path: Path) -> None:
    run = only(tmp_path / "run").runs[0]
    assert run.images_per_second == pytest.approx(2000)
    slow = [dict(record) for record in run.records]
    slow[-1] |= {"images_per_second": 1000.0, "train_seconds": slow[-2]["train_seconds"] + 2}
    object.__setattr__(run, "records", slow)
    assert run.images_per_second == pytest.approx((14 * 2000 + 2000) / 16)


def test_curves_are_means_over_the_epochs_that_every_seed_has(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / str(seed), "lr-0.05", seed) for seed in (0, 10)]
    lines = (paths[1] / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"val_accuracy": None})
    (paths[1] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    points = read_results(paths).trials[0].curve("val_accuracy")
    assert [epoch for epoch, *_ in points] == list(range(2, 16))
    assert points[-1][1:] == pytest.approx((0.455, 0.45, 0.46))


def test_a_study_folder_names_its_runs_and_what_is_missing(tmp_path: Path) -> None:
    study = Study(tmp_path, trials={"lr-0.05": StudyTrial("lr-0.05", {}, (0, 1), 15, "digest")})
    study.write()
    whole = make_run(tmp_path / "runs/lr-0.05-s0", "lr-0.05")
    runs, planned = find_runs([tmp_path])
    assert runs == [whole] and [plan.state for plan in planned] == ["finished", "missing"]
    assert find_runs([tmp_path / "runs"]) == ([whole], [])
    assert find_runs([whole]) == ([whole], [])
    assert find_runs([whole, tmp_path / "runs", tmp_path])[0] == [whole], "none twice"
    with pytest.raises(UsageError, match="nearest run"):
        find_runs([tmp_path / "runs/lr-0.05-s9"])


def test_runs_are_found_under_a_folder_of_folders(tmp_path: Path) -> None:
    """As in docs/study/runs and in the runs that `train` makes without --out."""
    deep = [make_run(tmp_path / "runs" / name / "20261125-0900-s0", name, epochs=1) for name in ("final", "quick")]
    assert find_runs([tmp_path / "runs"])[0] == deep and find_runs([tmp_path])[0] == deep
    shallow = make_run(tmp_path / "runs" / "mine", "final", epochs=1)
    assert find_runs([tmp_path / "runs"])[0] == [shallow], "those that lie least deep"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run in .*empty"):
        find_runs([tmp_path / "empty"])


def test_trials_of_the_report_are_presets_with_its_settings() -> None:
    """The settings in the report's tables equal the settings of the presets."""
    from fastcifar.presets import TRIALS, load_preset

    tables = (course.LR_SETTINGS, course.SCHEDULE_SETTINGS, course.DECAY_SETTINGS, course.MIXUP_SETTINGS)
    assert [name for table in tables for name in table.rows] == list(TRIALS)
    for table in tables:
        for name, stated in table.rows.items():
            config = load_preset(name)
            assert {key: getattr(config, key) for key in stated} == stated


def test_the_ceiling_of_training_accuracy_under_mixup() -> None:
    """E[max(lambda, 1 - lambda)], compared with the protocol's numbers and with a million draws."""
    assert [round(100 * mixup_ceiling(alpha), 1) for alpha in (0.2, 0.5, 1.0)] == [89.9, 81.8, 75.0]
    drawn = np.random.default_rng(0).beta(0.2, 0.2, 1_000_000)
    assert mixup_ceiling(0.2) == pytest.approx(np.maximum(drawn, 1 - drawn).mean(), abs=1e-3)


# ---- predictions ----


NONE = np.zeros(0, int)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": [-25_536, 1]}, "a class number is below 0"),
        ({"labels": [0, 1, 1]}, "predicted has the shape (2,), labels has (3,)"),
        ({"labels": [[0, 1]]}, "labels has the shape (1, 2)"),
        ({"labels": NONE, "predicted": NONE, "confidence": np.zeros(0)}, "they are of no image"),
        ({"predicted": [0.5, 1.0]}, "predicted is of another type"),
        ({"confidence": [0.5, float("nan")]}, "they hold a probability that is not between 0 and 1"),
        ({"confidence": None}, "it has no confidence"),
    ],
)
def test_damaged_predictions_are_named(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "lr-0.05", summary={"test_accuracy": 0.5})
    arrays: dict[str, Any] = {"labels": [0, 1], "predicted": [0, 0], "confidence": [0.5, 0.9]}
    np.savez(run / "predictions.npz", **{k: np.array(v) for k, v in (arrays | change).items() if v is not None})
    (trial,) = read_results([run]).trials
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        read_predictions(trial.runs[0], None)


def test_class_names_are_those_of_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "lr-0.05", digest="1" * 64, summary={"test_accuracy": 0.5})
    arrays = {"labels": np.array([0, 1]), "predicted": np.array([0, 0]), "confidence": np.array([0.5, 0.9])}
    np.savez(run / "predictions.npz", class_names=np.array(["aardvark", "zebra"]), **arrays)
    (trial,) = read_results([run]).trials
    found = read_predictions(trial.runs[0], None)
    assert Classes.of(trial, None, [found]).names == ("aardvark", "zebra")
    more = Predictions(np.array([0, 70_000]), np.array([0, 0]), np.array([0.5, 0.9]), found.class_names)
    names = Classes.of(trial, None, [more]).names
    assert names[:2] == ("class 0", "class 1") and len(names) == 70_001, "70,001 classes, and two names"


LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
PREDICTED = np.array([0, 0, 1, 2, 1, 0, 2, 3, 3, 2])
CONFIDENCE = np.array([0.9, 0.9, 0.6, 0.5, 0.9, 0.6, 1.0, 0.6, 1.0, 0.6])
SOME = Predictions(LABELS, PREDICTED, CONFIDENCE)


def test_calibration_by_hand() -> None:
    """Bins of width 1/15: 0.5 is in the 8th, 0.6 in the 9th, 0.9 in the 14th, 1.0 in the last."""
    found = SOME.reliability()
    assert found.count.nonzero()[0].tolist() == [7, 8, 13, 14]
    assert found.count[[7, 8, 13, 14]].tolist() == [1, 4, 3, 2]
    assert found.accuracy[[7, 8, 13, 14]] == pytest.approx([0, 0, 1, 1])
    assert found.expected_calibration_error == pytest.approx((0.5 + 4 * 0.6 + 3 * 0.1 + 0) / 10)


def test_classes_pairs_and_superclasses_by_hand() -> None:
    assert SOME.class_accuracy(5) == pytest.approx([0.5, 0.5, 0.5, 0.5, np.nan], nan_ok=True)
    confusion = SOME.confusion(4)
    assert confusion.tolist() == [[2, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    pairs = [(pair.first, pair.second, pair.share) for pair in confused_pairs(confusion, 9)]
    assert pairs == [(2, 3, pytest.approx(2 / 4)), (0, 1, pytest.approx(2 / 6)), (0, 2, pytest.approx(1 / 6))]
    exact, above = superclass_accuracy(SOME, (0, 0, 1, 1), 2)
    assert exact == pytest.approx([0.5, 0.5]) and above == pytest.approx([5 / 6, 1])


def test_pictures_show_what_most_runs_get_wrong() -> None:
    labels = np.zeros(4, int)
    runs = [
        Predictions(labels, np.array([1, 1, 0, 1]), np.array([0.5, 0.9, 0.9, 0.9])),
        Predictions(labels, np.array([1, 0, 0, 2]), np.array([0.5, 0.9, 0.9, 0.9])),
    ]
    assert taken_for(runs, 0, 1, 5) == [0, 1, 3]
    assert taken_for(runs, 0, 1, 1) == [0]
