"""Imports go one way, and the command line starts without the heavy ones."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fastcifar"
ORDER = """
    errors statistics ops config environment curves display run study_plan study_progress store layouts download
    procedural sources draws augment loaders model optim clock device cpu telemetry engines state evaluation trainer
    measure kinds roofline profile grid ablation_chart ablate compare report study doctor cli __main__
""".split()
"""A module imports only modules to its left."""


def test_imports_go_one_way() -> None:
    found = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    del found[PACKAGE / "__init__.py"]
    assert not set(found.values()) - set(ORDER), "a new module has no place in the order yet"
    for path, module in found.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if names == ["fastcifar"] and isinstance(node, ast.ImportFrom):
                names = [f"fastcifar.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            used = {name.split(".")[1] for name in names if name.startswith("fastcifar.")} - {module, "__version__"}
            wrong = [name for name in used if ORDER.index(name) > ORDER.index(module)]
            assert not wrong, f"{path} imports {wrong}, which come after it in the order"


@pytest.mark.parametrize("statement", ["import fastcifar", "from fastcifar.cli import main; main(['--help'])"])
def test_start_imports_nothing_heavy(statement: str) -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'rich', 'matplotlib'}"
    script = f"{statement}\nimport sys\nprint(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=PACKAGE.parent)
    assert done.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    """Within 0.3 s (measured: 0.06 s, median of 10). The best of 5, because other programs may be running."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fastcifar", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=PACKAGE.parent
        )
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3
