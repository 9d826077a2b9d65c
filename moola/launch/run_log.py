"""The log of an attempt, from two sources: the machine's live stream and the store's chunks.

The stream is quick, and shows what happens before there is a job, such as the download of the
image; but its connection drops, and it ends with the machine. The chunks are complete. Each line is
given once, in order: lines of the job carry their number in both sources, `#12 INFO message`.
"""

import collections
import contextlib
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moola.errors import LaunchError, TryAgainError
from moola.providers.base import LogLine, PodApi
from moola.runs.reading import log_records
from moola.runs.records import LogLine as StoredLine
from moola.store import Store

NUMBERED_LINE = re.compile(r"#(?P<seq>\d+) (?P<level>[A-Z]+) (?P<message>.*)", re.DOTALL)
ESCAPED_CHARACTER = re.compile(r"\\(.)")
FIRST_RECONNECT_S = 0.2  # pause after a dropped connection; doubled each time
LONGEST_RECONNECT_S = 15.0
RECENT_LINES = 500  # of a live stream, kept beside those that wait to be taken


@dataclass(frozen=True)
class LogRecord:
    """One line of a log, with the time in Unix seconds.

    `seq` is the line's number in the job's log, None for lines that the job did not number.
    """

    seq: int | None
    time: float
    level: str
    message: str

    @classmethod
    def of_chunk(cls, line: StoredLine) -> "LogRecord":
        """A record of a stored chunk."""
        return cls(line.seq, line.time, line.level, line.message)

    @classmethod
    def of_live_line(cls, line: LogLine) -> "LogRecord":
        """A record of a line of the live stream; the machine's own lines are marked as such."""
        time_s = line.time.timestamp()
        if line.source == "system":
            return cls(None, time_s, "INFO", f"machine: {line.text}")

        numbered = NUMBERED_LINE.fullmatch(line.text)
        if numbered is None:
            return cls(None, time_s, "INFO", line.text)

        seq = int(numbered["seq"]) or None  # 0: a line of the job that is in no chunk
        message = ESCAPED_CHARACTER.sub(_unescape, numbered["message"])
        return cls(seq, time_s, numbered["level"], message)


def _unescape(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


class LogMerge:
    """Merges the two sources. A numbered line waits until all before it have come from either."""

    def __init__(self) -> None:
        self._next_seq = 1
        self._waiting: dict[int, LogRecord] = {}

    def add(self, records: Iterable[LogRecord]) -> list[LogRecord]:
        """The records that can be shown, now that these have come from either source."""
        ready = []
        for record in records:
            if record.seq is None:
                ready.append(record)
            elif record.seq >= self._next_seq:
                self._waiting[record.seq] = record
                ready += self._take_waiting()
        return ready

    def _take_waiting(self) -> Iterator[LogRecord]:
        while self._next_seq in self._waiting:
            yield self._waiting.pop(self._next_seq)
            self._next_seq += 1


class LiveLines:
    """Reads a machine's live stream in a thread, through dropped connections, until closed."""

    def __init__(self, pods: PodApi, pod_id: str) -> None:
        self._pods = pods
        self._pod_id = pod_id
        self._lines: queue.SimpleQueue[LogLine] = queue.SimpleQueue()
        self._recent: collections.deque[LogLine] = collections.deque(maxlen=RECENT_LINES)
        self._closed = threading.Event()
        threading.Thread(target=self._read, name="live log", daemon=True).start()

    def close(self) -> None:
        """Stop reading; a connection that is open ends by itself."""
        self._closed.set()

    def take(self) -> list[LogLine]:
        """The lines that have come since the last call."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def recent(self) -> tuple[LogLine, ...]:
        """The newest lines, whether taken or not."""
        return tuple(self._recent.copy())

    def _read(self) -> None:
        last_id = None
        pause_s = FIRST_RECONNECT_S

        while not self._closed.is_set():
            connected = time.monotonic()
            try:
                for line in self._pods.logs(self._pod_id, last_id):
                    self._lines.put(line)
                    self._recent.append(line)
                    last_id = line.id
                    pause_s = FIRST_RECONNECT_S
                    if self._closed.is_set():
                        return
            except (NotImplementedError, LaunchError):
                return  # there is no such log, or not for this key: the chunks have every line
            except (OSError, TryAgainError):
                pass

            if time.monotonic() - connected > pause_s:  # it was silent, not refused
                pause_s = FIRST_RECONNECT_S
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RECONNECT_S)


class RunLog:
    """The log of an attempt, read call by call."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        attempt_id: str,
        live_lines: LiveLines | None = None,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._attempt_id = attempt_id
        self._live_lines = live_lines
        self._merge = LogMerge()
        self._next_chunk = 1

    def lines(self) -> Iterator[LogRecord]:
        """Everything that has come since the last call, in order."""
        if self._live_lines is not None:
            live = map(LogRecord.of_live_line, self._live_lines.take())
            yield from self._merge.add(live)

        chunks = log_records(
            self._store, self._run_id, self._attempt_id, first_chunk=self._next_chunk
        )
        for number, records in chunks:
            self._next_chunk = number + 1
            yield from self._merge.add(map(LogRecord.of_chunk, records))

    def close(self) -> None:
        """Stop reading the live stream."""
        if self._live_lines is not None:
            self._live_lines.close()
