"""Every setting of a run, with its type, bounds and default; the presets; and how the two meet a user's wishes.

Settings come in layers: the defaults of `Config`, then a preset (configs/NAME.toml) after those it derives from, then a
user's own file, then the command line. Problems of all layers are reported together, a line each.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from fastcifar.errors import FastcifarError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMAND_LINE = "command line"
RESUMABLE = ("data", "mirror", "loader_workers", "images_on", "device", "checkpoint_seconds")
"""What a resumed run may change: where it computes and reads, never what it computes."""

_NO_NUL = r"\A[^\x00]+\z"  # also refuses lone surrogates, which no UTF-8 file can hold


def _setting(default: object, description: str, *, allowed: str = "", values: str = "", **bounds: Any) -> Any:
    """A field of `Config`. `allowed` says what bounds can't; `values` are the ones to suggest for a mistyped string."""
    return Field(default, description=description, json_schema_extra={"allowed": allowed, "values": values}, **bounds)


_Mean = Annotated[float, Field(ge=0, le=1)]
_Std = Annotated[float, Field(gt=0, le=1)]


class Config(BaseModel):
    """The resolved settings of one run. Immutable; the defaults are the trial `constant` of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    preset: str = _setting(
        "custom",
        "the preset that the settings derive from; names the folder under runs/",
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z",
        allowed="a name of letters, digits, dots, dashes and underscores, at most 64",
    )
    data: str = _setting(
        "cifar100",
        "the images to learn: a data set's name (procedural is generated, nothing to download), or the path of an "
        "archive, of a folder of pickles, binaries or images, or of an .npz",
        pattern=_NO_NUL,
        allowed="cifar100, cifar10, procedural or a path",
    )
    mirror: str = _setting(
        "",
        "URL to download from in place of the data set's official address",
        pattern=r"\A((https?|file)://[^\s\x00]+)?\z",
        allowed="a URL (http://, https:// or file://), or nothing",
    )
    val_size: int = _setting(10000, "training images held out for validation", ge=1)
    split_seed: int = _setting(0, "seed of the split into training and validation", ge=0, le=2**32 - 1)
    mean: tuple[_Mean, _Mean, _Mean] = _setting(
        (0.5071, 0.4865, 0.4409),
        "subtracted from the channels (images scaled to 0..1)",
        strict=False,
        allowed="three numbers from 0 to 1: red, green, blue",
    )
    std: tuple[_Std, _Std, _Std] = _setting(
        (0.2009, 0.1984, 0.2023),
        "divides the channels; the report's value is the mean of the images' own deviations, the data set's is "
        "0.2673,0.2564,0.2762",
        strict=False,
        allowed="three numbers above 0, at most 1: red, green, blue",
    )

    crop_padding: int = _setting(4, "zeros around an image before the random 32x32 crop; 0 = no crop", ge=0, le=16)
    flip: Literal["random", "alternating", "none"] = _setting(
        "random",
        "horizontal flip: of each image with probability 1/2, or of a random half in one epoch and the other half in "
        "the next",
    )
    mixup_alpha: float = _setting(0.0, "MixUp: one lambda ~ Beta(alpha, alpha) a batch; 0 = off", ge=0, le=100)

    width_mult: float = _setting(1.0, "scales the channels of every layer", ge=0.125, le=4)

    epochs: int = _setting(300, "passes over the training images", ge=1, le=100_000)
    batch_size: int = _setting(128, "images a step; the epoch's last batch may be smaller", ge=1, le=65_536)
    lr: float = _setting(0.05, "learning rate; the highest one where a schedule changes it", gt=0, le=100)
    momentum: float = _setting(0.9, "momentum of SGD", ge=0, lt=1)
    nesterov: bool = _setting(False, "Nesterov momentum")
    weight_decay: float = _setting(0.0, "coupled L2 on the weights", ge=0, le=1)
    decay_norm_and_bias: bool = _setting(True, "weight decay on batch norm and biases too")
    lr_schedule: Literal["constant", "cosine"] = _setting("constant", "cosine goes to 0 at the end, without restarts")
    lr_schedule_unit: Literal["epoch", "step"] = _setting("epoch", "how often the schedule moves the learning rate")
    lr_warmup_epochs: float = _setting(0.0, "linear rise of the learning rate at the start, in epochs", ge=0)
    label_smoothing: float = _setting(0.0, "share of the target spread over all classes", ge=0, lt=1)
    ema_decay: float = _setting(
        0.0, "evaluates an exponential moving average of the weights, with this decay a step; 0 = off", ge=0, lt=1
    )
    seed: int = _setting(0, "seed of the weights and of every draw in training", ge=0, le=2**32 - 1)

    loader: Literal["resident", "torchvision", "dali"] = _setting(
        "resident",
        "what makes the batches: the device, from images that live there; torchvision's transforms in worker "
        "processes; or NVIDIA DALI",
    )
    loader_workers: int = _setting(
        0, "worker processes of loader = torchvision, threads of dali; 0 = one for each CPU core", ge=0, le=1024
    )
    images_on: Literal["device", "host"] = _setting(
        "device", "where the resident loader keeps the images; host streams them, for a split larger than the device"
    )

    engine: Literal["auto", "eager", "compiled", "fused"] = _setting(
        "auto", "what executes a step: plain PyTorch, torch.compile, or the extension's fused ops"
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = _setting(
        "default", "the mode of torch.compile, for engine = compiled"
    )
    fuse_pointwise: bool = _setting(
        False, "for engine = fused on CUDA: the pointwise convolutions are part of the fused ops too (not measured yet)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        "auto", "number format of convolutions and matrix products; weights stay fp32"
    )
    memory_format: Literal["channels_last", "contiguous"] = _setting(
        "channels_last",
        "order of activations in memory: NHWC, which is faster nearly everywhere, or PyTorch's own NCHW",
    )
    device: str = _setting(
        "auto",
        "where to compute",
        pattern=r"\A(auto|cpu|cuda(:[0-9]{1,3})?)\z",
        allowed="auto, cpu, cuda or cuda:N",
        values="auto cpu cuda cuda:0",
    )
    deterministic: bool = _setting(False, "only deterministic kernels: the same bits again on the same machine")
    tuned: bool = _setting(
        True, "on the CPU: malloc settings and the faster forms of both convolutions; false = stock PyTorch"
    )

    eval_batch_size: int = _setting(1000, "images a batch in evaluation", ge=1, le=65_536)
    eval_every: int = _setting(1, "epochs from one validation to the next; the last epoch is always validated", ge=1)
    checkpoint_seconds: float = _setting(
        60.0, "least time between two checkpoints, in seconds; 0 = after every epoch", ge=0
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = [message for _, message in _conflicts(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


GROUPS = {
    "data": "data",
    "augmentation": "crop_padding",
    "model": "width_mult",
    "optimisation": "epochs",
    "loader": "loader",
    "engine": "engine",
    "evaluation and checkpoints": "eval_batch_size",
}
"""The groups of settings, each with its first one."""

_NAMES = tuple(Config.model_fields)

_HABITS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "mixup": "mixup_alpha",
    "ema": "ema_decay",
    "scheduler": "lr_schedule",
    "amp": "precision",
    "dtype": "precision",
    "workers": "loader_workers",
    "num_workers": "loader_workers",
    "dataloader": "loader",
}
"""Names used elsewhere, whose setting no string distance finds."""

_VALUE_HABITS = {"gpu": "cuda", "half": "fp16", "nhwc": "channels_last", "nchw": "contiguous"}
"""The same for values."""


def _conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The rules between settings that `config` breaks, each with the settings it concerns."""
    if config.nesterov and config.momentum == 0:
        yield ("nesterov", "momentum"), "nesterov = true needs momentum above 0"
    if config.lr_warmup_epochs > config.epochs:
        yield (
            ("lr_warmup_epochs", "epochs"),
            f"lr_warmup_epochs = {config.lr_warmup_epochs:g} must be at most epochs = {config.epochs}",
        )
    if config.images_on == "host" and config.loader != "resident":
        yield (
            ("images_on", "loader"),
            f"images_on = host is for loader = resident; loader = {config.loader} keeps its images on the host anyway",
        )
    if config.memory_format == "contiguous" and config.engine == "fused":
        yield (
            ("memory_format", "engine"),
            "engine = fused computes in memory_format = channels_last; contiguous is for eager and compiled",
        )
    if config.deterministic and config.engine != "eager" and config.compile_mode.startswith("max-autotune"):
        yield (
            ("deterministic", "compile_mode", "engine"),
            f"deterministic = true excludes compile_mode = {config.compile_mode}, which times kernels to choose one",
        )


# ---- settings in words ----


def groups() -> dict[str, list[str]]:
    """The names of the settings by group, in order; `preset`, which is chosen and not set, is in none."""
    result: dict[str, list[str]] = {}
    starts = {first: group for group, first in GROUPS.items()}
    for name in _NAMES[1:]:
        if name in starts:
            result[starts[name]] = members = []
        members.append(name)
    return result


def differing_settings(config: Config, other: Config) -> tuple[str, ...]:
    """The names of the settings that change a run's result and differ between the two.

    Free are the seed, where the images come from (data sets are told apart by their content), how they are loaded, what
    computes them, and when a run is evaluated and saved.
    """
    by_group = groups()
    free = {"data", "mirror", "seed", *by_group["loader"], *by_group["engine"], *by_group["evaluation and checkpoints"]}
    names = [name for group in by_group.values() for name in group if name not in free]
    return tuple(name for name in names if getattr(config, name) != getattr(other, name))


def allowed(name: str) -> str:
    """What the setting `name` may be: type and bounds, or choices."""
    info = Config.model_fields[name]
    extra = _extra(name)
    if extra["allowed"]:
        return extra["allowed"]
    if choices := _choices(name):
        return "one of " + ", ".join(choices)
    if info.annotation is bool:
        return "true or false"
    return ("an integer" if info.annotation is int else "a number") + _bounds(info)


def _bounds(info: FieldInfo) -> str:
    limits = {key: getattr(m, key) for m in info.metadata for key in ("gt", "ge", "lt", "le") if hasattr(m, key)}
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return " " + ", ".join(f"{word} {limits[key]}" for key, word in words.items() if key in limits)


def _extra(name: str) -> dict[str, str]:
    extra = Config.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return {key: str(value) for key, value in extra.items()}


def _choices(name: str) -> tuple[str, ...]:
    annotation = Config.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else tuple(_extra(name)["values"].split())


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that somebody who wrote `word` probably meant."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)), None)


def _did_you_mean(word: str | None) -> str:
    return f"; did you mean {word}?" if word else ""


def nearest_setting(key: str, others: Sequence[str] = ()) -> str | None:
    """The setting, or the one of `others`, that somebody who wrote `key` probably meant."""
    name = key.lower().replace("-", "_")
    return _HABITS.get(name) or nearest(name, (*_NAMES, *others))


def format_value(value: object) -> str:
    """`value` as TOML writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {format_value(v)}" for k, v in value.items()) + "}"
    return str(value)


def one_line(text: str) -> str:
    """`text` as a problem's line can hold it, whatever is in it."""
    shown = _printable(text)
    return shown if len(shown) <= 200 else f"{shown[:160]}... ({len(shown)} characters)"


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def parse_value(name: str, text: str) -> object:
    """The value that `text`, from the command line, means for the setting `name`; `text` itself if it means none."""
    annotation = Config.model_fields[name].annotation
    try:
        if annotation is bool:
            return {"true": True, "false": False}[text.lower()]
        if annotation in (int, float):
            return annotation(text)
        if get_origin(annotation) is tuple:
            return tuple(float(part) for part in text.split(","))
    except (ValueError, KeyError):
        pass
    return text


# ---- layers ----


@dataclass(frozen=True)
class _Layer:
    """Settings as one place states them; `written` has the words used on the command line."""

    where: str
    settings: Mapping[str, object]
    written: Mapping[str, str] = field(default_factory=dict)

    def entry(self, key: str) -> str:
        """Where it is written and how: `my.toml: lr = "fast"` or `command line: --lr fast`."""
        text = self.written.get(key) or f"{key} = {format_value(self.settings[key])}"
        return f"{self.where}: {one_line(text)}"


@dataclass(frozen=True)
class _File:
    """A parsed preset or a user's own file."""

    path: Path
    where: str
    base: str | None
    about: Mapping[str, object]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Resolved:
    """A configuration; the places it comes from, later ones winning; and the place of each setting that one states."""

    config: Config
    layers: tuple[str, ...]
    origins: Mapping[str, str]


def resolve(preset: str | None, config_file: Path | None, overrides: Sequence[tuple[str, str]]) -> Config:
    """The settings of `preset`, then of `config_file`, then of `overrides` (pairs of key and text).

    Errors: one UsageError for all problems, a line each.
    """
    return trace(preset, config_file, overrides).config


def trace(
    preset: str | None,
    config_file: Path | None,
    overrides: Sequence[tuple[str, str]],
    options: Sequence[str] = (),
) -> Resolved:
    """`resolve`, with the place of each setting. `options` are suggested beside the settings to who mistypes one."""
    problems: list[str] = []
    files: list[_File] = []
    if config_file is not None:
        files = _user_chain(config_file, preset, problems)
    elif preset is not None:
        files = _preset_chain(preset, problems)
    layers = [_Layer(file.where, _known(file.where, file.settings, problems)) for file in files]
    if preset is not None and config_file is None and files:
        layers.append(_Layer(COMMAND_LINE, {"preset": preset}))
    layers.append(_override_layer(overrides, problems, options))
    return _merge(layers, problems)


def parse_overrides(
    overrides: Sequence[tuple[str, str]], only: Sequence[str], options: Sequence[str] = ()
) -> dict[str, object]:
    """The values of `overrides` by setting, for a resumed run, where `only` may change.

    Errors: one UsageError for all problems, a line each.
    """
    problems: list[str] = []
    layer = _override_layer(overrides, problems, options)
    problems += [
        f"{layer.entry(key)}: a resumed run keeps its settings, only {', '.join(only)} may change; "
        "to run with others, start a new run"
        for key in layer.settings
        if key not in only
    ]
    kept = _Layer(layer.where, {k: v for k, v in layer.settings.items() if k in only}, layer.written)
    config = _merge([kept], problems).config
    return {key: getattr(config, key) for key in kept.settings}


def from_dict(settings: Mapping[str, object], where: str) -> Config:
    """A configuration from plain values, or from a parsed file that holds them under `settings`.

    `where` names their place in messages. Errors: one UsageError for all problems, a line each.
    """
    inner = settings.get("settings", settings)
    if not isinstance(inner, Mapping):
        raise UsageError(f"{where}: settings = {one_line(format_value(inner))}: expected a table")
    problems: list[str] = []
    return _merge([_Layer(where, _known(where, inner, problems))], problems).config


def _known(where: str, settings: Mapping[str, object], problems: list[str]) -> dict[str, object]:
    known = {key: value for key, value in settings.items() if key in _NAMES}
    for key in (key for key in settings if key not in known):
        hint = _did_you_mean(nearest_setting(key)) or f"; the settings are {', '.join(_NAMES)}"
        problems.append(f"{_Layer(where, settings).entry(key)}: there is no such setting{hint}")
    return known


def _override_layer(overrides: Sequence[tuple[str, str]], problems: list[str], options: Sequence[str]) -> _Layer:
    values: dict[str, object] = {}
    written: dict[str, str] = {}
    for key, text in overrides:
        name = key.replace("-", "_")
        if name in _NAMES:
            values[name], written[name] = parse_value(name, text), f"--{key} {text or format_value(text)}"
        else:
            match = nearest_setting(name, [option.replace("-", "_") for option in options])
            hint = _did_you_mean(match and "--" + match.replace("_", "-")) or "; `fastcifar train --help` lists them"
            problems.append(f"{COMMAND_LINE}: {one_line(f'--{key} {text}'.rstrip())}: there is no such option{hint}")
    return _Layer(COMMAND_LINE, values, written)


def _merge(layers: Sequence[_Layer], problems: Sequence[str]) -> Resolved:
    """The layers' settings over the defaults, later layers first; raises UsageError for `problems` and its own."""
    problems = list(problems)
    sources = {key: layer for layer in layers for key in layer.settings}
    values: dict[str, Any] = {key: layer.settings[key] for key, layer in sources.items()}
    wrong: set[str] = set()
    try:
        config = Config(**values)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
        problems += [_wrong_value(sources[key], key) for key in values if key in wrong]
        config = Config.model_construct(**{key: value for key, value in values.items() if key not in wrong})
    for keys, message in _conflicts(config):
        if wrong.isdisjoint(keys):
            authors = dict.fromkeys(layer.where for layer in layers for key in keys if sources.get(key) is layer)
            problems.append(f"{', '.join(authors)}: {message}")
    if problems:
        raise UsageError("\n".join(problems))
    places = tuple(dict.fromkeys(layer.where for layer in layers if layer.settings))
    return Resolved(config, places, {key: layer.where for key, layer in sources.items()})


def _wrong_value(layer: _Layer, key: str) -> str:
    value = layer.settings[key]
    hint = ""
    if isinstance(value, str):
        word = value.lower()
        hint = _did_you_mean(nearest(_VALUE_HABITS.get(word, word), _choices(key)))
        if not isinstance(parse_value(key, value), str):
            hint = ", without quotes"
    return f"{layer.entry(key)}: expected {allowed(key)}{hint}"


# ---- files ----


def presets_folder() -> Path:
    """Where the presets are: inside the installed package, or at the top of a source tree."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / "constant.toml").is_file():
            return folder
    raise FastcifarError(f"the presets are missing: no configs/ in {here} or {here.parent}; install fastcifar again")


def _preset_path(name: str, entry: str, problems: list[str]) -> Path | None:
    names = sorted(path.stem for path in presets_folder().glob("*.toml"))
    if name in names:
        return presets_folder() / f"{name}.toml"
    hint = _did_you_mean(nearest(name, names))
    if name.endswith(".toml"):
        hint = f"; did you mean --config {one_line(name)}?"
    problems.append(f"{entry}: there is no such preset{hint} (the presets are {', '.join(names)})")
    return None


def _preset_chain(name: str, problems: list[str]) -> list[_File]:
    path = _preset_path(name, f"{COMMAND_LINE}: --preset {one_line(name)}", problems)
    return _chain(path, problems) if path else []


def _user_chain(path: Path, preset: str | None, problems: list[str]) -> list[_File]:
    chain = _chain(path, problems)
    if preset is None or not chain:
        return chain
    if chain[-1].base is not None:
        entry = f"{chain[-1].where}: base = {format_value(chain[-1].base)}"
        problems.append(f"{entry}, and --preset {one_line(preset)} on the command line: give one of the two")
        return chain
    return _preset_chain(preset, problems) + chain


def _chain(path: Path, problems: list[str], above: tuple[Path, ...] = ()) -> list[_File]:
    """The file at `path` after those it derives from, the first ancestor first."""
    file = _read(path, problems)
    if file is None:
        return []
    if file.base is None:
        return [file]
    entry = f"{file.where}: base = {one_line(format_value(file.base))}"
    if file.base.endswith(".toml"):
        base: Path | None = path.parent / file.base
    else:
        base = _preset_path(file.base, entry, problems)
    if base is None:
        return [file]
    above = (*above, path)
    seen = [ancestor.resolve() for ancestor in above]
    if base.resolve() in seen:
        loop = [*above[seen.index(base.resolve()) :], base]
        problems.append(f"{entry}: derives from itself: {' -> '.join(p.name for p in loop)}")
        return [file]
    return [*_chain(base, problems, above), file]


def _read(path: Path, problems: list[str]) -> _File | None:
    where = f"configs/{path.name}" if path.parent == presets_folder() else _printable(str(path))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        preset = f"--preset {path.name}" if (presets_folder() / f"{path.name}.toml").is_file() else None
        problems.append(f"{where}: there is no such file{_did_you_mean(preset)}")
        return None
    except OSError as error:
        problems.append(f"{where}: cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError as error:
        problems.append(f"{where}: is not a TOML file: byte {error.start} is not UTF-8")
        return None
    except (ValueError, RecursionError) as error:  # not TOML, a number of thousands of digits, too deep a nesting
        problems.append(f"{where}: is not a TOML file: {error}")
        return None
    expected: dict[str, tuple[type, str]] = {
        "base": (str, "the name of a preset or of a .toml file"),
        "about": (dict, "a table"),
        "settings": (dict, "a table"),
    }
    for key, value in content.items():
        entry = _Layer(where, content).entry(key)
        if key in _NAMES:
            problems.append(f"{entry}: settings stand under [settings]")
        elif key not in expected:
            hint = _did_you_mean(nearest(key, expected))
            problems.append(f"{entry}: expected base, [about] or [settings] here{hint}")
        elif not isinstance(value, expected[key][0]):
            problems.append(f"{entry}: expected {expected[key][1]}")
    good: dict[str, Any] = {k: v for k, v in content.items() if k in expected and isinstance(v, expected[k][0])}
    return _File(path, where, good.get("base"), good.get("about", {}), good.get("settings", {}))


def to_toml(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """All settings, as a file that `resolve` reads back to the same `Config`; with `origins`, each names its own."""
    lines = ["[settings]", _toml_line(config, "preset", origins)]
    for group, names in groups().items():
        lines += ["", f"# {group}"] + [_toml_line(config, name, origins) for name in names]
    return "\n".join(lines) + "\n"


def _toml_line(config: Config, name: str, origins: Mapping[str, str] | None) -> str:
    line = f"{name} = {format_value(getattr(config, name))}"
    origin = (origins or {}).get(name, "")
    return f"{line:<36}# {origin}" if origin else line


# ---- presets ----

Metric = Literal["train_loss", "val_loss", "train_accuracy", "val_accuracy", "test_accuracy"]


class About(BaseModel):
    """What a preset says of itself. Losses and accuracies (0 to 1) are those of the last epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    summary: str = Field(description="one line: what it is")
    command: str = Field(description="runs it")
    time: str = Field(description="how long it takes, and where")
    source: str = Field(description="where the settings and the numbers to expect come from")
    report: dict[Metric, float] = Field(default={}, description="the report's numbers")
    reproductions: dict[Metric, Annotated[tuple[float, float], Field(strict=False)]] = Field(
        default={}, description="lowest and highest of the public reproductions, single seeds"
    )
    goal: dict[Metric, float] = Field(default={}, description="what a run must exceed")


@dataclass(frozen=True)
class Preset:
    """A named configuration, what it changes in its base, and what to expect of it."""

    name: str
    base: str | None
    about: About
    own_settings: Mapping[str, object]
    config: Config


def load_preset(name: str) -> Config:
    """The configuration of the preset `name`. Errors: UsageError with the nearest name."""
    return find_preset(name).config


def find_preset(name: str) -> Preset:
    """The preset `name` with what it says of itself. Errors: UsageError with the nearest name."""
    problems: list[str] = []
    path = _preset_path(name, f"preset {one_line(name)}", problems)
    file = _read(path, problems) if path else None
    if file is None:
        raise UsageError("\n".join(problems))
    config = resolve(name, None, [])
    try:
        about = About(**file.about)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{file.where}: about.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("\n".join(lines)) from error
    own = {key: getattr(config, key) for key in file.settings}
    return Preset(name, file.base, about, own, config)


def list_presets() -> list[Preset]:
    """All presets, each after the one it derives from."""
    presets = [find_preset(path.stem) for path in sorted(presets_folder().glob("*.toml"))]

    def below(base: str | None) -> Iterator[Preset]:
        for preset in presets:
            if preset.base == base:
                yield preset
                yield from below(preset.name)

    return list(below(None))
