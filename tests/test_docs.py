"""Every command in docs/ runs.

A page's commands run in the order of the page, in a folder with small data sets of the names that the pages use. A
training has one epoch of a small model on few images. Commands under `<!-- slow -->` take longer than the others.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_files import make_splits, python_files, write_archive, write_folder

from fastcifar.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ELSEWHERE = {
    "python.md": "tests/test_api.py runs it",
    "cluster.md": "needs a cluster",
    "reliability.md": "its own tests",
    "gpu.md": "estimates, and commands for a rented GPU",
    "log.md": "what was done once",
    "index.md": "no commands",
}
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name not in ELSEWHERE)
BLOCK = re.compile(r"(?:^<!-- (\w+).*? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"--epochs": "1", "--width-mult": "0.125", "--val-size": "20", "--data": "cifar-100-python.tar.gz"}
SMALL_BY_COMMAND = {
    "train": SMALL,
    "study": {**SMALL, "--seeds": "1"},
    "profile": {"--width-mult": "0.125", "--batch-size": "8"},
    "ablate": {
        "--width-mult": "0.125",
        "--batch-size": "8",
        "--engine": "eager,fused",
        "--repeats": "1",
        "--seconds": "0.2",
    },
}
"""What makes a command small, where it does not say it itself."""


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(`slow`, `elsewhere` or nothing; language; text) of each block of code of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert 2 * len(found) == len(re.findall("^```", text, re.MULTILINE)), f"{page}: a block was overlooked"
    return found


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def small(words: list[str]) -> list[str]:
    """The words of a command of fastcifar's, with few epochs and a small model."""
    if "--print-config" in words or words[:2] == ["study", "quick"]:
        return words
    given = {name: value for name, value in SMALL_BY_COMMAND.get(words[0], {}).items() if name not in words}
    return [*words, *[word for pair in given.items() for word in pair]]


def execute(words: list[str]) -> None:
    program, *rest = words
    if program == "fastcifar":
        assert main(small(rest)) == 0, words
    elif program == "torchrun":
        at = rest.index("fastcifar") + 1
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *rest[:at], *small(rest[at:])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "make":
        assert re.search(rf"^{re.escape(rest[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif program == ".":
        assert rest == [".venv/bin/activate"], words
    elif program == "pip":
        extras = re.findall(r"fastcifar\[(.*?)\]", " ".join(rest))
        known = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
        assert rest[0] == "install" and all(f"\n{name} = [" in known for group in extras for name in group.split(","))
    else:
        raise AssertionError(f"{words}: a command that no test knows how to run")


def run_page(page: str, *, slow: bool) -> None:
    for mark, language, text in blocks(page):
        if mark == "elsewhere" or (mark == "slow" and not slow):
            continue
        if language == "sh":
            for words in commands(text):
                execute(words)
        elif language == "python":
            exec(compile(text, page, "exec"), {})
        elif language == "toml":
            Path(text.partition("\n")[0].removeprefix("# ")).write_text(text)
        else:
            assert language == "text", f"{page}: a block needs a language: sh, python, toml or text"


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None) -> None:
    """A working folder with the data sets of the pages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    splits = make_splits()
    write_archive(tmp_path / "cifar-100-python.tar.gz", python_files(splits), "cifar-100-python")
    write_folder(tmp_path / "pictures", splits)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_quick_commands_of_a_page(page: str, _folder: None, capsys: Any) -> None:
    run_page(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(mark == "slow" for mark, *_ in blocks(page))])
def test_all_commands_of_a_page(page: str, _folder: None) -> None:
    run_page(page, slow=True)


def test_a_command_that_fails_is_found(_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("fastcifar trian", "make nothing", "pip install 'fastcifar[nothing]'", "rm -rf /"):
        with pytest.raises(AssertionError):
            execute(shlex.split(words))


def test_each_page_is_in_the_site_and_in_the_list() -> None:
    site, index = (ROOT / "properdocs.yml").read_text(), (DOCS / "index.md").read_text()
    for path in DOCS.glob("*.md"):
        assert path.name in site and (path.name == "index.md" or f"({path.name})" in index), path.name
