"""`python -m tests.fake_runpod`: the fake for people.

It runs until Ctrl-C or SIGTERM; its pods end with it.
"""

import argparse
import shlex
import signal
import sys
import threading

from tests.fake_runpod import FakeRunpod, Pod
from tests.fake_runpod.fake import run_entry_point


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_runpod", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--speed", type=float, default=1.0, help="of its clock")
    parser.add_argument("--provision", type=float, default=2.0, help="seconds in PROVISIONING")
    parser.add_argument("--pull", type=float, default=3.0, help="seconds in STARTING")
    parser.add_argument(
        "--secret", action="append", default=[], metavar="NAME=VALUE", help="of the account"
    )
    parser.add_argument(
        "--command", help="what a pod runs; default: moola.jobs.entry with the pod's arguments"
    )
    parser.add_argument(
        "--fail",
        action="append",
        default=[],
        metavar="KIND",
        help="a switch, for the next create: 402, no_capacity, cut, ...",
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def command(pod: Pod) -> list[str]:
        return shlex.split(given.command) if given.command else run_entry_point(pod)

    known = dict(pair.split("=", 1) for pair in given.secret)
    times = {"speed": given.speed, "provision_s": given.provision, "pull_s": given.pull}
    with FakeRunpod(command, port=given.port, secrets=known, **times) as fake:
        for kind in given.fail:
            fake.fail(int(kind) if kind.isdecimal() else kind)
        print(f"export RUNPOD_API_BASE_URL={fake.url}")
        print(f"export RUNPOD_API_KEY={fake.api_key}")
        print(f"export RUNPOD_TERMINATE_API_KEY={fake.restricted_key}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
