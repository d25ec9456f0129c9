"""bench/gpu.sh with a stand-in for Python: what runs, and in which order; what fails or takes too long; the times."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from waiting import until

SCRIPT = Path(__file__).resolve().parents[1] / "bench/gpu.sh"
TOGETHER = ["train-fp16", "train-deterministic", "sanitize", "tests"]
STAGES = ["facts", "build", "check", "steps", "converge", *TOGETHER, "final", "speedrun", "ops", "profile"]

PYTHON = """#!/bin/bash
case "$*" in
  -) echo card; exit ;;
  *xdist*) exit 1 ;;
  *doctor*) echo "${DOCTOR:-ok       cuda check}" ;;
esac
echo "begin $*" >>calls
trap 'echo "interrupted $*" >>calls; exit 130' INT
[[ -z "$SLOW" || "$*" != *$SLOW* ]] || for _ in {1..100}; do sleep 0.1; done
[[ "$*" != *"epochs 2" ]] || sleep 0.5
echo "end $*" >>calls
[[ -z "$FAILS" || "$*" != *$FAILS* ]]
"""
SANITIZER = """#!/bin/bash
sleep 100 &
echo $! >>children
wait
"""


class Script:
    """A copy of the script in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("python", PYTHON)
        self.write("bench/gpu.sh", SCRIPT.read_text())
        self.write("data", "")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
        target.chmod(0o755)

    def limit(self, stage: str, seconds: int) -> None:
        path = self.root / "bench/gpu.sh"
        text, count = re.subn(rf"^(\w+ {stage}) \d+", rf"\1 {seconds}", path.read_text(), flags=re.M)
        assert count == 1
        path.write_text(text)

    def run(self, *stages: str, **env: str) -> subprocess.CompletedProcess[str]:
        there = {"PATH": f"{self.root}:/usr/bin:/bin", "PYTHON": str(self.root / "python"), **env}
        command = ["bench/gpu.sh", "data", *stages]
        return subprocess.run(command, cwd=self.root, env=there, capture_output=True, text=True, timeout=60)

    @property
    def times(self) -> dict[str, str]:
        """Stage -> what is written after its name: its seconds and, if it failed, its exit code."""
        lines = (self.root / "bench/results/card-stages.txt").read_text().splitlines()
        return {line[:20].strip(): line[20:].strip() for line in lines}

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_each_stage_has_its_time_and_nothing_runs_beside_what_is_timed(script: Script) -> None:
    done = script.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(script.times) == {*STAGES, "all of it"} and list(script.times)[-1] == "all of it"
    assert all(re.fullmatch(r"\d+ s", said) for said in script.times.values()), script.times
    assert all(f"{stage:<20}" in done.stdout for stage in STAGES)
    running: set[str] = set()
    most = 0
    for call in script.calls:
        event, _, what = call.partition(" ")
        running = running | {what} if event == "begin" else running - {what}
        most = max(most, len(running))
        assert len(running) <= 1 or all(re.search("test_ops_|fp16|deterministic", what) for what in running), running
    assert most > 1


def test_a_stage_that_fails_is_named_and_the_next_one_goes_on(script: Script) -> None:
    for fails, stage in (("fp16", "train-fp16"), ("test_training_step", "steps")):
        done = script.run(FAILS=fails)
        assert done.returncode == 1 and f"gpu.sh: failed: {stage} (logs" in done.stderr, done.stderr
        assert re.fullmatch(r"\d+ s, exit code 1", script.times[stage])
        assert set(script.times) == {*STAGES, "all of it"}


def test_a_problem_that_doctor_finds_fails_the_check(script: Script) -> None:
    assert script.run("check").returncode == 0
    done = script.run("check", DOCTOR="problem  cuda check   they failed their check")
    assert done.returncode == 1 and "failed: check" in done.stderr and "they failed" in done.stdout
    assert set(script.times) == {"check", "all of it"}


@pytest.mark.parametrize("stage, what", [("train-fp16", "fp16"), ("final", "final")])
def test_a_stage_that_takes_too_long_is_interrupted_and_can_write_what_it_has(
    script: Script, stage: str, what: str
) -> None:
    """Beside others too: Bash starts background jobs with SIGINT ignored, and `timeout` undoes that."""
    script.limit(stage, 1)
    done = script.run(stage.partition("-")[0], SLOW=what)
    assert done.returncode == 1 and f"failed: {stage}" in done.stderr, done.stdout + done.stderr
    assert any(call.startswith("interrupted") for call in script.calls)


def test_no_tool_of_the_sanitizer_runs_on_after_its_time(script: Script) -> None:
    script.write("compute-sanitizer", SANITIZER)
    script.limit("sanitize", 1)
    assert script.run("sanitize").returncode == 1
    children = [int(pid) for pid in (script.root / "children").read_text().split()]
    assert len(children) == 4
    until(lambda: not any(map(is_running, children)), seconds=5)


def is_running(pid: int) -> bool:
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False


def test_the_limits_of_the_usual_stages_are_15_minutes() -> None:
    found = dict(re.findall(r"^(?:stage|bench|run) (\S+) (\d+) ", SCRIPT.read_text(), re.M))
    limits = {stage: int(seconds) for stage, seconds in found.items()}
    assert {*STAGES, "ablate", "loaders"} == set(limits)
    beside = max(limits[stage] for stage in TOGETHER)
    assert sum(limits[stage] for stage in STAGES if stage not in TOGETHER) + beside <= 900


def test_what_it_cannot_run_is_refused(script: Script) -> None:
    assert "no stage nothing" in script.run("nothing").stderr
    done = subprocess.run([shutil.which("bash") or "bash", str(SCRIPT), os.devnull + "/none"], capture_output=True)
    assert done.returncode == 3 and b"does not exist" in done.stderr
