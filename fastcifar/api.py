"""The Python interface: settings, runs and studies as objects, all of them in `import fastcifar as fc`.

The errors of the command line are exceptions here, with the same text: subclasses of `fastcifar.errors.FastcifarError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastcifar.config import RESUMABLE, Config
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.layers import from_dict, parse_overrides, resolve
from fastcifar.paths import given
from fastcifar.presets import load_preset
from fastcifar.run import threads
from fastcifar.run.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fastcifar.model import MobileNet

StrPath = str | os.PathLike[str]


def preset(name: str, /, **settings: object) -> Config:
    """The settings of a preset or of your own file, with some of them replaced.

    Args:
        name: a preset (`fastcifar presets` lists them), or the path of a TOML file whose name ends in `.toml`.
        **settings: new values of settings by name, such as `lr=0.1, seed=3`; `help(fc.Config)` lists the settings.

    Returns:
        The settings, checked. They cannot be changed.

    Raises:
        UsageError: no preset has that name, or a setting is unknown or out of its bounds; the message names the
            nearest one.
    """
    if not isinstance(name, str):
        raise UsageError(f"preset {name!r}: expected a name, or the path of a .toml file as text")
    base = resolve(None, _path(name), []) if name.lower().endswith(".toml") else load_preset(name)
    plain = {key: _plain(value) for key, value in settings.items()}
    return from_dict({**base.model_dump(exclude_unset=True), **plain}, f"preset {name!r}")


def train(config: Config, out: StrPath | None = None, *, progress: bool = True) -> Run:
    """Trains one model, and returns its run.

    In the main thread, SIGINT (Ctrl-C, a notebook's stop button), SIGTERM and SIGHUP stop the run after its state is
    saved; `fc.load(folder).resume()` goes on with it. In another thread no signal handler is set.

    Args:
        config: the settings, from `preset`.
        out: the run folder, new or empty; None makes runs/PRESET/TIME-sSEED.
        progress: whether a progress line, or in a notebook a progress bar, is shown. Notes are always shown.

    Returns:
        The finished run.

    Raises:
        UsageError: a setting does not fit this machine or the images, or `out` is not empty.
        DataError: the images cannot be found, downloaded or read.
        NonFiniteError: the loss became infinite or not a number.
        DeviceMemoryError: the device's memory is too small.
        InterruptedRunError: a signal stopped the run after its state was saved.
    """
    if not isinstance(config, Config):
        raise UsageError(f"config = {config!r}: expected settings, such as fc.preset('final')")
    threads.limit(config.device)

    from fastcifar import trainer

    folder = None if out is None else _path(out)
    return load(trainer.train(config, folder, _as_command(config, folder), progress=progress))


def train_together(
    configs: Sequence[Config], outs: Sequence[StrPath] | None = None, *, progress: bool = True
) -> list[Run]:
    """Trains several models on one device at the same time, in this process, and returns their runs.

    The runs take their steps in turn and share one copy of the images; on CUDA each has a stream of its own. It is for
    a GPU that one small model does not fill. Each run is what `train` would have made of it, bit for bit on the CPU,
    except for the times, which are those of all runs together.

    Args:
        configs: the settings of each run; `data`, `mirror`, `device` and `deterministic` must be the same.
        outs: the run folder of each, new or empty; None makes runs/PRESET/TIME-sSEED for each.
        progress: as for `train`, of the first run.

    Returns:
        The finished runs, in the order of `configs`.

    Raises:
        UsageError: the settings do not fit each other, this machine or the images.
        DataError: the images cannot be found, downloaded or read.
        InterruptedRunError: a signal stopped the runs after their states were saved.
        FastcifarError: the error of the first run that failed; all others were trained to their end.
    """
    if not configs or not all(isinstance(config, Config) for config in configs):
        raise UsageError(f"configs = {configs!r}: expected one or more settings, such as [fc.preset('final')]")
    threads.limit(configs[0].device)

    from fastcifar.together import train_together as together

    folders = [None] * len(configs) if outs is None else [_path(out) for out in outs]
    if len(folders) != len(configs):
        raise UsageError(f"outs has {len(folders)} folders, and there are {len(configs)} runs; expected one for each")
    results = together(configs, folders, ["fastcifar.train_together"], progress=progress)
    for result in results:
        if isinstance(result, FastcifarError):
            raise result
    return [load(result) for result in results if isinstance(result, Path)]


def load(path: StrPath) -> Run:
    """Opens a run, finished or not. Nothing in its folder is changed.

    Args:
        path: the run folder.

    Returns:
        The run.

    Raises:
        UsageError: there is no run at `path`; the message names the nearest one.
        CheckpointError: the run's settings, environment or metrics are damaged.
    """
    return Run(RunFolder.open(_path(path).absolute()))


def evaluate(
    run: Run | StrPath,
    split: str = "test",
    *,
    device: str = "auto",
    data: str | None = None,
    weights: Literal["last", "best"] = "last",
) -> Evaluation:
    """Measures the accuracy of a run's saved model again.

    Args:
        run: a run, or the path of its folder.
        split: `test`, or `val`: the training images that the run held out.
        device: `auto` is the run's own device if this machine has it; otherwise `cpu`, `cuda` or `cuda:N`.
        data: where the run's images are now; None means where the run had them.
        weights: `last`, or `best`: those of the epoch with the best validation accuracy, with `keep_best`.

    Returns:
        The result, beside the accuracy that the run recorded.

    Raises:
        UsageError: the split or the device does not exist.
        CheckpointError: the checkpoint is damaged, or the images are not the run's.
        DataError: the images cannot be found, downloaded or read.
    """
    from fastcifar.evaluation import evaluate_run

    if split not in ("test", "val"):
        raise UsageError(f"split = {split!r}: expected 'test' or 'val'")
    parse_overrides([("device", str(device))], ["device"])
    path = run.path if isinstance(run, Run) else _path(run)
    return Evaluation(**evaluate_run(path, split, device, data, _weights(weights)))


def study(
    *trials: str,
    seeds: int | Sequence[int] | None = None,
    out: StrPath | None = None,
    quick: bool = False,
    epochs_scale: float | None = None,
    jobs: int | None = None,
    search: str = "",
    num_trials: int | None = None,
    ray: str = "",
    **settings: object,
) -> Study:
    """Trains several trials with several seeds, each run in a process of its own, and writes the report.

    The same call again goes on with an interrupted study. A call with more trials or seeds extends the study.

    Args:
        *trials: names of presets, or paths of settings files (`*.toml`); without any, the trials that the study has
            already, or in a new study the eight of the course report.
        seeds: a number of seeds, which are then 0, 1, 2, ..., or the seeds themselves; None means those that a trial
            has already, for a new trial those of the study's other trials, and three in a new study.
        out: the study's folder; None means the command line's: runs/study, or a name made of the trials.
        quick: trains small models on procedural images on the CPU: all eight trials take minutes.
        epochs_scale: multiplies the epochs of every run: with 0.1 each run has a tenth of its epochs.
        jobs: how many runs train at the same time; None means one for each GPU; on a CPU one or, with
            `quick`, one for each core, at most four.
        search: what Optuna may choose, such as `"lr=log:0.01..1,batch_size=64|128"`; then there is one trial, and the
            default is one seed.
        num_trials: how many trials a search has in all; None means 40.
        ray: the address of a Ray cluster whose nodes train the runs: `auto`, `local` or `HOST:PORT`.
        **settings: new values of settings for every run, such as `data="cifar-100-python.tar.gz"`. A list of values,
            such as `lr=[0.05, 0.1]`, makes a trial of each.

    Returns:
        The study, with its finished and failed runs.

    Raises:
        UsageError: a trial or setting is unknown, or the folder holds another study.
        DataError: the images cannot be found, downloaded or read.
        InterruptedRunError: a signal stopped the study after every run had saved its state.
    """
    from fastcifar.studies.conduct import conduct
    from fastcifar.studies.plan import Request, default_folder

    numbers = None if seeds is None else tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if numbers is not None and not (numbers and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in numbers)):
        raise UsageError(f"seeds = {seeds!r}: expected a number of seeds from 1, or seeds from 0 to {2**32 - 1}")
    for name, count in (("jobs", jobs), ("num_trials", num_trials)):
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise UsageError(f"{name} = {count!r}: expected a number from 1")
    if epochs_scale is not None and not 0 < epochs_scale < math.inf:
        raise UsageError(f"epochs_scale = {epochs_scale!r}: expected a number above 0")
    for trial in trials:
        if not isinstance(trial, str):
            raise UsageError(f"trial {trial!r}: expected a name, or the path of a .toml file as text")
    pairs = [(name, _as_text(value)) for name, value in settings.items()]
    request = Request(trials, quick, numbers, epochs_scale, pairs, (), search, num_trials)
    result = conduct(default_folder(request) if out is None else _path(out), request, jobs, ray)
    readable, damaged = result.read()
    failed = {run.name: run.reason for run in result.failed}
    return Study(result.study.path, result.page, [load(run.path) for run in readable.values()], failed | damaged)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        split: `test` or `val`.
        num_images: the number of images in the split.
        loss: the mean cross-entropy, in nats.
        accuracy: the share of images that are classified correctly, 0 to 1.
        recorded_accuracy: the accuracy that the run recorded; None if it was interrupted before it recorded one.
        epoch: the last whole epoch of the checkpoint.
        step: how many steps of the next epoch the checkpoint has.
        device: the device that the model was evaluated on.
    """

    split: str
    num_images: int
    loss: float
    accuracy: float
    recorded_accuracy: float | None
    epoch: int
    step: int
    device: str


@dataclass(frozen=True)
class Study:
    """The state of a study.

    Attributes:
        path: the study's folder.
        page: the report, an HTML file; None if no run has finished.
        runs: the finished runs.
        failed: the reason of each run that failed, or that finished and is damaged, by the name of the run.
    """

    path: Path
    page: Path | None
    runs: list[Run]
    failed: Mapping[str, str]


class Run:
    """A run: what its folder holds.

    Attributes:
        path: the run folder.
        config: the settings of the run, with every `auto` settled.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.path, self.config = folder.path, folder.config

    def __repr__(self) -> str:
        accuracy = self.summary.get("test_accuracy")
        state = "finished" if self.summary else "not finished"
        if accuracy is not None:
            state = f"test accuracy {accuracy:.2%}"
        return f"<Run {self.path}: {state}>"

    @property
    def summary(self) -> Mapping[str, Any]:
        """The content of summary.json: `test_accuracy` (0 to 1), `train_seconds`, ...; empty until the run ends.

        `test_accuracy` is None for a run with `test = false`.
        """
        return self._folder.summary() or {}

    @property
    def records(self) -> list[dict[str, Any]]:
        """A record for each epoch, as in metrics.csv: `epoch`, `lr`, `train_loss`, `val_accuracy`, ..."""
        return [dict(record) for record in self._folder.records]

    def model(self, weights: Literal["last", "best"] = "last") -> MobileNet:
        """The trained model, on the CPU, in evaluation mode.

        If the run kept a moving average of the weights, the model has the average.

        Args:
            weights: as for `evaluate`.

        Returns:
            A module: images as `normalize` returns them, float32 [N, 3, S, S] -> logits, float32 [N, num_classes].

        Raises:
            UsageError: `best` is asked for, and the run kept none.
            CheckpointError: there is no checkpoint, or it is damaged.
        """
        from fastcifar.checkpoint import load_model

        return load_model(self._folder, _weights(weights))

    def normalize(self, images: NDArray[np.uint8]) -> Tensor:
        """Prepares images for the run's model.

        Args:
            images: uint8 [N, S, S, 3], RGB, S the side of the run's images.

        Returns:
            float32 [N, 3, S, S]: the images scaled to 0..1, minus the run's `mean`, divided by its `std`.

        Raises:
            UsageError: the images have another dtype or shape.
        """
        import torch

        from fastcifar.augment import normalization_table, normalize

        side = self._folder.images.size if self._folder.images else 32
        if images.dtype != "uint8" or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise UsageError(f"images are {images.dtype} {list(images.shape)}: expected uint8 [N, {side}, {side}, 3]")

        table = normalization_table(self.config.mean, self.config.std)
        return normalize(torch.from_numpy(images), table, torch.float32)

    def predictions(self, data: str | None = None) -> dict[str, NDArray[Any]]:
        """The model's prediction for each test image.

        The predictions are read from predictions.npz. If a finished run has no such file, they are computed from its
        checkpoint and written there.

        Args:
            data: where the run's images are now; None means where the run had them.

        Returns:
            Arrays by name: `labels` and `predicted` (class numbers, [N]), `confidence` and `label_probability`
            (float32 [N]), and the others that `fastcifar.run.predictions` lists.

        Raises:
            UsageError: the run is not finished.
            CheckpointError: the checkpoint is damaged, or the images are not the run's.
            DataError: the images cannot be found, downloaded or read.
        """
        from fastcifar.evaluation import predictions

        return predictions(self.path, data)

    def resume(self, *, progress: bool = True, **overrides: object) -> Run:
        """Goes on with an interrupted run, as if it had never stopped.

        Args:
            progress: as for `train`.
            **overrides: new values of settings that do not change the result, such as `data` or `device`.

        Returns:
            The finished run.

        Raises:
            UsageError: the run is finished already, or a setting would change the result.
            CheckpointError: the checkpoint is damaged.
            FastcifarError: as for `train`.
        """
        words = [(name, _as_text(value)) for name, value in overrides.items()]
        checked = parse_overrides(words, RESUMABLE)
        threads.limit(str(checked.get("device", self.config.device)))

        from fastcifar import trainer

        command = ["fastcifar", "train", "--resume", str(self.path), *_as_options(checked)]
        return load(trainer.resume(self.path, checked, command, progress=progress))


def _weights(weights: Literal["last", "best"]) -> Literal["last", "best"]:
    if weights not in ("last", "best"):
        raise UsageError(f"weights = {weights!r}: expected 'last' or 'best'")
    return weights


def _path(path: StrPath) -> Path:
    """A path with `~` expanded, as the command line reads it."""
    try:
        return given(os.fspath(path))
    except TypeError:
        raise UsageError(f"{path!r}: expected a path") from None
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _plain(value: object) -> object:
    """A value as the settings take it: NumPy's numbers and arrays become Python's, and paths become text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else value


def _as_command(config: Config, out: Path | None) -> list[str]:
    """The command line that trains with the same settings, for the record."""
    words = ["fastcifar", "train"]
    try:
        base = load_preset(config.preset)
        words += ["--preset", config.preset]
    except UsageError:  # the settings are the user's own
        base = Config()
    own = config.model_fields_set - base.model_fields_set
    different = {name: x for name, x in config.model_dump().items() if name in own or x != getattr(base, name)}
    different.pop("preset", None)
    return [*words, *_as_options(different), *([] if out is None else ["--out", str(out)])]


def _as_options(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        yield "--" + name.replace("_", "-")
        yield _as_text(value)


def _as_text(value: object) -> str:
    """A setting's value as one writes it on the command line."""
    if getattr(value, "ndim", 0):  # an array of NumPy's
        value = _plain(value)
    if isinstance(value, (tuple, list)):
        return ",".join(map(_as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
