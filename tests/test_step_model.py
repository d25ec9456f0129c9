"""The estimate of the CUDA step: its launches are the counted ones, and a measurement replaces a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import step_model  # noqa: E402
from step_model import step  # noqa: E402


def test_as_many_launches_as_counted() -> None:
    now = list(step(128))
    assert len(now) == 118
    forward = ("moments", "depthwise", "norm_relu", "small maps forward")
    assert sum(k.kind in forward for k in now) - 2 == 25, "without the last BN's two"
    assert len(list(step(1024))) == 146, "large batches take three kernels on small maps too"


def test_a_measurement_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"abc1234": {"sweep": 77.4, "batch": 1}}))
    step_model.main(["--measured", str(file)])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["sweep"][-1] == "77" and lines["merges"][-1] == "-" and lines["step"][-1] == "78"
    file.write_text(json.dumps({"abc1234": {"sweeep": 2}}))
    command = [sys.executable, step_model.__file__, "--measured", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "no kind sweeep; the kinds are batch, depthwise" in done.stderr


def test_the_page_shows_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    step_model.main([])
    assert capsys.readouterr().out.strip() in (ROOT / "docs/gpu.md").read_text()
