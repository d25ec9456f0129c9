"""How the settings of a run come together, layer by layer.

The first layer is the defaults of `Config`. A preset (configs/NAME.toml) comes after the presets that it derives from,
then a user's own file, then the command line; what a later layer states wins. The problems of all layers are reported
together, a line each.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastcifar import files, paths
from fastcifar.config import NAMES, Config, conflicts
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.spelling import allowed, format_value, nearest_setting, nearest_value, option_hint, parse_value
from fastcifar.text import did_you_mean, is_utf8, nearest, one_line, printable, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMAND_LINE = "command line"
_LARGEST = 2**20
"""Bytes of a file of settings; a thousand of them would fit."""
_MOST_WRONG_KEYS = 20
"""Of a file, that are named each in a line."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class _Layer:
    """Settings as one place states them.

    Attributes:
        where: the place, as messages name it.
        settings: the values by setting.
        written: the words that were typed, by setting, where the place is the command line.
    """

    where: str
    settings: Mapping[str, object]
    written: Mapping[str, str] = field(default_factory=dict)

    def entry(self, key: str) -> str:
        """Where it is written and how: `my.toml: lr = "fast"` or `command line: --lr fast`."""
        text = self.written.get(key) or f"{key} = {format_value(self.settings[key])}"
        return f"{self.where}: {one_line(text)}"


@dataclass(frozen=True)
class _File:
    """A preset or a user's own file, as parsed.

    Attributes:
        path: where it is.
        where: its name in messages.
        base: the preset or the file that it derives from.
        about: what it says of itself; the table [about].
        settings: what it states; the table [settings].
    """

    path: Path
    where: str
    base: str | None
    about: Mapping[str, object]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Resolved:
    """A configuration, and where it comes from.

    Attributes:
        config: the settings.
        layers: the places that state some of them; what a later place states wins.
        origins: the place by setting, for each setting that a place states.
    """

    config: Config
    layers: tuple[str, ...]
    origins: Mapping[str, str]


def resolve(preset: str | None, config_file: Path | None, overrides: Sequence[tuple[str, str]]) -> Config:
    """The settings of a preset, then of a file, then of the command line.

    Args:
        preset: the name of a preset; None for the defaults.
        config_file: a user's own file; None where there is none.
        overrides: pairs of a setting's name, with dashes or underscores, and the text of its value.

    Raises:
        UsageError: for all problems, a line each.
    """
    return resolve_layers(preset, config_file, overrides).config


def resolve_layers(
    preset: str | None,
    config_file: Path | None,
    overrides: Sequence[tuple[str, str]],
    options: Sequence[str] = (),
) -> Resolved:
    """Does what `resolve` does, and says from where each setting comes.

    Args:
        preset, config_file, overrides: as for `resolve`.
        options: other options of the command, without dashes before them. A hint on a mistyped option may name them.

    Raises:
        UsageError: for all problems, a line each.
    """
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
    """Reads settings for a run that goes on, and that keeps all others.

    Args:
        overrides: pairs of a setting's name and the text of its value.
        only: the settings that may change.
        options: as for `resolve_layers`.

    Returns:
        The values by setting.

    Raises:
        UsageError: for all problems, a line each.
    """
    problems: list[str] = []
    layer = _override_layer(overrides, problems, options)
    problems += [
        f"{layer.entry(key)}: a resumed run keeps its settings. These may change: {', '.join(only)}. "
        "To train with others, start a new run; --init-from RUN gives it the weights"
        for key in layer.settings
        if key not in only
    ]
    kept = _Layer(layer.where, {k: v for k, v in layer.settings.items() if k in only}, layer.written)
    config = _merge([kept], problems).config
    return {key: getattr(config, key) for key in kept.settings}


def from_dict(settings: Mapping[str, object], where: str) -> Config:
    """A configuration from plain values.

    Args:
        settings: the values by setting, or a parsed file that holds them under `settings`.
        where: the name of their place in messages.

    Raises:
        UsageError: for all problems, a line each.
    """
    inner = settings.get("settings", settings)
    if not isinstance(inner, Mapping):
        raise UsageError(f"{where}: settings = {one_line(format_value(inner))}: expected a table")
    problems: list[str] = []
    return _merge([_Layer(where, _known(where, inner, problems))], problems).config


def _known(where: str, settings: Mapping[str, object], problems: list[str]) -> dict[str, object]:
    """Those of `settings` that exist; the others are added to `problems`."""
    known = {key: value for key, value in settings.items() if key in NAMES}
    for key in _first([key for key in settings if key not in known], where, problems):
        hint = did_you_mean(nearest_setting(key)) or f"; the settings are {', '.join(NAMES)}"
        problems.append(f"{_Layer(where, settings).entry(key)}: there is no such setting{hint}")
    return known


def _first(keys: Sequence[str], where: str, problems: list[str]) -> Sequence[str]:
    """The first of the wrong keys of a file; how many more there are is a problem of its own."""
    if len(keys) > _MOST_WRONG_KEYS:
        problems.append(f"{where}: {len(keys):,} of its keys are wrong; the first {_MOST_WRONG_KEYS} of them:")
    return keys[:_MOST_WRONG_KEYS]


def _override_layer(overrides: Sequence[tuple[str, str]], problems: list[str], options: Sequence[str]) -> _Layer:
    values: dict[str, object] = {}
    written: dict[str, str] = {}
    for key, text in overrides:
        name = key.replace("-", "_")
        if name in NAMES:
            values[name], written[name] = parse_value(name, text), f"--{key} {text or format_value(text)}"
        else:
            problems.append(
                f"{COMMAND_LINE}: {one_line(f'--{key} {text}'.rstrip())}: there is no such option"
                f"{option_hint(name, options) or '; `fastcifar train --help` lists them'}"
            )
    return _Layer(COMMAND_LINE, values, written)


def _merge(layers: Sequence[_Layer], problems: Sequence[str]) -> Resolved:
    """The settings of the layers over the defaults; what a later layer states wins.

    Raises:
        UsageError: for `problems` and for those of the values, a line each.
    """
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
    for keys, message in conflicts(config):
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
        hint = did_you_mean(nearest_value(key, value))
        if not isinstance(parse_value(key, value), str):
            hint = ", without quotes"
        if not is_utf8(value):
            hint = ", in UTF-8; rename it, or give it a link with another name"
    return f"{layer.entry(key)}: expected {allowed(key)}{hint}"


# ---- files ----


def presets_folder() -> Path:
    """The folder of the presets: inside the installed package, or at the top of a source tree.

    Raises:
        FastcifarError: there is none.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / "constant.toml").is_file():
            return folder
    raise FastcifarError(f"the presets are missing: no configs/ in {here} or {here.parent}; install fastcifar again")


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def preset_path(name: str, entry: str, problems: list[str]) -> Path | None:
    """The file of the preset `name`; None, with a problem that begins with `entry`, if there is no such preset."""
    names = preset_names()
    if name in names:
        return presets_folder() / f"{name}.toml"
    hint = did_you_mean(nearest(name, names))
    if name.endswith(".toml"):
        hint = did_you_mean(quoted(name), "--config ")
    problems.append(f"{entry}: there is no such preset{hint} (the presets are {', '.join(names)})")
    return None


def _preset_chain(name: str, problems: list[str]) -> list[_File]:
    path = preset_path(name, f"{COMMAND_LINE}: --preset {one_line(name)}", problems)
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
    file = read(path, problems)
    if file is None:
        return []
    if file.base is None:
        return [file]
    entry = f"{file.where}: base = {one_line(format_value(file.base))}"
    if file.base.endswith(".toml"):
        try:
            base: Path | None = path.parent / paths.given(file.base)
        except (OSError, ValueError) as error:
            problems.append(f"{entry}: {error.strerror if isinstance(error, OSError) else error}")
            return [file]
    else:
        base = preset_path(file.base, entry, problems)
    if base is None:
        return [file]
    above = (*above, path)
    seen = [ancestor.resolve() for ancestor in above]
    if base.resolve() in seen:
        loop = [*above[seen.index(base.resolve()) :], base]
        problems.append(f"{entry}: derives from itself: {' -> '.join(p.name for p in loop)}")
        return [file]
    return [*_chain(base, problems, above), file]


def _decoded(content: bytes) -> str:
    """The text of a file, in UTF-8, without the byte order mark that some editors write before it."""
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n")


def read(path: Path, problems: list[str]) -> _File | None:
    """The parsed file at `path`; None, with a problem, if it cannot be read. Wrong entries are problems too."""
    where = f"configs/{path.name}" if path.parent == presets_folder() else printable(str(path))
    try:
        content = tomllib.loads(_decoded(files.read(path, _LARGEST)))
    except FileNotFoundError:
        preset = f"--preset {path.name}" if (presets_folder() / f"{path.name}.toml").is_file() else None
        problems.append(f"{where}: there is no such file{did_you_mean(preset)}")
        return None
    except OSError as error:
        problems.append(f"{where} cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError as error:
        kind = " (it looks like UTF-16: save it as UTF-8)" if error.object[:2] in _UTF16 else ""
        problems.append(f"{where} is not a TOML file: byte {error.start} is not UTF-8{kind}")
        return None
    except (ValueError, RecursionError) as error:  # not TOML, a number of thousands of digits, too deep a nesting
        problems.append(f"{where} is not a TOML file: {error}")
        return None
    expected: dict[str, tuple[type, str]] = {
        "base": (str, "the name of a preset or of a .toml file"),
        "about": (dict, "a table"),
        "settings": (dict, "a table"),
    }
    good: dict[str, Any] = {k: v for k, v in content.items() if k in expected and isinstance(v, expected[k][0])}
    for key in _first([key for key in content if key not in good], where, problems):
        entry = _Layer(where, content).entry(key)
        if key in NAMES:
            problems.append(f"{entry}: settings stand under [settings]")
        elif key not in expected:
            hint = did_you_mean(nearest(key, expected))
            problems.append(f"{entry}: expected base, [about] or [settings] here{hint}")
        else:
            problems.append(f"{entry}: expected {expected[key][1]}")
    return _File(path, where, good.get("base"), good.get("about", {}), good.get("settings", {}))
