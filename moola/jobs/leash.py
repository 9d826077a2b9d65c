"""Ends a job whose launcher has gone: one that was started for a node of a cluster, say.

The launcher holds the other end of the job's standard input, which the system closes with it.
"""

import os
import signal
import threading
from collections.abc import MutableMapping

LEASH = "MOOLA_LEASH"  # set for a job whose standard input is one
STOPS = {signal.SIGINT, signal.SIGTERM}


def hold_leash(environment: MutableMapping[str, str]) -> None:
    """From now on the end of standard input stops this process, where the environment says so.

    The variable is taken out: processes that the job starts have no leash of their own.
    """
    if environment.pop(LEASH, None) is None:
        return

    # A process of Ray, and so whatever it starts, has SIGINT blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Thread(target=_stop_at_the_end, daemon=True).start()


def _stop_at_the_end() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held at the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)
