"""Imports go one way, in the package and in each folder; the command line starts without heavy imports."""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastcifar import ops

ROOT = Path(__file__).resolve().parent.parent
ORDER = """
    errors text stats files paths signals ranks machine ops config spelling layers presets ui
    run.names run.encoding run.failure run.facts run.environment run.threads run.clock run.affinity run.telemetry
    run.schema run.finding run.metrics run.checkpoint run.predictions run.curves run.folder run.followed
    run.loggers run.planned
    data.notes data.accepted data.foreign data.paths data.dataset data.published data.decoded data.canonical data.cache
    data.pickles data.cifar_files data.archives data.images data.npz data.image_folder data.parquet data.layouts
    data.download data.procedural data.convert data.sources
    draws augment batch selfcheck target loaders model optim cpu engines session checkpoint evaluation prediction
    exporting trainer together
    measuring.process measuring.neighbour measuring.dry_run measuring.kernels measuring.layers
    measuring.timing measuring.roofs measuring.cell
    measuring.layer_times measuring.roofline measuring.roofline_chart measuring.profile_result measuring.profile_text
    measuring.profile measuring.grid measuring.ablation_results measuring.ablation_chart measuring.ablation_text
    measuring.ablation_progress measuring.ablation
    report studies.folder studies.grid studies.space studies.finding studies.plan studies.jobs studies.on_ray
    studies.search studies.progress studies.compare studies.conduct
    datasets api cli __main__
""".split()
"""A module imports only modules to its left. A name stands for a module, or for a folder and all modules in it."""


def place(module: str) -> int:
    """The index in ORDER of `module` or of the nearest folder above it that ORDER names."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ORDER:
            return ORDER.index(".".join(parts[:length]))
    raise AssertionError(f"a new module has no place in the order yet: {module}")


def imports_of(root: Path) -> dict[str, set[str]]:
    """For each module of the package under `root` the package's modules that it imports, anywhere in its code.

    The name of a folder stands for its `__init__`. The `__init__` of the package itself is left out.
    """
    package = root / "fastcifar"
    modules = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        modules[name] = path
    del modules[""]
    return {name: _imported(path, set(modules)) - {name} for name, path in modules.items()}


def _imported(path: Path, modules: set[str]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {name for name in inner if name.removeprefix("fastcifar.") in modules}
            names |= found or {node.module}
    return {name.removeprefix("fastcifar.") for name in names if name.startswith("fastcifar.")} & modules


def upward(imports: Mapping[str, set[str]]) -> list[str]:
    """The imports that go against ORDER."""
    return [f"{a} imports {b}" for a, used in imports.items() for b in used if place(b) > place(a)]


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle of imports; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, above: list[str]) -> list[str]:
        if module in above:
            return [*above[above.index(module) :], module]
        if module not in done:
            for used in imports[module]:
                if found := walk(used, [*above, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in imports if (found := walk(module, []))), [])


def test_imports_go_one_way() -> None:
    assert upward(imports_of(ROOT)) == []


def test_imports_have_no_circle() -> None:
    assert circle(imports_of(ROOT)) == []


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Makes a small package with three modules whose imports go one way."""
    for name, text in {
        "fastcifar/__init__.py": "",
        "fastcifar/data/__init__.py": "",
        "fastcifar/config.py": "import fastcifar.errors\n",
        "fastcifar/errors.py": "",
        "fastcifar/data/cache.py": "from fastcifar import config\n",
        "fastcifar/data/sources.py": "from fastcifar.data import cache\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_planted_imports_are_found(planted: Path) -> None:
    """The bug: the test looked only at the first part of a module's path, and not at imports inside functions."""
    assert upward(imports_of(planted)) == [] and circle(imports_of(planted)) == []
    (planted / "fastcifar/data/cache.py").write_text("def f():\n    from fastcifar.data.sources import load\n")
    assert upward(imports_of(planted)) == ["data.cache imports data.sources"]
    assert set(circle(imports_of(planted))) == {"data.cache", "data.sources"}
    (planted / "fastcifar/data/cache.py").write_text("")
    (planted / "fastcifar/errors.py").write_text("from fastcifar import config\n")
    assert upward(imports_of(planted)) == ["errors imports config"]


@pytest.mark.parametrize("statement", ["import fastcifar", "from fastcifar.cli.main import main; main(['--help'])"])
def test_start_imports_nothing_heavy(statement: str) -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'rich', 'matplotlib'}"
    script = f"{statement}\nimport sys\nprint(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT)
    assert done.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    """It takes at most 0.3 s of processor time, which other programs do not change (measured: 0.06 to 0.08 s)."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "fastcifar", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.3


@pytest.mark.skipif(not ops.available(), reason="the ops are not built")
def test_a_fused_run_does_without_the_compiler_of_torch() -> None:
    """torch.optim.Optimizer imports it, and backward(1) sympy: half of the time before the first step."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); from tiny import tiny_config, tiny_session\n"
        "with tiny_session(tiny_config(engine='fused', precision='bf16', mixup_alpha=0.2)) as session:\n"
        "    session.steps.warm_up(); session.steps.begin(1); session.steps.take(0)\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
