"""Every call that touches a file fails, once or from there on: a message, no traceback, and nothing saved is lost."""

import errno
import os

from laboratory import Lab, chosen
from processes import FAIL_FROM_THERE, FAIL_ONCE, Fault
from tally import Tally


def test_errors_of_the_disk(lab: Lab, every: bool, tally: Tally) -> None:
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True).check(0).calls
    faults = [Fault(FAIL_ONCE, call.number, errno.EIO) for call in calls]
    for call in calls:
        if call.takes_room:
            faults += [Fault(FAIL_FROM_THERE, call.number, errno.ENOSPC), Fault(FAIL_ONCE, call.number, errno.EDQUOT)]
    for fault in chosen(sorted(faults, key=lambda fault: fault.at), every, 6):
        with tally.attempt((calls[fault.at - 1].name, calls[fault.at - 1].path.name, fault)):
            run = lab.new()
            ended = lab.forge.run(*lab.train(run), root=run.parent, fault=fault).check(0, 1, 2, 4)
            assert ended.code == 0 or os.strerror(fault.error) in ended.err, ended.err
            lab.recover(run, saved=sum(call.switches for call in calls if call.number < fault.at))
    tally.check(at_least=300 if every else 6)


def test_errors_while_the_curves_are_drawn(lab: Lab, every: bool, tally: Tally) -> None:
    """No picture is worth a run."""
    run = lab.new()
    calls = lab.forge.run(*lab.train(run), root=run.parent, traced=True, drawn=True).check(0).calls
    drawing = [call for call in calls if call.path.stem == "curves"]
    for call in chosen(drawing, every, 1):
        with tally.attempt((call.name, call.path.name)):
            run = lab.new()
            fault = Fault(FAIL_ONCE, call.number, errno.EIO)
            ended = lab.forge.run(*lab.train(run), root=run.parent, fault=fault, drawn=True).check(0)
            assert "the curves were not drawn" in ended.err
            lab.compare(run, lab.whole())
    tally.check()
