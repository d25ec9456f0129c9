"""Every setting of a run, with its type, bounds and default, and how a setting reads and is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from fastcifar.text import nearest

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
        problems = [message for _, message in conflicts(self)]
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

NAMES = tuple(Config.model_fields)

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

VALUE_HABITS = {"gpu": "cuda", "half": "fp16", "nhwc": "channels_last", "nchw": "contiguous"}
"""The same for values."""


def conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
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
    for name in NAMES[1:]:
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
    if words := choices(name):
        return "one of " + ", ".join(words)
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


def choices(name: str) -> tuple[str, ...]:
    annotation = Config.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else tuple(_extra(name)["values"].split())


def nearest_setting(key: str, others: Sequence[str] = ()) -> str | None:
    """The setting, or the one of `others`, that somebody who wrote `key` probably meant."""
    name = key.lower().replace("-", "_")
    return _HABITS.get(name) or nearest(name, (*NAMES, *others))


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
