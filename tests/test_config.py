"""Settings and presets, and the messages that a user reads if they are wrong."""

import math
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fastcifar import layers as module
from fastcifar.config import GROUPS, NAMES, RESUMABLE, Config, about, conflicts, differing_settings, groups
from fastcifar.errors import UsageError
from fastcifar.layers import from_dict, parse_overrides, resolve, resolve_layers
from fastcifar.presets import find_preset, list_presets, load_preset
from fastcifar.spelling import allowed, format_value, to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = [
    "constant", "cosine", "wd-1e-4", "wd-5e-4", "final", "final-alpha-0.5", "speedrun", "best", "lr-0.05", "lr-0.01",
    "lr-0.5", "quick",
]  # fmt: skip


def problems(*args: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        resolve(*args)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a file in the working directory and returns its relative path, as a user types it."""
    monkeypatch.chdir(tmp_path)

    def write(content: str, name: str = "my.toml") -> Path:
        Path(name).write_text(content, encoding="utf-8")
        return Path(name)

    return write


# ---- the presets are the protocol ----

PROTOCOL = """
    lr-0.05  0.05 15  constant 0    0
    lr-0.5   0.5  15  constant 0    0
    lr-0.01  0.01 15  constant 0    0
    constant 0.05 300 constant 0    0
    cosine   0.05 300 cosine   0    0
    wd-1e-4  0.05 300 cosine   1e-4 0
    wd-5e-4  0.05 300 cosine   5e-4 0
    final    0.05 300 cosine   5e-4 0.2
    final-alpha-0.5 0.05 300 cosine 5e-4 0.5
"""
FIXED = {
    "data": "cifar100", "val_size": 10000, "split_seed": 0, "batch_size": 128, "momentum": 0.9, "nesterov": False,
    "decay_norm_and_bias": True, "lr_schedule_unit": "epoch", "lr_warmup_epochs": 0, "label_smoothing": 0,
    "ema_decay": 0, "crop_padding": 4, "flip": "random", "width_mult": 1, "mean": (0.5071, 0.4865, 0.4409),
    "std": (0.2009, 0.1984, 0.2023), "seed": 0, "channels": 3, "init_from": "", "cutmix_alpha": 0, "cutout": 0,
    "low_res_epochs": 0, "low_res": 24, "init": "default", "decay_depthwise": True, "average_epochs": 0,
}  # fmt: skip


@pytest.mark.parametrize("row", PROTOCOL.strip().splitlines())
def test_trials_are_those_of_the_protocol(row: str) -> None:
    name, lr, epochs, schedule, weight_decay, alpha = row.split()
    expected = FIXED | {
        "preset": name, "lr": float(lr), "epochs": int(epochs), "lr_schedule": schedule,
        "weight_decay": float(weight_decay), "mixup_alpha": float(alpha),
    }  # fmt: skip
    config = load_preset(name).model_dump()
    assert {key: config[key] for key in expected} == expected
    free = {*groups()["loader"], *groups()["engine"], *groups()["evaluation and checkpoints"], "mirror"}
    assert config.keys() == expected.keys() | free, "a new setting: is it fixed by the protocol, or free?"


def test_quick_is_small_and_needs_no_data() -> None:
    quick = load_preset("quick")
    assert (quick.data, quick.width_mult, quick.batch_size, quick.epochs, quick.val_size) == (
        "procedural", 0.5, 64, 5, 1000,
    )  # fmt: skip
    assert find_preset("quick").about.goal == {"val_accuracy": 0.9, "test_accuracy": 0.9}


def test_presets_come_after_their_bases() -> None:
    assert [preset.name for preset in list_presets()] == PRESETS


def test_presets_state_only_what_differs_from_their_base() -> None:
    for preset in list_presets():
        base = load_preset(preset.base) if preset.base else Config()
        for key, value in preset.own_settings.items():
            assert value != getattr(base, key), f"{preset.name} repeats {key} of {preset.base}"
        assert preset.config == base.model_copy(update={**preset.own_settings, "preset": preset.name})


def test_numbers_to_expect_are_those_of_the_protocol() -> None:
    about = {preset.name: preset.about for preset in list_presets()}
    rows = {  # train loss, val loss, train accuracy, val accuracy; the range of val accuracy
        "lr-0.05": (1.7617, 2.1723, 50.41, 43.71, 44.0, 47.2),
        "lr-0.5": (1.9483, 2.1710, 46.35, 42.66, 37.4, 43.1),
        "lr-0.01": (1.9655, 2.2422, 46.06, 41.44, 39.5, 42.3),
        "constant": (0.0071, 3.7522, 99.76, 56.82, 55.8, 57.0),
        "cosine": (0.0012, 3.2680, 99.97, 57.70, 56.8, 58.3),
        "wd-1e-4": (0.0034, 1.6740, 99.98, 63.11, 60.3, 62.5),
        "wd-5e-4": (0.0122, 1.3723, 99.97, 68.32, 67.1, 68.3),
        "final": (1.5565, 1.5169, 78.18, 67.30, 69.6, 70.3),
    }
    for name, row in rows.items():
        report, (low, high) = about[name].report, about[name].reproductions["val_accuracy"]
        accuracies = [100 * value for value in (report["train_accuracy"], report["val_accuracy"], low, high)]
        assert (report["train_loss"], report["val_loss"], *accuracies) == pytest.approx(row)
    assert about["final"].report["test_accuracy"] == 0.6763
    tests = {name: a.reproductions["test_accuracy"] for name, a in about.items() if "test_accuracy" in a.reproductions}
    assert tests == {"wd-1e-4": (0.620, 0.623), "wd-5e-4": (0.673, 0.690), "final": (0.697, 0.709)}


def test_an_installed_package_holds_the_presets_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package's own presets come first: in site-packages a configs/ beside it may belong to another package."""
    for folder in ("fastcifar/configs", "configs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "constant.toml").touch()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "fastcifar/config.py"))
    assert module.presets_folder() == tmp_path / "fastcifar/configs"


# ---- layers ----


def test_later_layers_win_and_say_so(write: Any) -> None:
    mine = write('base = "final"\n[settings]\nlr = 0.2\nseed = 1\n')
    resolved = resolve_layers(None, mine, [("seed", "2"), ("mixup-alpha", "0")])
    config = resolved.config
    assert (config.preset, config.epochs, config.lr, config.seed) == ("custom", 300, 0.2, 2)
    assert config.lr_schedule == "cosine" and config.weight_decay == 5e-4 and config.mixup_alpha == 0
    assert resolved.origins == {
        "lr_schedule": "configs/cosine.toml", "weight_decay": "configs/wd-5e-4.toml", "mixup_alpha": "command line",
        "lr": "my.toml", "seed": "command line",
    }  # fmt: skip
    assert resolved.layers[-2:] == ("my.toml", "command line")


def test_a_file_without_base_stands_on_the_preset_given_or_on_the_defaults(write: Any) -> None:
    mine = write("[settings]\nlr = 0.2\n")
    assert resolve("wd-5e-4", mine, []) == load_preset("wd-5e-4").model_copy(update={"preset": "custom", "lr": 0.2})
    assert resolve(None, mine, []) == Config(lr=0.2)


def test_a_file_derives_from_another_file_beside_it(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "more"))
    Path("more").mkdir()
    write('base = "quick"\n[settings]\nlr = 0.2\n', "more/first.toml")
    second = write('base = "first.toml"\n[settings]\nseed = 3\n', "more/second.toml")
    config = resolve(None, second, [])
    assert (config.data, config.lr, config.seed) == ("procedural", 0.2, 3)
    third = write('base = "~/second.toml"\n')
    assert resolve(None, third, []) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (("lr", "1e-4"), 1e-4), (("lr", "1"), 1.0), (("epochs", "7"), 7), (("nesterov", "true"), True),
        (("tuned", "False"), False), (("mean", "0.5,0.25,1"), (0.5, 0.25, 1.0)), (("data", "1"), "1"),
        (("flip", "none"), "none"), (("batch-size", "64"), 64), (("batch_size", "64"), 64), (("mirror", ""), ""),
    ],
)  # fmt: skip
def test_words_of_the_command_line_are_read_by_type(text: tuple[str, str], value: object) -> None:
    read = getattr(resolve(None, None, [text]), text[0].replace("-", "_"))
    assert read == value and type(read) is type(value)


# ---- problems ----


def test_all_problems_of_all_layers_at_once(write: Any) -> None:
    mine = write(
        'base = "finale"\nlr = 0.3\n[setings]\n[settings]\nlearning_rate = 3\nbatch_size = 0\nflip = "Random"\n'
        'mean = [1, 2]\nweight_decay = "1e-4"\nnesterov = true\nmomentum = 0.0\n'
    )
    assert problems(None, mine, [("lr", "fast"), ("device", "cud"), ("wd", "1")]) == [
        "my.toml: lr = 0.3: settings stand under [settings]",
        "my.toml: setings = {}: expected base, [about] or [settings] here; did you mean settings?",
        'my.toml: base = "finale": there is no such preset; did you mean final? '
        f"(the presets are {', '.join(sorted(PRESETS))})",
        "my.toml: learning_rate = 3: there is no such setting; did you mean lr?",
        "command line: --wd 1: there is no such option; did you mean --weight-decay?",
        "my.toml: batch_size = 0: expected an integer from 1 to 65536",
        'my.toml: flip = "Random": expected one of random, alternating, none; did you mean random?',
        "my.toml: mean = [1, 2]: expected three numbers from 0 to 1: red, green, blue",
        'my.toml: weight_decay = "1e-4": expected a number from 0 to 1, without quotes',
        "command line: --lr fast: expected a number above 0, at most 100",
        "command line: --device cud: expected auto, cpu, cuda or cuda:N; did you mean cuda?",
        "my.toml: nesterov = true needs momentum above 0",
    ]


@pytest.mark.parametrize(("name", "word", "meant"), [("device", "gpu", "cuda"), ("precision", "half", "fp16")])
def test_a_value_used_elsewhere_is_understood(name: str, word: str, meant: str) -> None:
    """`gpu` means cuda, although its letters are nearest to cpu."""
    assert problems(None, None, [(name, word)])[0].endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True, "momentum": 0}, "nesterov = true needs momentum above 0"),
        ({"lr_warmup_epochs": 6, "epochs": 5}, "lr_warmup_epochs = 6 must be at most epochs = 5"),
        (
            {"deterministic": True, "compile_mode": "max-autotune"},
            "deterministic = true excludes compile_mode = max-autotune, which times kernels to choose one",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_dict(settings, "here")
    assert str(caught.value) == f"here: {message}"
    with pytest.raises(ValidationError, match=message):
        Config(**settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"^there: {message}$"):
        first, second = settings.items()
        module._merge([module._Layer("there", dict([first])), module._Layer("there", dict([second]))], [])


def test_a_conflict_names_every_place_it_comes_from(write: Any) -> None:
    mine = write("[settings]\nlr_warmup_epochs = 20\n")
    message = "lr_warmup_epochs = 20 must be at most epochs = 15"
    assert problems("lr-0.05", mine, []) == [f"configs/lr-0.05.toml, my.toml: {message}"]
    assert problems(None, mine, [("epochs", "15")]) == [f"my.toml, command line: {message}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr = = 3", "my.toml is not a TOML file: Invalid value (at line 1, column 6)"),
        ("[settings]\nlr = 1\nlr = 2\n", "my.toml is not a TOML file: Cannot overwrite a value (at line 3, column 7)"),
        (f"a = {'9' * 5000}", "my.toml is not a TOML file: Exceeds the limit"),
        ("a = " + "[" * 5_000, "my.toml is not a TOML file: "),
        ("base = 3", "my.toml: base = 3: expected the name of a preset or of a .toml file"),
        ("settings = 3", "my.toml: settings = 3: expected a table"),
        ('base = "my.toml"', 'my.toml: base = "my.toml": derives from itself: my.toml -> my.toml'),
        ('base = "x/../my.toml"', 'my.toml: base = "x/../my.toml": derives from itself: my.toml -> my.toml'),
        ('base = "other.toml"', 'other.toml: base = "my.toml": derives from itself: my.toml -> other.toml -> my.toml'),
        ('base = "absent.toml"', "absent.toml: there is no such file"),
        ('base = "a\\u0000.toml"', 'my.toml: base = "a\\u0000.toml": a\\x00.toml: no path holds a NUL character'),
        ('base = "~nosuchuser/x.toml"', 'my.toml: base = "~nosuchuser/x.toml": no such folder: there is no user'),
        ('[settings]\n"a\\nb" = "\\u0007"', 'my.toml: a\\nb = "\\\\u0007": there is no such setting; the settings'),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(write: Any, content: str, message: str) -> None:
    write('base = "my.toml"\n', "other.toml")
    (problem,) = problems(None, write(content), [])
    assert problem.startswith(message)


def test_a_byte_order_mark_and_other_line_ends_are_read(write: Any) -> None:
    """Windows editors write them."""
    Path("bom.toml").write_bytes(b"\xef\xbb\xbfbase = 'quick'\r\n[settings]\r\nlr = 0.02\r\n")
    assert resolve(None, Path("bom.toml"), []) == load_preset("quick").model_copy(
        update={"preset": "custom", "lr": 0.02}
    )
    Path("utf16.toml").write_bytes("[settings]\n".encode("utf-16"))
    assert problems(None, Path("utf16.toml"), []) == [
        "utf16.toml is not a TOML file: byte 0 is not UTF-8 (it looks like UTF-16: save it as UTF-8)"
    ]


def test_files_that_cannot_be_read(write: Any, tmp_path: Path) -> None:
    assert problems(None, Path("nowhere.toml"), []) == ["nowhere.toml: there is no such file"]
    assert problems(None, Path("final"), []) == ["final: there is no such file; did you mean --preset final?"]
    assert problems("my.toml", None, [])[0].startswith(
        "command line: --preset my.toml: there is no such preset; did you mean --config my.toml?"
    )
    assert problems(None, tmp_path, []) == [f"{tmp_path} cannot be read: it is a folder, where a file is wanted"]
    Path("bytes.toml").write_bytes(b"a = '\xff'")
    assert problems(None, Path("bytes.toml"), []) == ["bytes.toml is not a TOML file: byte 5 is not UTF-8"]


def test_a_base_and_a_preset_are_one_too_many(write: Any) -> None:
    assert problems("final", write('base = "cosine"'), []) == [
        'my.toml: base = "cosine", and --preset final on the command line: give one of the two'
    ]


def test_a_damaged_preset_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "constant.toml").write_text('[about]\nsumary = "?"\n[settings]\nepohcs = 3\n')
    monkeypatch.setattr(module, "presets_folder", lambda: tmp_path)
    assert problems("constant", None, []) == [
        "configs/constant.toml: epohcs = 3: there is no such setting; did you mean epochs?"
    ]
    (tmp_path / "constant.toml").write_text('[about]\nsumary = "?"\n')
    with pytest.raises(UsageError) as caught:
        find_preset("constant")
    assert "configs/constant.toml: about.sumary" in str(caught.value) and "about.summary" in str(caught.value)


def test_a_resumed_run_keeps_its_settings() -> None:
    assert parse_overrides([("device", "cpu"), ("checkpoint-seconds", "5")], RESUMABLE) == {
        "device": "cpu", "checkpoint_seconds": 5.0,
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        parse_overrides([("epochs", "400"), ("device", "gpu"), ("lrr", "1")], RESUMABLE)
    unknown, epochs, device = str(caught.value).splitlines()
    assert unknown == "command line: --lrr 1: there is no such option; did you mean --lr?"
    assert epochs.startswith("command line: --epochs 400: a resumed run keeps its settings. These may change: data, ")
    assert "images_on, device, logger, checkpoint_seconds. To train with others, start a new run" in epochs
    assert device.startswith("command line: --device gpu: expected auto, cpu, cuda or cuda:N")


def test_each_setting_says_what_it_changes() -> None:
    free = {
        "data", "mirror", "seed", *groups()["loader"], *groups()["engine"], *groups()["evaluation and checkpoints"]
    }  # fmt: skip
    free -= {"sync_batch_norm"}  # the statistics of several processes
    for name in set(Config.model_fields) - {"preset"}:
        other = Config().model_copy(update={name: object()})
        assert differing_settings(Config(), other) == (() if name in free else (name,))
    assert RESUMABLE == ("data", "mirror", "loader_workers", "images_on", "device", "logger", "checkpoint_seconds")
    assert {about(name)["group"] for name in NAMES} == {"", *GROUPS}


def test_everything_may_be_trained_on() -> None:
    assert resolve(None, None, [("val-size", "0")]).val_size == 0
    assert allowed("val_size") == "an integer at least 0"
    assert str(Config.model_fields["val_size"].description).endswith("0 = train on all")


def test_a_setting_is_switched_off_by_a_value_that_it_may_have() -> None:
    for name in NAMES:
        if off := about(name)["off"]:
            assert parse_overrides([(name, off)], [name])


def test_settings_describe_themselves() -> None:
    assert [name for names in groups().values() for name in names] == [n for n in Config.model_fields if n != "preset"]
    for name, field in Config.model_fields.items():
        assert field.description, name
        assert allowed(name).strip() not in ("", "a number", "an integer"), f"{name} has no bounds"


def test_config_is_immutable_and_strict() -> None:
    with pytest.raises(ValidationError):
        Config().lr = 1.0  # type: ignore[misc]
    for wrong in ({"lr": True}, {"lr": "0.1"}, {"epochs": 1.0}, {"lr": math.nan}, {"tuned": 1}, {"data": "\ud800"}):
        with pytest.raises(ValidationError):
            Config(**wrong)  # type: ignore[arg-type]


# ---- round trips and noise ----

TEXTS = {
    "preset": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "data": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    "init_from": st.just(""),
    "mirror": st.sampled_from(["", "https://host/a%20b?c=d&e#f", "file:///mnt/x.tar.gz"]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
}


def values_of(name: str) -> st.SearchStrategy[Any]:
    field = Config.model_fields[name]
    limits = {key: getattr(m, key) for m in field.metadata for key in ("gt", "ge", "lt", "le") if hasattr(m, key)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if name in TEXTS:
        return TEXTS[name]
    if name in ("mean", "std"):
        return st.tuples(*[st.floats(0, 1, exclude_min=name == "std")] * 3)
    if get_origin(field.annotation) is Literal:
        return st.sampled_from(get_args(field.annotation))
    if field.annotation is bool:
        return st.booleans()
    if field.annotation is int:
        return st.integers(low, high if high is not None else 2**63 - 1)
    return st.floats(
        low, high, exclude_min="gt" in limits, exclude_max="lt" in limits, allow_nan=False, allow_infinity=False
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    values = {name: draw(values_of(name)) for name in Config.model_fields}
    defaults = Config()
    while broken := [name for names, _ in conflicts(Config.model_construct(**values)) for name in names]:
        values |= {name: getattr(defaults, name) for name in broken}
    return Config(**values)


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(config=configs(), origin=st.text(st.characters(exclude_categories=["C", "Z"])))
def test_to_toml_is_read_back_to_the_same_config(tmp_path_factory: Any, config: Config, origin: str) -> None:
    text = to_toml(config, dict.fromkeys(Config.model_fields, origin))
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(text.encode())
    assert resolve(None, path, []) == config
    assert from_dict(tomllib.loads(to_toml(config)), "here") == config
    assert from_dict(config.model_dump(mode="json"), "here") == config
    assert to_toml(resolve(None, path, [])) == to_toml(config)


@QUICK
@given(config=configs())
def test_every_config_can_be_given_on_the_command_line(config: Config) -> None:
    def typed(value: object) -> str:
        return ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)

    assert resolve(None, None, [(name, typed(value)) for name, value in config.model_dump().items()]) == config


NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*Config.model_fields, "learning_rate", "base"]) | st.text()


@QUICK
@given(st.dictionaries(KEYS, NOISE, min_size=1, max_size=5))
def test_whatever_a_file_holds_each_problem_is_a_line(noise: dict[str, object]) -> None:
    try:
        from_dict(noise, "here")
    except UsageError as error:
        lines = str(error).split("\n")
        assert all(line.startswith("here") and line.isprintable() for line in lines)


@QUICK
@given(st.lists(st.tuples(KEYS, st.text()), min_size=1, max_size=5), st.text())
def test_whatever_is_typed_each_problem_is_a_line(pairs: list[tuple[str, str]], preset: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(preset, None, pairs)
    assert all(line.startswith("command line: --") and line.isprintable() for line in str(caught.value).split("\n"))


@QUICK
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_whatever_bytes_a_file_is_made_of(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.toml"
    path.write_bytes(content)
    try:
        assert resolve(None, path, []) == Config()
    except UsageError as error:
        assert str(path) in str(error)


def test_format_value_is_toml() -> None:
    value = {"a": [1, 2.5, True, 'q"\\\n\x7f\u00e9', float("inf")], "b": -0.0, "c": 1e-05, "d": 1e16}
    assert tomllib.loads("\n".join(f"{key} = {format_value(v)}" for key, v in value.items())) == value


def test_a_file_of_settings_is_a_file_of_a_sensible_size(tmp_path: Path) -> None:
    """The bugs: a named pipe was waited for, and /dev/zero was read to the end of the memory."""
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    for name, reason in (("pipe.toml", "it is a named pipe"), ("large.toml", "it has 1,048,577 bytes")):
        with pytest.raises(UsageError, match=f"{name} cannot be read: {reason}"):
            resolve_layers(None, tmp_path / name, [], [])


def test_many_wrong_keys_are_counted_and_not_listed(tmp_path: Path) -> None:
    """The bug: a message of 538 MB, after minutes of looking for similar names."""
    path = tmp_path / "many.toml"
    path.write_text("[settings]\n" + "".join(f"k{number} = 1\n" for number in range(5_000)))
    with pytest.raises(UsageError) as caught:
        resolve_layers(None, path, [], [])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("many.toml: 5,000 of its keys are wrong; the first 20 of them:") and len(lines) == 21
    path.write_text("".join(f"k{number} = 1\n" for number in range(5_000)))
    with pytest.raises(UsageError, match="5,000 of its keys are wrong"):
        resolve_layers(None, path, [], [])
