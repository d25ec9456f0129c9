"""`fastcifar completion`: what bash completes, and that every command and setting is in it."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastcifar.cli import main as cli
from fastcifar.config import NAMES


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "fastcifar.bash"
    text = subprocess.check_output([sys.executable, "-m", "fastcifar", "completion", "bash"], text=True)
    path.write_text(text)
    return path


def completed(script: Path, *words: str, cwd: Path) -> list[str]:
    """What bash offers for the last of the words."""
    line = shlex.join(["fastcifar", *words])
    code = f"{shlex.join(['source', str(script)])}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
    code += "_shtab_fastcifar; echo ${COMPREPLY[@]}"
    return subprocess.check_output(["bash", "-c", code], text=True, cwd=cwd).split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("tra",), ["train"]),
        (("train", "fi"), ["final", "final-alpha-0.5"]),
        (("train", "--preset", "fi"), ["final", "final-alpha-0.5"]),
        (("presets", "fi"), ["final", "final-alpha-0.5"]),
        (("study", "cosine", "fi"), ["final", "final-alpha-0.5"]),
        (("profile", "fi"), ["final", "final-alpha-0.5"]),
        (("profile", "--engine", "f"), ["fused"]),
        (("train", "--engine", "f"), ["fused"]),
        (("train", "--keep-best", "t"), ["true"]),
        (("evaluate", "run", "--split", "v"), ["val"]),
        (("train", "--data", "im"), ["images.npz"]),
        (("export", "my-"), ["my-run"]),
    ],
)
def test_bash_completes(script: Path, tmp_path: Path, words: tuple[str, ...], found: list[str]) -> None:
    (tmp_path / "images.npz").touch()
    (tmp_path / "my-run").mkdir()
    assert completed(script, *words, cwd=tmp_path) == found


def test_every_command_and_setting_is_completed(script: Path, tmp_path: Path) -> None:
    assert set(cli.COMMANDS) <= set(completed(script, "", cwd=tmp_path))
    options = {f"--{name.replace('_', '-')}" for name in NAMES}
    for command in ("train", "study", "ablate", "profile"):
        assert options <= set(completed(script, command, "--", cwd=tmp_path)), command


def test_the_help_has_commands_to_copy(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["completion", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    bash = lines.index("bash:")
    assert lines[bash + 1].endswith(" \\"), "the shell joins the two lines"
    assert lines[bash + 2].strip() == "> ~/.local/share/bash-completion/completions/fastcifar"
    assert "  fastcifar completion zsh > DIR/_fastcifar" in lines


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install 'fastcifar[completion]'" in capsys.readouterr().err
