"""A search: Optuna chooses the settings of each trial, and says which trials are to be given up.

Its sampler and its pruner see validation accuracies and nothing else. Optuna's study is an SQLite file in the folder of
the study, `optuna.db`; one process, that of the study, writes to it. A trial has the same number there as in its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastcifar.errors import CheckpointError, UsageError
from fastcifar.report.search import Searched, SearchTrial
from fastcifar.run.planned import PlannedRun
from fastcifar.spelling import format_value
from fastcifar.studies.folder import OPTUNA, Study, absolute, last_record, records_from_the_end
from fastcifar.studies.space import Range, parse

_NAME = "fastcifar"
"""Of the one study in the file."""


def import_optuna() -> Any:
    """Imports Optuna, which is an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"a search needs a package that is not installed, {error.name}: pip install 'fastcifar[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """The search of a study. What Optuna has tried so far is taken up again.

    Args:
        study: has a search; its trials get their settings from `choose`.

    Raises:
        UsageError: Optuna is not installed.
        CheckpointError: the file of Optuna's study is damaged, or is not that of this study.
    """

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        self._optuna, self._study, self._plan = import_optuna(), study, study.search
        self._space = parse(study.search.space)
        self._numbers = {name: number for number, name in enumerate(study.search.names)}
        self._last_epochs: dict[str, int] = {}
        epochs = max(study.trials[name].epochs for name in self._numbers)
        chosen = sum(bool(study.trials[name].settings) for name in self._numbers)
        file = study.path / OPTUNA
        if chosen and not file.is_file():
            raise CheckpointError(
                f"{file} is missing: it holds what the search has tried. Restore it from a copy, or begin another "
                "search with --out"
            )
        try:
            self._storage = self._optuna.storages.RDBStorage(_url(str(file.absolute())))
            self._tried = self._optuna.create_study(
                storage=self._storage,
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                # A curve of a high learning rate starts low: the first third says little.
                pruner=self._optuna.pruners.MedianPruner(n_warmup_steps=epochs // 3),
            )
            num_tried = len(self._tried.trials)
            # A seed for each start of the program: the same seed again would draw the same settings again.
            self._tried.sampler = self._optuna.samplers.TPESampler(seed=num_tried)
        except Exception as problem:  # of SQLAlchemy, sqlite3 or Optuna
            raise CheckpointError(
                f"{file} cannot be used: {_first_line(problem)}. It holds what the search has tried; the runs beside "
                "it are intact"
            ) from problem
        if chosen > num_tried:
            raise CheckpointError(
                f"{file} knows {num_tried} trials, and {study.path} has {chosen}: it is not the file of this search. "
                "Restore it from a copy, or begin another search with --out"
            )

    def catch_up(self) -> None:
        """Tells Optuna of the runs that ended while nobody looked."""
        for run in self._study.planned():
            if run.is_over and self._study.trials[run.trial].settings:
                self.tell(run)

    def choose(self, run: PlannedRun) -> str:
        """Gives the trial of `run` its settings, unless it has them, and records them in the study.

        Returns:
            In one line why nothing can be trained with them: each setting may be as it is, but not with another one.
            Empty where it can.

        Raises:
            CheckpointError: Optuna's study has trials that this study does not have.
        """
        if run.trial not in self._numbers:
            return ""
        if not self._study.trials[run.trial].settings:
            self._choose(run)
        try:
            self._study.config(run.trial, run.seed)
        except UsageError as problem:
            return "; ".join(str(problem).splitlines())
        return ""

    def _choose(self, run: PlannedRun) -> None:
        number = self._numbers[run.trial]
        if number < len(self._tried.trials):  # the program was killed before it had recorded them
            params = self._tried.trials[number].params
        else:
            trial = self._tried.ask({name: self._distribution(name) for name in self._space})
            if trial.number != number:
                raise CheckpointError(
                    f"{self._study.path / OPTUNA} is not the file of this search: {run.trial} is number {trial.number}"
                )
            params = trial.params
        settings = {name: value if isinstance(value, str) else format_value(value) for name, value in params.items()}
        self._study.trials[run.trial] = replace(self._study.trials[run.trial], settings=absolute(settings))
        self._study.write()

    def is_hopeless(self, run: PlannedRun) -> bool:
        """Whether Optuna's pruner gives up `run`; reports its new epochs first."""
        epoch = int((last_record(run.path) or {}).get("epoch", 0))
        if not self._is_tried(run) or epoch == self._last_epochs.get(run.name, 0):
            return False
        self._last_epochs[run.name] = epoch
        trial = self._trial(self._numbers[run.trial])
        self._report(run, trial)
        return bool(trial.should_prune())

    def tell(self, run: PlannedRun) -> None:
        """Tells Optuna how `run` ended: finished with its validation accuracy, or given up."""
        if not self._is_tried(run):
            return
        states, number = self._optuna.trial.TrialState, self._numbers[run.trial]
        if self._tried.trials[number].state != states.RUNNING:
            return
        self._report(run, self._trial(number))
        value = _values(run).get(run.epochs)
        if run.state == "finished" and value is not None:
            self._tried.tell(number, value)
        else:
            self._tried.tell(number, state=states.PRUNED)

    def told(self) -> Searched:
        """What the search has come to, for the page."""
        runs = {run.trial: run for run in self._study.planned() if self._is_tried(run)}
        trials = []
        for name, number in self._numbers.items():
            if number >= len(self._tried.trials):
                break
            tried = self._tried.trials[number]
            told = tried.value if tried.value is not None else tried.intermediate_values.get(tried.last_step)
            run = runs[name]
            trials.append(SearchTrial(name, run.state, told, run.epochs_done, dict(tried.params), run.reason))
        parts = (type(self._tried.sampler).__name__, type(self._tried.pruner).__name__)
        by = f"Optuna {self._optuna.__version__} ({', '.join(parts)})"
        study, plan = self._study, self._plan
        start, settings = str(study.files.get(plan.start, plan.start)), dict(study.settings)
        space, importances = dict(plan.space), self._importances()
        return Searched(start, settings, space, trials, importances, by, study.quick, study.epochs_scale)

    def _is_tried(self, run: PlannedRun) -> bool:
        """Whether `run` is the one that Optuna knows of its trial: further seeds are there to confirm the trial."""
        return run.trial in self._numbers and run.seed == self._study.trials[run.trial].seeds[0]

    def _importances(self) -> Mapping[str, float]:
        """By setting; empty where there are too few trials to say."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return dict(self._optuna.importance.get_param_importances(self._tried))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}

    def _report(self, run: PlannedRun, trial: Any) -> None:
        """Reports the epochs that Optuna does not know yet."""
        known = self._tried.trials[trial.number].intermediate_values
        for epoch, value in _values(run).items():
            if epoch not in known:
                trial.report(value, epoch)

    def _trial(self, number: int) -> Any:
        study_id = self._storage.get_study_id_from_name(_NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self._optuna.trial.Trial(self._tried, trial_id)

    def _distribution(self, name: str) -> Any:
        values, kinds = self._space[name], self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution(values.values)
        if values.is_integer:
            return kinds.IntDistribution(int(values.low), int(values.high), log=values.is_log)
        return kinds.FloatDistribution(values.low, values.high, log=values.is_log)


def _values(run: PlannedRun) -> dict[int, float]:
    """The validation accuracy of each epoch of `run` that has one, the first epoch first."""
    records = {int(record["epoch"]): record.get("val_accuracy") for record in records_from_the_end(run.path)}
    return {epoch: float(value) for epoch, value in sorted(records.items()) if isinstance(value, (int, float))}


def _url(path: str) -> str:
    from sqlalchemy import URL

    return str(URL.create("sqlite", database=path).render_as_string())


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
