"""Several processes that train one run: the same result as one process, one writer, and an end for all."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several import free_port
from tiny import tiny_config, tiny_session, tiny_split, weights, write_tiny

from fastcifar.batch import Batch
from fastcifar.cli.main import main
from fastcifar.errors import UsageError
from fastcifar.loaders import build_loader
from fastcifar.ranks import STEPS_BETWEEN_QUESTIONS, Ranks
from fastcifar.run.folder import RunFolder
from fastcifar.target import Target

pytestmark = pytest.mark.machine

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"val_size": 24, "width_mult": 0.125, "batch_size": 16, "epochs": 3, "eval_batch_size": 20}
SETTINGS |= {"lr": 1e-8}  # The gradients show in the momenta, and roundings do not reach the next step's gradients.
SETTINGS |= {"device": "cpu", "precision": "fp32", "engine": "eager", "checkpoint_seconds": 0, "mixup_alpha": 0.4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 training images: 24 for validation, and 22 in a batch of 16 and one of 6. Busy machines send slowly."""
    return write_tiny(tmp_path_factory.mktemp("several") / "tiny.npz", num_train=46)


def words(data: Path, out: Path, **settings: Any) -> list[str]:
    pairs = [(f"--{key.replace('_', '-')}", str(value).lower()) for key, value in {**SETTINGS, **settings}.items()]
    return ["train", "--data", str(data), "--out", str(out), *[word for pair in pairs for word in pair]]


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(size: int, *command: str, **more: str) -> tuple[list[int], str]:
    """The exit codes of `fastcifar COMMAND` in `size` processes, and what all of them printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/several.py"), str(size), *command],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    codes = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("[")), "")
    assert codes, done.stdout
    return ast.literal_eval(codes), done.stdout


def losses(path: Path) -> list[float]:
    return [record[name] for record in RunFolder.open(path).records for name in ("train_loss", "val_loss")]


def assert_same_run(path: Path, other: Path, tolerance: float) -> None:
    """The same losses, momenta and predictions up to roundings in another order."""
    assert losses(path) == pytest.approx(losses(other), rel=tolerance)
    theirs = weights(other)
    squares = [0.0, 0.0]
    for name, tensor in weights(path).items():
        if name.startswith("optimizer."):
            squares[0] += float((tensor - theirs[name]).square().sum())
            squares[1] += float(theirs[name].square().sum())
        else:
            assert (tensor - theirs[name]).norm() <= tolerance * (theirs[name].norm() + 1), name
    assert 0 < squares[1] and squares[0] ** 0.5 <= 100 * tolerance * squares[1] ** 0.5
    test, their_test = RunFolder.open(path).predictions(), RunFolder.open(other).predictions()
    assert test is not None and their_test is not None
    assert np.array_equal(test["labels"], their_test["labels"])
    np.testing.assert_allclose(test["label_probability"], their_test["label_probability"], atol=tolerance)


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    out = data.parent / "alone"
    codes, printed = run(1, *words(data, out, sync_batch_norm=True, ema_decay=0.9), DOUBLE="1")
    assert codes == [0], printed
    return out


@pytest.mark.slow
def test_an_average_and_small_images_first_are_the_same(data: Path, tmp_path: Path) -> None:
    """In batches of 11 one process has 1 and the other 2 of the 23 images, of which both estimate the statistics."""
    settings = {"sync_batch_norm": True, "average_epochs": 2, "low_res_epochs": 1, "cutmix_alpha": 1.0, "cutout": 8}
    settings |= {"mixup_alpha": 0, "eval_batch_size": 11, "val_size": 23}
    for size in (1, 2):
        codes, printed = run(size, *words(data, tmp_path / str(size), **settings), DOUBLE="1")
        assert codes == [0] * size, printed
    assert_same_run(tmp_path / "2", tmp_path / "1", 1e-9)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_with_synchronised_batch_norm_they_train_what_one_process_trains(
    size: int, data: Path, alone: Path, tmp_path: Path
) -> None:
    """Also with a last batch of 6, of which four processes have 1, 2, 1 and 2 images."""
    out = tmp_path / "run"
    codes, printed = run(size, *words(data, out, sync_batch_norm=True, ema_decay=0.9), DOUBLE="1")
    assert codes == [0] * size and "Warning" not in printed, printed
    assert_same_run(out, alone, 1e-9)
    assert RunFolder.open(out).environment["processes"] == size
    assert printed.count("test accuracy") == 1, "one of them tells"


def test_the_fused_ops_train_what_the_eager_ops_train(data: Path, tmp_path: Path) -> None:
    """Both with batch norm over each process's part."""
    for engine in ("eager", "fused"):
        codes, printed = run(2, *words(data, tmp_path / engine, engine=engine))
        assert codes == [0, 0], printed
    assert_same_run(tmp_path / "fused", tmp_path / "eager", 1e-3)


@pytest.mark.slow
def test_one_that_is_killed_ends_all_and_another_number_goes_on(data: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = words(data, out, sync_batch_norm=True, ema_decay=0.9)
    codes, printed = run(2, *command, STOP=f"1:{int(signal.SIGKILL)}:{out}/metrics.jsonl:1", DOUBLE="1")
    assert codes == [1, -signal.SIGKILL], printed
    assert "fastcifar: another of the 2 processes has ended or cannot be reached" in printed
    assert "Traceback" not in printed and (out / "failure.json").exists()
    codes, printed = run(4, "train", "--resume", str(out), DOUBLE="1")
    assert codes == [0] * 4, printed
    assert "processes: 2 -> 4" in printed
    assert_same_run(out, alone, 1e-9)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop = f"1:{int(signal.SIGTERM)}:{out}/metrics.jsonl:2"
    codes, printed = run(2, *words(data, out, epochs=1000, batch_size=2), STOP=stop)
    assert codes == [143, 143] and printed.count("stopped by SIGTERM") == 1, printed
    _, state = RunFolder.open(out).load_checkpoint()
    assert state["epoch"] > 2 and state["step"] in (0, STEPS_BETWEEN_QUESTIONS)
    assert not (out / "failure.json").exists()


@pytest.mark.slow
def test_torchrun_starts_them(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastcifar"]
    done = subprocess.run(
        [*command, *words(data, out, epochs=1)], env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder.open(out).environment["processes"] == 2 and "Traceback" not in done.stderr


def parts(size: int, **settings: Any) -> list[list[Batch]]:
    """For each of `size` processes its batches of an epoch."""
    found = []
    for rank in range(size):
        target = Target(tiny_config(mixup_alpha=0.3, **settings), ranks=Ranks(rank, size, rank))
        loader = build_loader(tiny_split(54), target, lambda text: None)
        loader.begin(2)
        found.append([loader.batch(step) for step in range(loader.num_batches)])
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_each_has_its_part_of_each_batch(size: int) -> None:
    """Together they see the batches of one process: nothing twice, nothing dropped, the same MixUp."""
    (whole,) = parts(1)
    for batch, *own in zip(whole, *parts(size), strict=True):
        assert torch.equal(torch.cat([part.images for part in own]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in own]), batch.labels)
        assert batch.partner_labels is not None
        assert torch.equal(
            torch.cat([p.partner_labels for p in own if p.partner_labels is not None]), batch.partner_labels
        )
        assert sum(part.share * 1 for part in own) == size
        assert [part.share for part in own] == [len(part.labels) * size / len(batch.labels) for part in own]


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        ({"batch_size": 16}, Ranks(0, 3), "batch_size = 16: .* allowed: multiples of 3"),
        ({"device": "cuda:1"}, Ranks(1, 2, 1), "device = 'cuda:1'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], ranks: Ranks, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Target.of(tiny_config(**settings), ranks)


@pytest.mark.slow
def test_a_last_batch_too_small_for_all_is_refused(data: Path, tmp_path: Path) -> None:
    codes, printed = run(4, *words(data, tmp_path / "run", val_size=28))
    assert codes == [2] * 4 and "the last batch of an epoch has 2 of the 18 training images" in printed
    assert not (tmp_path / "run").exists() and printed.count("the last batch") == 1, printed


@pytest.mark.parametrize("engine", ["fused", "compiled"])
def test_synchronised_batch_norm_is_the_eager_engines(engine: str) -> None:
    from fastcifar.layers import resolve

    with pytest.raises(UsageError, match="sync_batch_norm = true is for engine = eager"):
        resolve(None, None, [("engine", engine), ("sync_batch_norm", "true")])
    settled = Target.of(tiny_config(engine="auto", sync_batch_norm=True))
    assert settled.config.engine == "eager"


@pytest.mark.parametrize(
    ("variables", "command", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["train"], "lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (
            {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            ["train"],
            "numbers",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            ["study", "quick"],
            "study: torchrun has started 2 processes, and only `train` works in several",
        ),
    ],
    ids=["half", "no number", "another command"],
)
def test_a_wrong_start_is_told(
    variables: dict[str, str], command: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_session_alone_needs_no_other_process() -> None:
    session = tiny_session(tiny_config(sync_batch_norm=True))
    with session:
        training = session.train()
        assert [next(training) for _ in range(7)] == [16] * 6 + [4]


@pytest.mark.slow
def test_the_compiled_engine_in_two_processes(data: Path, tmp_path: Path) -> None:
    for engine in ("eager", "compiled"):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "fastcifar",
        ]
        done = subprocess.run(
            [*command, *words(data, tmp_path / engine, engine=engine)],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "compiled", tmp_path / "eager", 1e-3)


NODES = """
set -eu
ip netns add {one}; ip netns add {two}
trap 'ip netns del {one}; ip netns del {two}' EXIT
ip link add {one} type veth peer name {two}
ip link set {one} netns {one}; ip link set {two} netns {two}
ip -n {one} addr add 10.77.0.1/24 dev {one}; ip -n {two} addr add 10.77.0.2/24 dev {two}
for n in {one} {two}; do ip -n $n link set lo up; ip -n $n link set $n up; done
cd {folder}
start="--nnodes=2 --nproc-per-node=2 --master-addr=10.77.0.1 --master-port={port} -m fastcifar"
GLOO_SOCKET_IFNAME={two} ip netns exec {two} {python} -m torch.distributed.run --node-rank=1 $start {words} &
GLOO_SOCKET_IFNAME={one} ip netns exec {one} {python} -m torch.distributed.run --node-rank=0 $start {words}
wait
"""


def may_make_namespaces() -> bool:
    try:
        return not subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True).returncode and os.getuid() == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_make_namespaces(), reason="this user may not make network namespaces")
def test_two_machines(data: Path, alone: Path, tmp_path: Path) -> None:
    """Two network namespaces with a cable between them, two processes in each, and TCP between all."""
    out = tmp_path / "run"
    names = {"one": f"fc1-{os.getpid() % 10000}", "two": f"fc2-{os.getpid() % 10000}"}
    command = " ".join(words(data, out, sync_batch_norm=True, ema_decay=0.9))
    script = NODES.format(**names, folder=tmp_path, python=sys.executable, port=free_port(), words=command)
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert RunFolder.open(out).environment["processes"] == 4
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)
