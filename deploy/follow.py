"""The log of a run on a rented machine: the provider's live stream and the store's chunks, each line once, in order.

The stream is quick, and shows what happens before there is a job (the image's download); it drops, and it is gone with
the machine. The chunks are complete. Lines of the job carry their number in both: `#12 INFO message`.
"""

import contextlib
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from deploy.pods import LogLine, PodApi
from moola.errors import LaunchError, TryAgainError
from moola.runs import log_records
from moola.store import Store

NUMBERED = re.compile(r"#(\d+) ([A-Z]+) (.*)", re.DOTALL)
RECONNECT_S = (0.2, 15.0)  # first and longest pause after a dropped connection

Record = dict[str, Any]  # seq (None: not the job's own), time, level, message


class Merge:
    """Puts the two sources together. A numbered line waits until those before it have come from either."""

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, Record] = {}

    def live(self, line: LogLine) -> list[Record]:
        """What can be shown now that `line` came over the stream."""
        record = parse_line(line)
        if record["seq"] is None:
            return [record]
        return self._take([record])

    def stored(self, records: Iterable[Record]) -> list[Record]:
        """What can be shown now that these records of a chunk were read."""
        return self._take(records)

    def _take(self, records: Iterable[Record]) -> list[Record]:
        self._waiting |= {r["seq"]: r for r in records if r["seq"] >= self._next}
        ready = []
        while self._next in self._waiting:
            ready.append(self._waiting.pop(self._next))
            self._next += 1
        return ready


def parse_line(line: LogLine) -> Record:
    """A record of a live line; `seq` is None where it is no numbered line of the job."""
    found = NUMBERED.fullmatch(line.text) if line.source == "container" else None
    at = line.time.timestamp()
    if found is None:
        prefix = "machine: " if line.source == "system" else ""
        return {"seq": None, "time": at, "level": "INFO", "message": prefix + line.text}
    message = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], found[3])
    return {"seq": int(found[1]) or None, "time": at, "level": found[2], "message": message}  # 0: in no chunk


class LiveLines:
    """Reads a machine's live stream in a thread, through dropped connections, until it is closed."""

    def __init__(self, pods: PodApi, pod_id: str) -> None:
        self._pods, self._pod_id = pods, pod_id
        self._lines: queue.SimpleQueue[LogLine] = queue.SimpleQueue()
        self._closed = threading.Event()
        threading.Thread(target=self._read, name="live log", daemon=True).start()

    def close(self) -> None:
        """Stop reading; a connection that is open ends by itself."""
        self._closed.set()

    def take(self) -> list[LogLine]:
        """Lines that have come since the last call."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def _read(self) -> None:
        after, pause = None, RECONNECT_S[0]
        while not self._closed.is_set():
            try:
                for line in self._pods.logs(self._pod_id, after):
                    self._lines.put(line)
                    after, pause = line.id, RECONNECT_S[0]
                    if self._closed.is_set():
                        return
            except (NotImplementedError, LaunchError):
                return  # no such log, or not for this key: the chunks have it all
            except (OSError, TryAgainError):
                pass
            self._closed.wait(pause)
            pause = min(2 * pause, RECONNECT_S[1])


class RunLog:
    """What can be shown of an attempt's log, call by call."""

    def __init__(self, store: Store, run_id: str, attempt_id: str, live: LiveLines | None = None) -> None:
        self._store, self._run_id, self._attempt_id, self._live = store, run_id, attempt_id, live
        self._merge, self._chunk = Merge(), 1

    def lines(self) -> Iterator[Record]:
        """Everything that has come since the last call, in order."""
        for line in self._live.take() if self._live else []:
            yield from self._merge.live(line)
        for number, records in log_records(self._store, self._run_id, self._attempt_id, first_chunk=self._chunk):
            self._chunk = number + 1
            yield from self._merge.stored(records)

    def close(self) -> None:
        """Stop reading the live stream."""
        if self._live:
            self._live.close()
