"""The log of an attempt: numbered records, kept in the store as write-once chunks of JSON lines."""

import hashlib
import json
import logging
import threading

from moola.errors import ConflictError
from moola.runs.protocol import log_key
from moola.runs.records import LogEntry, cut
from moola.runs.redaction import RedactingFilter
from moola.store import Store, TooLargeError

MAX_CHUNK_BYTES = 4 << 20  # far above one line's


class NumberedFormatter(logging.Formatter):
    r"""`#12 INFO message`, one line each: the number by which a record is known in the chunks.

    0 stands for a record that is in no chunk; a line break becomes `\n`, a backslash `\\`.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\\", "\\\\").replace("\n", "\\n")
        sequence = getattr(record, "sequence", 0)
        return f"#{sequence} {record.levelname} {message}"


class LogChunks(logging.Handler):
    """Collects log records until they are written as one numbered, write-once chunk."""

    def __init__(self, store: Store, run_id: str, attempt_id: str) -> None:
        super().__init__()
        self.addFilter(RedactingFilter())
        self.sequence = 0  # the number of the last record
        self.entries: list[LogEntry] = []  # `logs` of the manifest

        self._store = store
        self._run_id = run_id
        self._attempt_id = attempt_id
        self._next_chunk = 1
        self._lines: list[bytes] = []
        self._unwritten: list[bytes] = []  # chunks
        self._write_lock = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        # logging holds this handler's lock here.
        self.sequence += 1
        record.sequence = self.sequence  # for NumberedFormatter

        line = {
            "seq": self.sequence,
            "time": record.created,
            "level": record.levelname,
            "message": cut(record.getMessage()),
        }
        self._lines.append(json.dumps(line).encode() + b"\n")

    def write(self) -> None:
        """Write what was logged since the last chunk, and nothing that comes meanwhile.

        So a busy log keeps no heartbeat waiting. Raises MoolaError. A chunk that could not be
        written is written again by the next call: its number is not passed over, for a reader
        stops at the first chunk that is missing.
        """
        with self._write_lock:
            self._write_chunks()
            self._unwritten = self._take_chunks()
            self._write_chunks()

    def _take_chunks(self) -> list[bytes]:
        """All lines there are, in chunks that a reader takes at once."""
        self.acquire()
        try:
            lines = self._lines
            self._lines = []
        finally:
            self.release()

        chunks: list[list[bytes]] = []
        free_bytes = 0
        for line in lines:
            if len(line) > free_bytes:
                chunks.append([])
                free_bytes = MAX_CHUNK_BYTES
            chunks[-1].append(line)
            free_bytes -= len(line)
        return [b"".join(chunk) for chunk in chunks]

    def _write_chunks(self) -> None:
        while self._unwritten:
            self._write_chunk(self._unwritten[0])
            del self._unwritten[0]

    def _write_chunk(self, data: bytes) -> None:
        key = log_key(self._run_id, self._attempt_id, self._next_chunk)
        try:
            self._store.put_once(key, data)
        except ConflictError:  # another process of this attempt has used the number
            self._next_chunk += 1
            raise

        self._next_chunk += 1
        self.entries.append(_entry(key, data))


def stored_log_entries(store: Store, run_id: str, attempt_id: str) -> list[LogEntry]:
    """`logs` of the manifest of an attempt that wrote none itself."""
    entries: list[LogEntry] = []

    while True:
        key = log_key(run_id, attempt_id, len(entries) + 1)
        try:
            data = store.get_or_none(key)
        except TooLargeError:  # no chunk of ours
            return entries
        if data is None:
            return entries
        entries.append(_entry(key, data))


def _entry(key: str, data: bytes) -> LogEntry:
    return LogEntry(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())
