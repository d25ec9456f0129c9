"""A power cut after any call: what was not forced to disk is lost, wholly or in part, and no checkpoint is."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from disk import Disk, Tree, write
from laboratory import Lab, chosen
from processes import Call
from tally import Tally


def cuts(calls: Sequence[Call], root: Path) -> list[tuple[int, int, Tree]]:
    """The number of a call, how many checkpoints must be there after it, and what the disk may hold: no state twice."""
    disk, choose = Disk(root), random.Random(0)
    found: dict[tuple[object, ...], tuple[int, int, Tree]] = {}
    saved = switched = 0
    for call in calls:
        disk.do(call)
        switched += call.switches
        if call.name == "fsync" and call.path == root / "run":
            saved = switched
        for tree in disk.states(choose):
            found.setdefault((saved, *sorted(tree.items())), (call.number, saved, tree))
    return list(found.values())


def test_power_cuts(lab: Lab, every: bool, tally: Tally) -> None:
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True).check(0).calls
    states = cuts(calls, run.parent)
    for number, saved, tree in chosen(states, every, 5):
        with tally.attempt((number, sorted(tree))):
            again = lab.new()
            write(tree, again.parent)
            lab.recover(again, saved=saved)
    tally.check(at_least=150 if every else 5)


def test_a_saver_that_forces_nothing_to_disk_is_caught(lab: Lab) -> None:
    """The negative control."""
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True, sabotage=("unsynced",)).check(0).calls
    switch = [call for call in calls if call.switches][1].number
    states = [tree for number, _, tree in cuts(calls, run.parent) if number == switch and "run/config.toml" in tree]
    lost = 0
    for tree in states:
        again = lab.new()
        write(tree, again.parent)
        try:
            lab.recover(again, saved=1)
        except Exception:
            lost += 1
    assert states and lost, "every state of a disk to which nothing was forced went on"


def test_the_model_keeps_what_was_forced_to_disk_and_may_lose_the_rest() -> None:
    root = Path("/r")

    def call(name: str, path: str, content: bytes = b"", other: str = "") -> Call:
        return Call(1, name, root / path, root / other, len(content), content)

    steps = [call("create", "a"), call("write", "a", b"12"), call("fsync", "a"), call("fsync", "")]
    disk, choose = Disk(root), random.Random(0)
    for step in [*steps, call("create", "b"), call("write", "b", b"34"), call("rename", "b", other="a")]:
        disk.do(step)
    states = [tuple(sorted(tree.items())) for tree in disk.states(choose)]
    assert {(("a", b"12"),), (("a", b""),), (("a", b"34"),), (("a", b"\0\0"),), (("a", b"3"),)} <= set(states)
    disk.do(call("fsync", "a"))
    disk.do(call("fsync", ""))
    assert {tuple(sorted(tree.items())) for tree in disk.states(choose)} == {(("a", b"34"),)}


@pytest.mark.slow
def test_power_cuts_of_a_resumed_run(lab: Lab, tally: Tally) -> None:
    """What the first command left is on the disk; the second one is cut."""
    before, _ = lab.cut(3, 15)
    run = lab.copy(before)
    calls = lab.forge.run("train", "--resume", run, root=run.parent, traced=True).check(0).calls
    there = [Call(0, "mkdir", run, Path(), 0), Call(0, "fsync", run.parent, Path(), 0)]
    for path in sorted(before.rglob("*")):
        mine = run / path.relative_to(before)
        there.append(Call(0, "mkdir" if path.is_dir() else "create", mine, Path(), 0))
        if path.is_file():
            there.append(Call(0, "write", mine, Path(), 0, path.read_bytes()))
        there += [Call(0, "fsync", mine, Path(), 0), Call(0, "fsync", mine.parent, Path(), 0)]
    states = [state for state in cuts([*there, *calls], run.parent) if state[0]]
    for number, saved, tree in chosen(states, False, 120):
        with tally.attempt((number, sorted(tree))):
            again = lab.new()
            write(tree, again.parent)
            lab.recover(again, saved=saved + 1)
    tally.check(at_least=60)
