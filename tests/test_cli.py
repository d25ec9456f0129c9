"""The commands: from the words of the command line to output and exit code. The trainer is a stand-in."""

import errno
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastcifar
from fastcifar import errors
from fastcifar.cli import main as cli
from fastcifar.config import RESUMABLE, Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset, info
from fastcifar.layers import resolve
from fastcifar.presets import list_presets, load_preset
from fastcifar.run import folder as run
from fastcifar.run.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTCIFAR_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "data"))  # an empty one
    monkeypatch.setattr(run, "collect", lambda device: {})  # torch is not needed here


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for fastcifar.trainer, and keeps the arguments of its calls."""

    def train(config: Config, out: Path | None, command: list[str], *, progress: bool = True) -> Path:
        stand_in.asked = (config, out, command)
        folder = RunFolder.create(config, out, command, "0" * 64)
        folder.write_summary(
            {"test_accuracy": 0.7012, "val_accuracy": 0.695, "train_seconds": 61.04, "compile_seconds": 8.0}
        )
        folder.close()
        return folder.path

    def resume(path: Path, overrides: dict[str, object], command: list[str], *, progress: bool = True) -> Path:
        stand_in.asked = (path, overrides, command)
        return path

    def evaluate_run(
        path: Path, split: str = "test", device: str = "auto", data: str | None = None, weights: str = "last"
    ) -> dict[str, Any]:
        stand_in.asked = (path, split, device, data)
        result = {"split": split, "num_images": 10_000, "loss": 1.23456, "accuracy": 0.67635}
        return result | {"recorded_accuracy": None, "epoch": 300, "step": 0, "device": "cpu"} | stand_in.result

    stand_in = SimpleNamespace(train=train, resume=resume, evaluate_run=evaluate_run, result={}, asked=None)
    for module in ("trainer", "evaluation"):
        monkeypatch.setitem(sys.modules, f"fastcifar.{module}", stand_in)
        monkeypatch.setattr(fastcifar, module, stand_in, raising=False)
    return stand_in


def refused(capsys: Captured, *argv: str, code: int = 2) -> list[str]:
    """The lines on stderr, without `fastcifar: `. Checks that stdout is empty."""
    assert cli.main(argv) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and all(line.startswith("fastcifar: ") for line in lines)
    return [line.removeprefix("fastcifar: ") for line in lines]


def printed(capsys: Captured, *argv: str, told: bool = False) -> str:
    """The text on stdout. Checks that stderr is empty or, with `told`, says only what the run will do."""
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("fastcifar: ") for line in err.splitlines()) if told else err == ""
    return out


def python_m(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastcifar", *argv]
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, env=environment, **options)


# ---- the whole ----


def test_help_names_every_command_and_exit_code(capsys: Captured) -> None:
    text = printed(capsys, "--help")
    for name, command in cli.COMMANDS.items():
        assert f"  {name:<12}" in text and f" {name} {command.summary} " in " ".join(text.split())
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert {0, 130, 143} | codes <= {int(code) for code in re.findall(r"(?:^|\s{2,})(\d+) \w", text)}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(capsys: Captured, name: str) -> None:
    text = printed(capsys, name, "--help")
    assert text.startswith(f"usage: fastcifar {name}") and cli.COMMANDS[name].summary in " ".join(text.split())


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_a_help_fits_a_terminal_of_80_columns(capsys: Captured, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in printed(capsys, *name.split(), "--help").splitlines() if len(line) > 79] == []


def test_the_defaults_of_a_study_are_told(capsys: Captured) -> None:
    text = " ".join(printed(capsys, "study", "--help").split())
    assert "[3; a search takes one seed only, 0 if none is named]" in text
    assert "not the preset quick, which a file with the line base = 'quick' stands for" in text


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("predict", "how many classes a picture is given [5]"),
        ("evaluate", "measure on the validation or on the test images [test]"),
        ("train", "channels that the network sees. Grey images are given three equal channels; with 1 they keep one ["),
        ("train", "one box of every image is replaced by another image's; the part outside the box has a share ~ Beta"),
    ],
)
def test_the_help_describes(capsys: Captured, command: str, part: str) -> None:
    assert part in " ".join(printed(capsys, command, "--help").split())


def test_the_help_of_data_says_what_its_actions_do(capsys: Captured) -> None:
    text = " ".join(printed(capsys, "data", "--help").split())
    for part in ("8 to 96 pixels", "cifar100 where nothing is named", "the centre square of each", "is overwritten"):
        assert part in text


def test_version(capsys: Captured) -> None:
    assert printed(capsys, "--version") == f"fastcifar {fastcifar.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ([], [f"a command is missing: {', '.join(cli.COMMANDS)} (see fastcifar --help)"]),
        (["resume", "x"], [f"resume: expected a command: {', '.join(cli.COMMANDS)}; did you mean train --resume?"]),
        (["help"], [f"help: expected a command: {', '.join(cli.COMMANDS)}; did you mean --help?"]),
        (["EVALUATE"], [f"EVALUATE: expected a command: {', '.join(cli.COMMANDS)}; did you mean evaluate?"]),
        (["trian"], [f"trian: expected a command: {', '.join(cli.COMMANDS)}; did you mean train?"]),
        (["--verison"], [f"--verison: expected a command: {', '.join(cli.COMMANDS)}; did you mean --version?"]),
        (["evaluate"], ["the following arguments are required: RUN (see fastcifar evaluate --help)"]),
        (
            ["evaluate", "run", "--splt", "val", "--foo", "again"],
            [
                "--splt: there is no such option; did you mean --split?",
                "--foo: there is no such option (see fastcifar evaluate --help)",
            ],
        ),
        (["doctor", "who"], ["who: unexpected argument (see fastcifar doctor --help)"]),
        (
            ["evaluate", "run", "--split", "tst"],
            ["argument --split: 'tst': expected val or test; did you mean test? (see fastcifar evaluate --help)"],
        ),
        (
            ["evaluate", "run", "--device", "cudaa", "--data", ""],
            [
                "command line: --device cudaa: expected auto, cpu, cuda or cuda:N; did you mean cuda?",
                'command line: --data "": expected cifar100, cifar10, procedural or a path',
            ],
        ),
        (
            ["data", "inf"],
            [
                "argument info|get|convert: 'inf': expected info or get or convert; did you mean info? "
                "(see fastcifar data --help)"
            ],
        ),
        (["data", "get"], ["data get: the name is missing: cifar100 or cifar10"]),
        (["data", "get", "cifar-100"], ["data get cifar-100: expected cifar100 or cifar10; did you mean cifar100?"]),
        (["presets", "fina", "x"], ["x: unexpected argument (see fastcifar presets --help)"]),
        (
            ["presets", "fina"],
            [
                "preset fina: there is no such preset; did you mean final? (the presets are best, constant, cosine, "
                "final, final-alpha-0.5, lr-0.01, lr-0.05, lr-0.5, quick, speedrun, wd-1e-4, wd-5e-4)"
            ],
        ),
    ],
)  # fmt: skip
def test_wrong_usage(capsys: Captured, argv: list[str], lines: list[str]) -> None:
    assert refused(capsys, *argv) == lines


# ---- train ----


def test_train_passes_on_what_was_asked(capsys: Captured, trainer: Any) -> None:
    argv = "train --lr 0.1 --preset quick --nesterov --out=here --batch_size=32 --mean 0,.5,1".split()
    out = printed(capsys, *argv)
    config, folder, command = trainer.asked
    changes = {"lr": 0.1, "nesterov": True, "batch_size": 32, "mean": (0.0, 0.5, 1.0)}
    assert config == load_preset("quick").model_copy(update=changes)
    assert folder == Path("here") and command == ["fastcifar", *argv]
    assert "run folder      here\n" in out


def test_train_prints_the_result_beside_what_to_expect(capsys: Captured, trainer: Any) -> None:
    out = printed(capsys, "train", "--preset", "final", "--data", "here.npz", "--seed", "3", "--out", "a")
    assert out == (
        "run folder      a\n"
        "test accuracy   70.12%   (final: 67.63 / 69.7-70.9)\n"
        "val accuracy    69.50%   (final: 67.30 / 69.6-70.3)\n"
        "training        61.0 s\n"
        "warm-up         8.0 s\n"
        "energy          not measured\n"
    )
    assert "warm-up         8.0 s\n" in printed(capsys, "train", "--engine", "compiled", "--out", "e", told=True)
    out = printed(capsys, "train", "--device", "cpu", "--out", "f", told=True)
    assert "energy          not measured (there is no GPU in this run)\n" in out
    out = printed(capsys, "train", "--preset", "final", "--epochs", "3", "--out", "b", told=True)
    assert "test accuracy   70.12%\n" in out, "a shortened trial is not compared"
    out = printed(capsys, "train", "--preset", "quick", "--data", "here.npz", "--out", "c")
    assert "test accuracy   70.12%\n" in out, "nor is other data"
    assert "(quick: > 90)" in printed(capsys, "train", "--preset", "quick", "--out", "d")


def test_train_reports_all_problems_at_once(capsys: Captured, trainer: Any) -> None:
    Path("my.toml").write_text("[settings]\nepohcs = 3\n")
    argv = "train foo --lr --nesterov --epochs -3 --lr-shedule=cosin --uot x --prest quick --config my.toml --wd"
    assert refused(capsys, *argv.split(), "--lr", "fast", "-v") == [
        "command line: foo: unexpected argument; settings are given as --KEY VALUE",
        "command line: --lr: the value is missing; expected a number above 0, at most 100",
        "command line: -v: unexpected argument; settings are given as --KEY VALUE",
        "my.toml: epohcs = 3: there is no such setting; did you mean epochs?",
        "command line: --lr-shedule cosin: there is no such option; did you mean --lr-schedule?",
        "command line: --uot x: there is no such option; did you mean --out?",
        "command line: --prest quick: there is no such option; did you mean --preset?",
        "command line: --wd: there is no such option; did you mean --weight-decay?",
        "command line: --epochs -3: expected an integer from 1 to 100000",
        "command line: --lr fast: expected a number above 0, at most 100",
    ]
    assert trainer.asked is None


def test_print_config_prints_a_file_that_gives_the_same_and_stops(capsys: Captured, trainer: Any) -> None:
    out = printed(capsys, "train", "--preset", "final", "--lr", "0.1", "--print-config")
    assert trainer.asked is None
    head = out.splitlines()[:2]
    assert head == [
        "# fastcifar train --preset final --lr 0.1 --print-config",
        "# layers, the later ones win: defaults, configs/cosine.toml, configs/wd-5e-4.toml, configs/final.toml, "
        "command line",
    ]
    assert re.search(r"^lr = 0.1 +# command line$", out, re.M)
    assert re.search(r"^weight_decay = 0.0005 +# configs/wd-5e-4.toml$", out, re.M)
    Path("again.toml").write_text(out)
    assert resolve(None, Path("again.toml"), []) == load_preset("final").model_copy(update={"lr": 0.1})
    assert "# fastcifar train --data 'a\\nb'" in printed(capsys, "train", "--data", "a\nb", "--print-config")


def test_train_help_lists_every_setting(capsys: Captured) -> None:
    text = printed(capsys, "train", "--help")
    for name in Config.model_fields:
        assert re.search(rf"^  --{name.replace('_', '-')} ", text, re.M), name
    words = " ".join(text.split())
    assert "[a number above 0, at most 100; default 0.05]" in words
    assert f"of the settings only {', '.join('--' + name.replace('_', '-') for name in RESUMABLE)} may change." in words
    assert "To train longer, start a new run from its weights: --init-from RUN" in words
    assert "written at the end of an epoch, and where a signal stops the run; 0 = after every epoch" in words
    assert max(map(len, text.splitlines())) <= 110


def test_resume_keeps_the_settings(capsys: Captured, trainer: Any) -> None:
    printed(capsys, "train", "--preset", "quick", "--out", "here")
    printed(capsys, "train", "--resume", "here", "--device", "cpu", "--checkpoint-seconds=5")
    path, overrides, command = trainer.asked
    assert (path, overrides) == (Path("here"), {"device": "cpu", "checkpoint_seconds": 5.0})
    assert command[:3] == ["fastcifar", "train", "--resume"]
    argv = "train --resume here --preset quick --print-config --epochs 400 --lrr 1 --device x"
    lines = refused(capsys, *argv.split())
    for line, beginning in zip(
        lines,
        ["--preset: not together with --resume", "--print-config: not together", "--lrr 1: there is no such option",
         "--epochs 400: a resumed run keeps its settings. These may change: data,", "--device x: expected auto"],
        strict=True,
    ):  # fmt: skip
        assert line.startswith(f"command line: {beginning}")


def test_the_stand_in_is_called_as_the_trainer_is_defined(trainer: Any) -> None:
    import importlib

    where = {"train": "trainer", "resume": "trainer", "evaluate_run": "evaluation"}
    for name, module in where.items():
        for stand_in in ("trainer", "evaluation"):
            sys.modules.pop(f"fastcifar.{stand_in}", None)
        real = importlib.import_module(f"fastcifar.{module}")
        wanted, given = inspect.signature(getattr(real, name)), inspect.signature(getattr(trainer, name))
        assert list(wanted.parameters) == list(given.parameters), name


@pytest.mark.parametrize("name", [preset.name for preset in list_presets()])
def test_the_command_of_each_preset_runs_it(capsys: Captured, trainer: Any, name: str) -> None:
    about = next(preset.about for preset in list_presets() if preset.name == name)
    assert about.command.startswith("fastcifar ")
    printed(capsys, *about.command.split()[1:], told=True)
    config = trainer.asked[0]
    assert config.model_copy(update={"data": load_preset(name).data}) == load_preset(name)


START = [
    ("quick", "quick", {}),
    ("final --lr 0.1", "final", {"lr": 0.1}),
    ("my.toml", None, {"lr": 0.2}),
    ("quick my.toml", "quick", {"preset": "custom", "lr": 0.2}),
    ("./my.toml --preset quick", "quick", {"preset": "custom", "lr": 0.2}),
    ("--nesterov quick", "quick", {"nesterov": True}),
    ("--no-decay-norm-and-bias quick --no_tuned", "quick", {"decay_norm_and_bias": False, "tuned": False}),
    ("--nesterov --no-nesterov quick", "quick", {}),
    ("quick --nesterov false", "quick", {}),
    ("~/my.toml", None, {"lr": 0.2}),
    ("--config ~/my.toml", None, {"lr": 0.2}),
    ("--config=~/my.toml", None, {"lr": 0.2}),
]


@pytest.mark.parametrize(("words", "preset", "changes"), START)
def test_a_preset_and_an_own_file_may_stand_alone(
    capsys: Captured, trainer: Any, monkeypatch: pytest.MonkeyPatch, words: str, preset: str | None, changes: Any
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("my.toml").write_text("[settings]\nlr = 0.2\n")
    printed(capsys, "train", *words.split(), "--data", "here.npz")
    base = load_preset(preset) if preset else Config()
    assert trainer.asked[0] == base.model_copy(update={"data": "here.npz", **changes})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("quick --preset final", "quick and --preset final: give one preset; `fastcifar study` trains several"),
        ("quick final", "quick and final: give one preset; `fastcifar study` trains several"),
        ("my.toml --config my.toml", "my.toml and --config my.toml: give one settings file"),
        ("quick --print-config --dry-run", "--dry-run: not together with --print-config, which makes no run"),
        ("quick --print-config --json", "--json: not together with --print-config, which makes no run"),
        ("quick --print-config --out x", "--out: not together with --print-config, which makes no run"),
        ("quick --dry-run --out x", "--out: not together with --dry-run, which makes no run"),
        ("quick --resume here", "quick: not together with --resume, which continues a run as it is"),
        ("quik", "quik: there is no such preset; did you mean quick?"),
        ("Final", "Final: there is no such preset; did you mean final?"),
        ("foo", "foo: unexpected argument; settings are given as --KEY VALUE"),
        ("x.npz", "x.npz: unexpected argument; settings are given as --KEY VALUE; did you mean --data x.npz?"),
        ("a/run", "a/run: unexpected argument; settings are given as --KEY VALUE; did you mean --resume a/run?"),
        ("--no-nesterov true", "--no-nesterov true: --no-... takes no value; give --no-nesterov or --nesterov true"),
        ("--no-nesterov=0", "--no-nesterov 0: --no-... takes no value; give --no-nesterov or --nesterov 0"),
        ("--no-nestrov", "--no-nestrov: there is no such option; did you mean --no-nesterov?"),
        ("--no-flip", "--no-flip: there is no such option; did you mean --flip none?"),
        ("--no-mixup", "--no-mixup: there is no such option; did you mean --mixup-alpha 0?"),
        ("--no-weight-decay", "--no-weight-decay: there is no such option; did you mean --weight-decay 0?"),
        ("--no-seed", "--no-seed: there is no such option; `fastcifar train --help` lists them"),
        ("--no-data", "--no-data: there is no such option; `fastcifar train --help` lists them"),
        (
            "--model resnet18",
            "--model resnet18: there is no such option; MobileNetV1 is all there is to train; --width-mult scales it",
        ),
        ("--gpu 0", "--gpu 0: there is no such option; did you mean --device?"),
        ("--device gpu1", "--device gpu1: expected auto, cpu, cuda or cuda:N; did you mean cuda:1?"),
        ("--engine fast", "--engine fast: expected one of auto, eager, compiled, fused"),
        ("--nesterov yes", "--nesterov yes: expected true or false; did you mean true?"),
    ],
)
def test_a_hint_names_what_helps_or_nothing(capsys: Captured, trainer: Any, words: str, problem: str) -> None:
    """The bug: the hint for --no-nesterov was --nesterov, for --model --loader, for fast auto."""
    Path("my.toml").touch()
    Path("x.npz").touch()
    Path("a/run").mkdir(parents=True)
    Path("a/run/config.toml").touch()
    assert refused(capsys, "train", *words.split()) == [f"command line: {problem}"]
    assert trainer.asked is None


def test_other_commands_say_what_a_preset_or_a_file_is_to_them(capsys: Captured) -> None:
    """The bug: `ablate --preset quick` was accepted, and silently measured the defaults."""
    (problem,) = refused(capsys, "study", "final", "--config", "my.toml")
    assert problem == "command line: --config: a study takes the names of settings files, without --config"
    for option in ("--preset", "--config"):
        (problem,) = refused(capsys, "ablate", option, "quick")
        assert problem.startswith(f"command line: {option}: nothing to choose here")
    assert refused(capsys, "ablate", "quick") == [
        "command line: quick: unexpected argument; settings are given as --KEY VALUE"
    ]
    assert refused(capsys, "profile", "quik") == ["command line: quik: there is no such preset; did you mean quick?"]
    for word, meant in {"cifar100": "cifar100", "CIFAR-10": "cifar10", "my set.npz": "'my set.npz'"}.items():
        (problem,) = refused(capsys, "data", word)
        assert problem.startswith(f"data {word}: expected info or get or convert; did you mean data info {meant}?")


def test_a_run_that_nobody_chose_says_first_what_it_will_do(capsys: Captured, trainer: Any) -> None:
    """The bug: `fastcifar train` silently began a download and 300 epochs."""
    assert cli.main(["train"]) == 0
    defaults, download, small = capsys.readouterr().err.splitlines()
    assert defaults == (
        "fastcifar: no preset is named, so the defaults are trained: 300 epochs on cifar100, batch_size 128, lr 0.05 "
        "constant; the run goes to a new folder in runs/custom"
    )
    assert (
        "cifar100 is not here yet: 136 MiB will be downloaded from huggingface.co to " in download
        and "data" in download
    )
    assert "fastcifar train quick" in small
    assert cli.main("train --lr 0.1 --data procedural --out".split() + ["my run"]) == 0
    defaults, small = capsys.readouterr().err.splitlines()
    assert "lr 0.1 constant; the run goes to 'my run'" in defaults
    assert cli.main("train final --out b".split()) == 0
    (download,) = capsys.readouterr().err.splitlines()
    assert "136 MiB" in download
    printed(capsys, *"train final --mirror file:///mnt --out d".split())
    printed(capsys, *"train quick --out c".split())


# ---- paths ----


def test_every_path_of_the_command_line_follows_one_rule(
    capsys: Captured, trainer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bug: --out=~/x made a folder `~` here."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for out in (["--out=~/a"], ["--out", "~/b"]):
        printed(capsys, "train", "quick", *out)
        assert trainer.asked[1] == home / out[-1][-1]
    printed(capsys, "train", "--resume=~/a")
    assert trainer.asked[0] == home / "a"
    printed(capsys, "evaluate", "~/a")
    assert trainer.asked[0] == home / "a" and not Path("~").exists()


@pytest.mark.parametrize(
    "words",
    ["train --out", "train --resume", "train --config", "evaluate", "report", "report x --out", "compare x",
     "study --out", "ablate --out", "profile --out"],
)  # fmt: skip
def test_the_home_of_nobody_is_no_folder(capsys: Captured, words: str) -> None:
    (problem,) = refused(capsys, *words.split(), "~nosuchuser/x")
    assert "~nosuchuser/x: no such folder: there is no user nosuchuser" in problem
    (problem,) = refused(capsys, *words.split(), "")
    assert "an empty path names nothing" in problem


LONG = "a" * 300


@pytest.mark.parametrize(
    "words",
    ["train quick --out", "train --resume", "train --config", "evaluate", "report", "compare", "study quick --out",
     "ablate --out", "profile --steps 1 --out"],
)  # fmt: skip
def test_a_name_that_is_too_long_is_the_users_fault(capsys: Captured, words: str) -> None:
    assert cli.main([*words.split(), LONG]) in (2, 4)
    err = capsys.readouterr().err
    assert "unexpected" not in err and "File name too long" in err


def test_a_refusal_of_the_system_names_the_path(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one place for all commands: for the path that was given, for what it holds, and for the folders above it."""
    denied = tmp_path / "locked" / "run"
    for given, filename in [(denied, denied), (denied, denied / "config.toml"), (denied, tmp_path / "locked")]:
        _command(monkeypatch, _raise(PermissionError(13, "Permission denied", str(filename))))
        assert refused(capsys, "act", str(given)) == [f"{filename}: Permission denied"]
        assert refused(capsys, "act", f"--out={given}") == [f"{filename}: Permission denied"]
        assert refused(capsys, "act", "--data", str(given), code=3) == [f"{filename}: Permission denied"]
    (tmp_path / "locked").mkdir()
    _command(monkeypatch, _raise(PermissionError(13, "Permission denied", "runs/custom")))
    assert refused(capsys, "act") == ["runs/custom: Permission denied"]
    monkeypatch.setenv("FASTCIFAR_DATA", "/cache")
    _command(monkeypatch, _raise(OSError(28, "No space left on device", b"/cache/x\xff")))
    assert refused(capsys, "act", code=3) == ["/cache/x\\xff: No space left on device"]
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK or str(path) != str(tmp_path / "locked"))
    _command(monkeypatch, _raise(PermissionError(13, "Permission denied", str(denied))))
    (problem,) = refused(capsys, "act", str(denied))
    assert problem == f"{denied}: Permission denied (the folder {tmp_path / 'locked'} does not let this user in)"
    _command(monkeypatch, _raise(FileNotFoundError(2, "No such file or directory", "/usr/lib/thing.so")))
    assert refused(capsys, "act", str(denied), code=1)[0].startswith("unexpected FileNotFoundError")


# ---- evaluate, doctor ----


def test_evaluate(capsys: Captured, trainer: Any) -> None:
    assert printed(capsys, "evaluate", "here") == (
        "test accuracy 67.64%, loss 1.2346 (10,000 images, after epoch 300, on cpu); none recorded\n"
    )
    assert trainer.asked == (Path("here"), "test", "auto", None)
    trainer.result = {"recorded_accuracy": 0.68}
    out = printed(capsys, *"evaluate here --split val --device cpu --data x".split())
    assert out.startswith("val accuracy 67.64%") and out.endswith("recorded 68.00%\n")
    assert trainer.asked == (Path("here"), "val", "cpu", "x")
    assert json.loads(printed(capsys, "evaluate", "here", "--json"))["recorded_accuracy"] == 0.68


def test_doctor_gives_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.doctor, "report", lambda: 3)
    assert cli.main(["doctor"]) == 3


# ---- presets ----


def test_presets_are_listed_with_what_to_expect(capsys: Captured) -> None:
    header, *rows = printed(capsys, "presets").split("\n\n")[0].splitlines()
    assert re.split("  +", header) == ["preset", "settings", "val accuracy %", "test accuracy %"]
    cells = {row.split()[0]: re.split("  +", row)[1:] for row in rows}
    assert list(cells) == [preset.name for preset in list_presets()]
    assert cells["final"] == ["wd-5e-4 + mixup_alpha=0.2", "67.30 / 69.6-70.3", "67.63 / 69.7-70.9"]
    assert cells["wd-1e-4"] == ["cosine + weight_decay=0.0001", "63.11 / 60.3-62.5", "- / 62.0-62.3"]
    assert cells["constant"] == ["the defaults", "56.82 / 55.8-57.0", "-"]
    assert cells["quick"][1:] == ["> 90", "> 90"]


@pytest.mark.parametrize("columns", [80, 200])
def test_presets_on_a_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(capsys, "presets"))
    assert max(map(len, text.splitlines())) <= columns
    for number in ("67.30 / 69.6-70.3", "67.63 / 69.7-70.9", "final-alpha-0.5"):
        assert number in text


@pytest.mark.parametrize("columns", [70, 80])
def test_no_setting_is_broken_inside(capsys: Captured, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    words = re.sub(r"\x1b\[[0-9;]*m", "", printed(capsys, "presets")).split()
    assert {'lr_schedule_unit="step"', "decay_norm_and_bias=false", "lr_warmup_epochs=10.0"} <= set(words)


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_no_value_is_lost_on_a_narrow_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """The bug: below 60 columns the values were cut silently."""
    wide = re.split(r"\s+", printed(capsys, "presets").partition("\n\nAccuracy")[0].partition("\n")[2])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys, "presets").partition("\n\nAccuracy")[0]
    assert max(map(len, text.splitlines())) <= columns
    joined = re.sub(r"\s+", "", text)
    assert all(word in joined for word in wide)
    if columns >= 40:
        assert "final\n  settings         wd-5e-4 +" in text and "  val accuracy %   67.30 / 69.6-70.3\n" in text


def test_a_preset_in_full(capsys: Captured) -> None:
    text = printed(capsys, "presets", "final")
    for part in (
        "final: the report's last trial: MixUp with alpha 0.2",
        "derives from    wd-5e-4 + mixup_alpha=0.2",
        'not at default  mixup_alpha=0.2 weight_decay=0.0005 lr_schedule="cosine"',
        "command         fastcifar train --preset final --data PATH",
        "train loss        1.5565  0.7600 - 0.8400       -",
        "test accuracy %   67.63   69.70 - 70.90         -",
    ):
        assert part in text
    assert "above 90" in printed(capsys, "presets", "quick")
    assert "to expect" not in printed(capsys, "presets", "final-alpha-0.5")


# ---- data ----


@pytest.fixture
def small_npz(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(30) % 4
    path = tmp_path / "small.npz"
    np.savez(path, train_images=images[:20], train_labels=labels[:20], test_images=images[20:], test_labels=labels[20:])
    return path


def test_data_info(capsys: Captured, small_npz: Path) -> None:
    text = printed(capsys, "data", "info", str(small_npz))
    dataset = sources.load(str(small_npz))
    assert f"digest {dataset.digest}\n" in text and ": 4 classes\n" in text
    rows = {re.split("  +", line)[0]: re.split("  +", line)[1:] for line in text.splitlines() if "  " in line}
    assert rows["images"] == ["20", "10"]
    assert rows["images a class"] == ["5", "2 to 3"]
    train = info(dataset)["train"]
    assert rows["mean (R G B)"][0] == " ".join(f"{value:.6f}" for value in train.mean)
    assert rows["std"][0] == " ".join(f"{value:.6f}" for value in train.std)
    assert rows["std of an image"][0] == " ".join(f"{value:.6f}" for value in train.image_std)


@pytest.mark.parametrize("argv", [["data", "info"], ["data", "get", "cifar100"]])
def test_data_asks_for_the_published_set(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, small_npz: Path, argv: list[str]
) -> None:
    asked = {}
    small = sources.load(str(small_npz))

    def load(name: str, *, mirror: str = "") -> Dataset:
        asked[name] = mirror
        return small

    monkeypatch.setattr(sources, "load", load)
    text = printed(capsys, *argv, "--mirror", "https://host/")
    assert asked == {"cifar100": "https://host/"}
    assert ("20 training and 10 test images in " in text) == (argv[1] == "get")


def test_data_that_is_not_there(capsys: Captured) -> None:
    assert len(refused(capsys, "data", "info", "nowhere/images", code=3)) >= 1
    assert refused(capsys, "data", "info", "--mirror", "host") == [
        "command line: --mirror host: expected a URL (http://, https:// or file://), or nothing"
    ]


# ---- how commands end ----


def _command(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"act": SimpleNamespace(summary="act", run=lambda parser, argv: action())})


def _raise(error: BaseException) -> Any:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.FastcifarError("a\nb"), 1),
        (errors.DataError("a\nb"), 3),
        (errors.NonFiniteError("a\nb"), 5),
        (errors.InterruptedRunError("a\nb", 15), 143),
    ],
)
def test_our_errors_are_messages(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: errors.FastcifarError, code: int
) -> None:
    _command(monkeypatch, _raise(error))
    assert cli.main(["act"]) == code
    assert capsys.readouterr().err == "fastcifar: a\nfastcifar: b\n"
    monkeypatch.setenv("FASTCIFAR_DEBUG", "1")
    assert cli.main(["act"]) == code
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


def test_interrupted(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, _raise(KeyboardInterrupt()))
    assert refused(capsys, "act", code=130) == ["interrupted"]


def test_an_unforeseen_error_leaves_its_traceback(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _command(monkeypatch, _raise(KeyError("lr")))
    first, second = refused(capsys, "act", "--now", code=1)
    (path,) = tmp_path.glob("fastcifar-error-*.txt")
    assert first == "unexpected KeyError: 'lr'"
    assert second.startswith("this is a fault of fastcifar, please report it") and str(path) in second
    assert "['act', '--now']" in path.read_text() and "Traceback" in path.read_text()


def test_its_traceback_is_shown_where_it_cannot_be_saved(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    _command(monkeypatch, _raise(OSError(28, "No space left on device")))
    assert cli.main(["act"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "if that is no help, please report it, with the traceback above" in err


def test_a_broken_pipe_elsewhere_is_not_quiet(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, _raise(BrokenPipeError(32, "Broken pipe")))
    assert cli.main(["act"]) == 1
    assert "unexpected BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", ["--help", "presets", "train --help", "evaluate --help"])
def test_a_reader_that_leaves_early_is_no_error(monkeypatch: pytest.MonkeyPatch, argv: str, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    done = python_m(*argv.split(), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) in [(141, ""), (0, "")]  # argparse itself ignores it, if unbuffered


def test_as_a_program() -> None:
    done = python_m("train", "--preset", "quik")
    assert done.returncode == 2 and "did you mean quick?" in done.stderr and "Traceback" not in done.stderr
    assert python_m("--version").stdout == f"fastcifar {fastcifar.__version__}\n"


ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_any_text_can_be_written_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: `compare` died at its plus-minus sign where stdout is ASCII."""
    import codecs
    import io

    from fastcifar.text import ANY_STREAM

    assert "70.1 ± 0.2 … 猫 \udcff".encode("ascii", ANY_STREAM) == rb"70.1 +/- 0.2 ... \u732b \xff"
    assert "± 猫 \udcff".encode("utf-8", ANY_STREAM) == "± 猫 \\xff".encode()
    with pytest.raises(UnicodeDecodeError):
        codecs.decode(b"\xff", "utf-8", ANY_STREAM)
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, name, stream)
        assert cli.main(["--version"]) == 0
        print("± 猫", file=stream, flush=True)
        assert stream.buffer.getvalue().endswith(rb"+/- \u732b" + b"\n")  # type: ignore[attr-defined]
        monkeypatch.undo()


@pytest.mark.parametrize("variables", [ASCII, {"PYTHONOPTIMIZE": "2"}, {"LC_ALL": "C"}, {"PYTHONUTF8": "1"}])
def test_as_a_program_under_other_settings(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """The bug: the help was made from docstrings, which PYTHONOPTIMIZE=2 removes."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for argv in (["--help"], ["train", "--help"], ["evaluate", "--help"]):
        done = python_m(*argv)
        assert done.returncode == 0 and done.stderr == "" and "None" not in done.stdout
    done = python_m("train", "--preset", "猫")
    assert done.returncode == 2 and "there is no such preset" in done.stderr


def test_a_full_disk_under_stdout_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: an unforeseen error, printed twice: by the program, and by the interpreter when it ends."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    with open("/dev/full", "w") as full:
        done = python_m("--version", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "fastcifar: what was to be printed is lost: No space left on device\n"


def test_a_misspelt_variable_is_told(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DTA", "x")
    monkeypatch.setenv("FASTCIFAR_OF_SOMEBODY_ELSE", "x")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().err == "fastcifar: FASTCIFAR_DTA is not read; did you mean FASTCIFAR_DATA?\n"


def test_a_hint_can_be_pasted() -> None:
    import shlex

    from fastcifar.text import quoted

    for path in ("plain/run", "my runs/it's one", "-x", "~/a", "a$b;c"):
        (word,) = shlex.split(quoted(path))
        assert word in (path, f"./{path}")
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted(os.fsdecode(b'it' + bytes([39, 255, 92, 10])))}"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"it" + bytes([39, 255, 92, 10])


def test_stdout_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--nonesterov", "did you mean --no-nesterov?"),
        ("--disable-nesterov", "did you mean --no-nesterov?"),
        ("-lr 0.1", "did you mean --lr 0.1?"),
        ("-lr=0.1", "did you mean --lr 0.1?"),
        ("cifar10", "did you mean --data cifar10?"),
        ("CIFAR-100", "did you mean --data cifar100?"),
    ],
)
def test_what_other_programs_take_is_understood(capsys: Captured, words: str, hint: str) -> None:
    (line,) = refused(capsys, "train", *words.split())
    assert line.endswith(hint)


def test_a_settings_file_may_end_in_capitals(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "MY.TOML").write_text("[settings]\nlr = 0.25\n")
    assert "lr = 0.25" in printed(capsys, "train", "MY.TOML", "--print-config")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 6, "out of memory: close what else runs here"),
        (MemoryError("Unable to allocate 3 GiB"), 6, "(Unable to allocate 3 GiB)"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "ulimit -n 4096"),
    ],
)
def test_a_limit_of_the_system_is_no_fault_of_ours(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    (line,) = refused(capsys, "presets", code=code)
    assert words in line


def test_an_empty_word_is_no_preset(capsys: Captured) -> None:
    assert "an empty word names no preset" in refused(capsys, "train", "")[0]
    assert "an empty word names no preset" in refused(capsys, "train", "quick", " ")[0]


@pytest.mark.parametrize("words", ["train ~nosuch", "train ~nosuch/my.toml", "profile ~nosuch/x", "ablate ~nosuch"])
def test_a_word_in_the_home_of_nobody_is_told(capsys: Captured, words: str) -> None:
    assert all("unexpected FileNotFoundError" not in line for line in refused(capsys, *words.split()))


@pytest.mark.parametrize("command", ["presets", "doctor"])
def test_a_closed_stdout_ends_no_command(command: str) -> None:
    """The bug: with `>&-` sys.stdout is None, and asking whether it is a terminal ended with a traceback."""
    words = ["sh", "-c", f"{sys.executable} -m fastcifar {command} >&-"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "") and "unexpected" not in done.stderr


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = shlex.quote(str(tmp_path / "gone"))
    words = f"mkdir {gone} && cd {gone} && rmdir {gone} && "
    words += shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "fastcifar", "report", f"{tmp_path}/none"])
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    assert done.returncode == 2 and "unexpected" not in done.stderr


def test_no_message_acts_on_the_terminal(capsys: Captured) -> None:
    """The bug: ESC in the path of a run reached the terminal as it was."""
    assert cli.main(["evaluate", "a\x1b[31mb"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and "a\\x1b[31mb" in err
