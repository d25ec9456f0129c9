"""The estimate of the CUDA step: its launches are the counted ones, and a measurement replaces a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import step_model  # noqa: E402
from step_model import Assumptions, Cuts, step, table  # noqa: E402


def test_as_many_launches_as_counted() -> None:
    before, now = (list(step(128, cuts)) for cuts in (Cuts(False, False, False), Cuts()))
    assert (len(before), len(now)) == (148, 118)
    forward = ("moments", "depthwise", "norm_relu", "small maps forward")
    in_blocks = [sum(k.kind in forward for k in kernels) - 2 for kernels in (before, now)]  # without the last BN's two
    assert in_blocks == [39, 25], "and four merges: the emulator counts 43 and 29"
    assert len(list(step(1024, Cuts()))) == 146, "large batches take three kernels on small maps too"


def test_a_measurement_replaces_its_line(tmp_path: Path) -> None:
    estimated, mixed = (table(128, Cuts(), measured, Assumptions()) for measured in ({}, {"sweep": 1.5}))
    assert mixed["sweep"] == (*estimated["sweep"][:2], 1.5)
    assert {k: v for k, v in mixed.items() if k != "sweep"} == {k: v for k, v in estimated.items() if k != "sweep"}
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"sweep": 1.5, "sweeep": 2}))
    command = [sys.executable, step_model.__file__, "--measured", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "no kind sweeep; the kinds are batch, depthwise" in done.stderr


def test_the_page_shows_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    step_model.main([])
    assert capsys.readouterr().out.strip() in (ROOT / "docs/gpu.md").read_text()
