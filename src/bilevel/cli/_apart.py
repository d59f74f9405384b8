"""Commands that read what others have made run in a process of their own.

The libraries that draw charts and hold models are compiled, and content that was made to do harm may
end the process they are in. The command then ends with exit code 3, in words. Where the system has no
fork, the command runs as it is.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from .._processes import end_with
from ._app import BAD_INPUT, note
from ._signals import signal_name, that_end

COMMANDS = {"score", "suggest", "report", "export", "collect"}


def run_apart() -> None:
    """Go on in a child if the command is one of these; the process itself waits, and ends alike."""
    if os.name != "posix" or not set(sys.argv[1:2]) & COMMANDS:
        return
    mine = os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # the terminal's signals come through the parent, once
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may print, after `stty tostop` too
        end_with(mine)
        return

    def pass_on(number: int, _: Any) -> None:
        os.kill(child, number)

    def wait_too(*_: Any) -> None:  # Ctrl-Z, until `fg` or `bg`
        os.kill(child, signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(mine, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, wait_too)
        os.kill(child, signal.SIGCONT)

    before = {n: signal.signal(n, pass_on) for n in that_end()}
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, wait_too)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, handler in before.items():
        signal.signal(number, handler)
    if code < 0:
        run = next((x for x in sys.argv[2:] if Path(x).is_dir()), "the run")
        note(
            f"the process that read {run} was ended by {signal_name(-code)}. A file of it "
            "(model.skops, scorer.skops, report.json), or another that was given, is damaged or was "
            "made to do harm: bring back a copy, or weigh again."
        )
        code = BAD_INPUT
    sys.exit(code)
