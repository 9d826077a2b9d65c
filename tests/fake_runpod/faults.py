"""The failure switches: what is to go wrong, with which calls, how often."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = (
    int
    | Literal[
        "no_capacity", "cut", "withheld", "slow", "pull_hangs", "pull_fails", "crash_loop", "drop"
    ]
)
POD_KINDS = (
    "pull_hangs",
    "pull_fails",
    "crash_loop",
)  # of the pod that a create makes, not of the answer


@dataclass
class Fault:
    """One switch.

    kind     an HTTP status, or
             no_capacity   no machine is free
             cut           the call is carried out, half of the answer arrives
             withheld      carried out, the answer comes `seconds` later
             slow          `seconds` later carried out and answered
             pull_hangs    of the pod that is made: its image is never fetched
             pull_fails    of the pod that is made: its image cannot be fetched, and the system log
                           says `text` again and again
             crash_loop    of the pod that is made: its container is killed again and again
             drop          a log stream is cut in the middle of the frame after `lines` whole ones
    on       create, list, get, delete, action, logs, catalog, billing, or * for all; of both APIs
    times    calls it still hits; None: until it is cleared
    machine  only creates that ask for this GPU type or CPU flavour
    done     for a status: the call is carried out all the same
    """

    kind: Kind
    on: str = "create"
    times: int | None = 1
    machine: str | None = None
    seconds: float = 3600.0
    lines: int = 0
    retry_after: int = 1
    done: bool = False
    text: str = ""


class Faults:
    """The switches that are on. The first that matches a call is used up by it."""

    def __init__(self) -> None:
        self._on: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._on.append(fault)
        return fault

    def clear(self, fault: Fault | None = None) -> None:
        """Take back one, or all."""
        with self._lock:
            self._on = [f for f in self._on if fault is not None and f is not fault]

    def of_answer(self, operation: str, machine: str | None = None) -> Fault | None:
        return self._take(
            operation, machine, lambda f: f.kind != "drop" and f.kind not in POD_KINDS
        )

    def of_pod(self, machine: str) -> Fault | None:
        return self._take("create", machine, lambda f: f.kind in POD_KINDS)

    def of_stream(self) -> Fault | None:
        return self._take("logs", None, lambda f: f.kind == "drop")

    def _take(
        self, operation: str, machine: str | None, wanted: Callable[[Fault], bool]
    ) -> Fault | None:
        with self._lock:
            for fault in self._on:
                fits = fault.on in (operation, "*") and fault.machine in (None, machine)
                if fits and wanted(fault) and fault.times != 0:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None
