"""The DALI loader beyond test_loaders.py: the message if DALI is missing."""

import sys
from pathlib import Path

import pytest
from tiny import tiny_config, write_tiny

from fastcifar import trainer
from fastcifar.errors import UsageError
from fastcifar.loaders import check_available
from fastcifar.loaders.dali import import_dali
from fastcifar.target import Target


def test_missing_dali_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[dali\]'"):
        import_dali()
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), loader="dali")
    with pytest.raises(UsageError, match="--loader resident"):
        trainer.train(config, tmp_path / "run", [])


def test_a_broken_dali_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "__init__.py").touch()
    (tmp_path / "nvidia" / "dali.py").write_text("raise OSError('libdali.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match="libdali.so"):
        import_dali()


def test_missing_dali_is_said_before_a_run_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[dali\]'"):
        check_available(Target(tiny_config(loader="dali")), 100)
    check_available(Target(tiny_config()), 100)
