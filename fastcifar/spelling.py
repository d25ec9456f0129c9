"""How settings are spelled: what is allowed, how a value is read and written, what a misspelt one may have meant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fastcifar.config import NAMES, Config, about, groups
from fastcifar.text import did_you_mean, nearest

_HABITS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "ema": "ema_decay",
    "scheduler": "lr_schedule",
    "amp": "precision",
    "dtype": "precision",
    "workers": "loader_workers",
    "num_workers": "loader_workers",
    "dataloader": "loader",
    "dataset": "data",
    "gpu": "device",
    "warmup": "lr_warmup_epochs",
    "crop": "crop_padding",
    "in_channels": "channels",
    "grayscale": "channels",
    "padding": "crop_padding",
    "width": "width_mult",
    "compile": "engine",
    "decay": "weight_decay",
    "tensorboard": "logger",
    "wandb": "logger",
    "trackio": "logger",
    "pretrained": "init_from",
    "weights": "init_from",
    "save_best": "keep_best",
    "smoothing": "label_smoothing",
    "schedule": "lr_schedule",
}
"""Names used elsewhere, whose setting no string distance finds."""

_VALUE_HABITS = {
    "gpu": "cuda",
    "half": "fp16",
    "nhwc": "channels_last",
    "nchw": "contiguous",
    "yes": "true",
    "on": "true",
    "1": "true",
    "no": "false",
    "off": "false",
    "0": "false",
}
"""The same for values."""

_ABSENT = {
    "model": "MobileNetV1 is all there is to train; --width-mult scales it",
    "arch": "MobileNetV1 is all there is to train; --width-mult scales it",
    "network": "MobileNetV1 is all there is to train; --width-mult scales it",
    "optimizer": "SGD is all there is; --momentum, --nesterov and --weight-decay set it",
    "opt": "SGD is all there is; --momentum, --nesterov and --weight-decay set it",
}
"""Names used elsewhere for what cannot be set here."""


def allowed(name: str) -> str:
    """What the setting `name` may be: type and bounds, or choices."""
    info = Config.model_fields[name]
    extra = about(name)
    if extra["allowed"]:
        return str(extra["allowed"])
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


def choices(name: str) -> tuple[str, ...]:
    annotation = Config.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else tuple(str(about(name)["values"]).split())


def nearest_setting(key: str, others: Sequence[str] = ()) -> str | None:
    """The setting, or the one of `others`, that somebody who wrote `key` probably meant."""
    name = key.lower().replace("-", "_")
    return _HABITS.get(name) or nearest(name, (*NAMES, *others))


def nearest_value(name: str, text: str) -> str | None:
    """The value of the setting `name` that somebody who wrote `text` probably meant."""
    word = text.lower()
    if name == "device" and (number := re.fullmatch(r"(?:gpu|cuda)?[:_ ]?([0-9]+)", word)):
        return f"cuda:{number[1]}"
    words = ("true", "false") if Config.model_fields[name].annotation is bool else choices(name)
    return nearest(_VALUE_HABITS.get(word, word), words)


def option_hint(name: str, options: Sequence[str] = ()) -> str:
    """The end of the message about an option `name` (with underscores) that does not exist: what to write instead.

    A negation such as `no_flip` is answered with the value that switches the setting off, never with its opposite.

    Args:
        name: the option, with underscores in place of dashes.
        options: the other options of the command, with dashes.
    """
    if name in _ABSENT:
        return f"; {_ABSENT[name]}"
    negated = re.fullmatch(r"(?:no|not|without|disable|dont)_(\w+)", name) or re.fullmatch(r"no(\w+)", name)
    if negated and ("_" in name[:8] or negated[1] in NAMES):
        negations = {option[3:].replace("-", "_"): option for option in options if option.startswith("no-")}
        meant = nearest_setting(negated[1], list(negations))
        return did_you_mean(negations.get(meant) or _switch_off(meant) if meant else None, "--")
    match = nearest_setting(name, [option.replace("-", "_") for option in options])
    return did_you_mean(match and match.replace("_", "-"), "--")


def _switch_off(name: str) -> str:
    """How the command line switches off what `name` does, without the dashes before it; empty where it cannot."""
    option = name.replace("_", "-")
    if name not in Config.model_fields:
        return ""
    if Config.model_fields[name].annotation is bool:
        return f"no-{option}"
    off = about(name)["off"]
    return f"{option} {off}" if off else ""


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
