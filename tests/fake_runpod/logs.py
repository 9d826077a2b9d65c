"""A pod's log, and the stream of it: Server-Sent Events as they are really sent.

Headers are withheld until there is a line; frames end with LF; a frame's id is its timestamp
(nanoseconds for the container, whole seconds for the system where that still increases),
`Last-Event-ID` is exclusive, `since` inclusive; the stream never closes by itself, not even with
its pod: it only falls silent.
"""

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

SOURCES = ("container", "system")
POLL_S = 0.02
KEEPALIVE_S = 15.0  # on the fake's clock


@dataclass(frozen=True)
class Line:
    """One line; `ns` since 1970 is unique in its log and increases."""

    ns: int
    source: str
    text: str

    def frame(self) -> bytes:
        data = json.dumps({"source": self.source, "line": self.text, "ts": rfc3339(self.ns)})
        return f"id: {rfc3339(self.ns)}\ndata: {data}\n\n".encode()


class Log:
    """The newest `history` lines."""

    def __init__(self, history: int) -> None:
        self._lines: deque[Line] = deque(maxlen=history)
        self._lock = threading.Lock()
        self._last = 0

    def add(self, source: str, text: str) -> Line:
        now = time.time_ns()
        with self._lock:
            stamp = now // 10**9 * 10**9 if source == "system" else now
            if stamp <= self._last:
                stamp = self._last + 1
            self._last = stamp
            line = Line(stamp, source, text)
            self._lines.append(line)
        return line

    def lines(self, source: str | None = None) -> list[Line]:
        with self._lock:
            return [line for line in self._lines if source in (None, line.source)]

    def after(self, ns: int, source: str | None) -> list[Line]:
        """Lines behind a stamp; the newest are read first, since a follower is near the end."""
        with self._lock:
            found = []
            for line in reversed(self._lines):
                if line.ns <= ns:
                    break
                found.append(line)
        return [line for line in reversed(found) if source in (None, line.source)]

    def texts(self, source: str = "container") -> list[str]:
        return [line.text for line in self.lines(source)]

    def cursor(
        self, source: str | None, tail: int, since: int | None, last_event: int | None
    ) -> int:
        """The stamp behind which a stream starts."""
        if last_event is not None:
            return last_event
        if since is not None:
            return since - 1
        shown = self.lines(source)
        older = shown[: max(len(shown) - tail, 0)]
        return older[-1].ns if older else (0 if tail else self._last)


def rfc3339(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    return (
        f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{f'.{rest:09d}' if rest else ''}Z"
    )


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since 1970. ValueError for anything else."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text)
    if not match:
        raise ValueError(f"not RFC 3339: {text!r}")
    whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return int(whole.timestamp()) * 10**9 + int((match[2] or "").ljust(9, "0"))


class LogStream:
    """The ASGI answer. After `cut_after` frames the connection closes in the middle of the next."""

    def __init__(
        self,
        fake: "FakeRunpod",
        log: Log,
        source: str | None,
        cursor: int,
        cut_after: int | None = None,
    ) -> None:
        self._fake, self._log, self._source, self._cursor, self._cut_after = (
            fake,
            log,
            source,
            cursor,
            cut_after,
        )
        self.headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "Connection": "keep-alive",
            "X-Accel-Buffering": "no",
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        left = asyncio.ensure_future(_disconnect(receive))
        try:
            await self._stream(send, left)
        finally:
            left.cancel()

    async def _stream(self, send: Any, left: Any) -> None:
        clock = self._fake.clock
        started, sent, quiet_since = False, 0, clock.now()
        while not (left.done() or self._fake.stopping.is_set() or self._fake.partitioned):
            lines = self._log.after(self._cursor, self._source)
            if lines and not started:
                headers = [(k.lower().encode(), v.encode()) for k, v in self.headers.items()]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
            for chunk, last in self._chunks(lines, sent):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if last:
                    return  # without an end: the server closes the connection
            sent += len(lines)
            if lines:
                quiet_since = clock.now()
            elif started and clock.now() - quiet_since > KEEPALIVE_S:
                await send(
                    {"type": "http.response.body", "body": b": keepalive\n\n", "more_body": True}
                )
                quiet_since = clock.now()
            await asyncio.sleep(POLL_S)

    def _chunks(self, lines: list[Line], sent: int) -> Iterator[tuple[bytes, bool]]:
        """(frames to send, at most 100 at once; is the connection to be cut behind them?)."""
        whole = len(lines) if self._cut_after is None else min(len(lines), self._cut_after - sent)
        for first in range(0, whole, 100):
            yield b"".join(line.frame() for line in lines[first : min(first + 100, whole)]), False
        if whole < len(lines):
            frame = lines[whole].frame()
            yield frame[: len(frame) // 2], True
        elif lines:
            self._cursor = lines[-1].ns


async def _disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
