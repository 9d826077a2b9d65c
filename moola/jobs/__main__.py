"""A job's process: `python -m moola.jobs precompute` or `python -m moola.jobs train`.

MOOLA_STORE and MOOLA_RUN name the store and the run whose spec.json says what to do. With no
MOOLA_RUN the default spec of the job is submitted and run: the shipped one, or MOOLA_SPEC.
"""

import gc
import os
import signal
import sys

if __name__ == "__main__":
    # Until the job handles signals itself, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    # Thousands of imports make no garbage; without collections in between they take a sixth less
    # time. The job turns it on again once all is imported.
    gc.disable()

    from moola.jobs.leash import hold_leash

    hold_leash(os.environ)

    from moola.jobs.command import leave, main

    leave(main(sys.argv[1:]))
