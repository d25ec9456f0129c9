"""A process that is killed before or inside any call that changes a file: what was saved is there, bit for bit."""

import os
import random
import signal
from collections.abc import Sequence

import pytest
from laboratory import EPOCHS, STEPS, Lab, chosen
from processes import KILL_BEFORE, KILL_INSIDE, Call, Fault
from tally import Tally
from waiting import until

from fastcifar.run.names import POINTER

MIDDLE = STEPS + 1
"""The first step of the second epoch: a run that is cut after it goes on amid an epoch."""


def kills(calls: Sequence[Call]) -> list[Fault]:
    """Every moment at which a kill leaves something else on the disk, and some more."""
    changing = [call for call in calls if call.changes]
    halves = [call for call in changing if call.name == "write" and call.value > 1]
    faults = [Fault(KILL_BEFORE, call.number) for call in changing] + [Fault(KILL_INSIDE, c.number) for c in halves]
    return sorted(faults, key=lambda fault: (fault.at, fault.action))


def saved_before(calls: Sequence[Call], fault: Fault) -> int:
    """How many checkpoints were put in place before a kill."""
    return sum(call.switches for call in calls if call.number < fault.at)


def test_kills_of_a_run(lab: Lab, every: bool, tally: Tally) -> None:
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True).check(0).calls
    assert sum(call.switches for call in calls) == EPOCHS
    for fault in chosen(kills(calls), every, 6):
        with tally.attempt(fault):
            run = lab.new()
            ended = lab.forge.run(*lab.train(run), root=run.parent, fault=fault)
            assert ended.code == -signal.SIGKILL
            lab.recover(run, saved=saved_before(calls, fault))
    tally.check(at_least=110 if every else 6)


def test_kills_of_a_resumed_run(lab: Lab, every: bool, tally: Tally) -> None:
    before, _ = lab.cut(MIDDLE, signal.SIGTERM)
    run = lab.copy(before)
    calls = lab.forge.run("train", "--resume", run, root=run.parent, traced=True).check(0).calls
    for fault in chosen(kills(calls), every, 4):
        with tally.attempt(fault):
            run = lab.copy(before)
            ended = lab.forge.run("train", "--resume", run, root=run.parent, fault=fault)
            assert ended.code == -signal.SIGKILL
            lab.recover(run, saved=1 + saved_before(calls, fault))
    tally.check(at_least=60 if every else 4)


def test_kills_at_any_time(lab: Lab, every: bool, tally: Tally) -> None:
    choose = random.Random(0)
    for number in range(120 if every else 2):
        with tally.attempt(seconds := choose.uniform(0.0, 0.6)):
            run = lab.new()
            ended = lab.forge.run(*lab.train(run), sabotage=("die_after", seconds))
            assert ended.code in (0, -signal.SIGALRM), number
            lab.recover(run)
    tally.check()


def test_a_saver_that_writes_in_place_is_caught(lab: Lab) -> None:
    """The negative control: the campaign can fail."""
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True, sabotage=("in_place",)).check(0).calls
    writes = [call for call in calls if call.name == "write" and call.path.name == "tensors.safetensors"]
    assert len(writes) == EPOCHS
    lost = 0
    for fault in (Fault(KILL_INSIDE, writes[1].number), Fault(KILL_BEFORE, writes[1].number + 1)):
        run = lab.new()
        lab.forge.run(*lab.train(run), root=run.parent, fault=fault, sabotage=("in_place",))
        with pytest.raises(Exception, match="is damaged"):
            lab.recover(run, saved=1)
        lost += 1
    assert lost == 2


SETTINGS = {
    "eager": ("--engine", "eager"),
    "fused": ("--engine", "fused"),
    "bf16": ("--precision", "bf16"),
    "ema, mixup": ("--ema-decay", "0.9", "--mixup-alpha", "0.2"),
}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75}


def test_signals_at_every_step(lab: Lab, every: bool, tally: Tally) -> None:
    cuts = [(s, n, step) for s in SETTINGS for n in CODES for step in range(1, EPOCHS * STEPS)]
    for name, number, step in chosen(cuts, every, 4):
        with tally.attempt((name, number.name, step)):
            run, ended = lab.cut(step, number, *SETTINGS[name])
            ended.check(CODES[number])
            lab.recover(run, *SETTINGS[name], saved=step // STEPS)
    tally.check()


@pytest.mark.slow
def test_cuts_of_the_compiled_engine(lab: Lab, tally: Tally) -> None:
    compiled = ("--engine", "compiled")
    for step, number in ((1, signal.SIGTERM), (STEPS, signal.SIGUSR1), (STEPS + 1, signal.SIGINT)):
        with tally.attempt((step, number.name)):
            run, ended = lab.cut(step, number, *compiled)
            ended.check(CODES[number])
            lab.recover(run, *compiled, saved=step // STEPS)
    tally.check()


def test_readers_while_a_run_is_trained(lab: Lab, every: bool, tally: Tally) -> None:
    """evaluate, report and compare, of a run that saves a checkpoint every few milliseconds."""
    run = lab.new()
    process = lab.forge.start(*lab.train(run, "--epochs", "100000", "--eval-every", "100000"))
    until((run / POINTER).exists)
    for number in range(40 if every else 2):
        with tally.attempt(f"evaluate {number}"):
            lab.forge.run("evaluate", run).check(0)
    for number in range(5 if every else 1):
        with tally.attempt(f"report {number}"):
            lab.forge.run("report", run, lab.whole(), "--out", lab.new("report")).check(0)
        with tally.attempt(f"compare {number}"):
            lab.forge.run("compare", run, lab.whole()).check(0)
    os.kill(process, signal.SIGTERM)
    lab.forge.wait(process).check(143)
    tally.check()
