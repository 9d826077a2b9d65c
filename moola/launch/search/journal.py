"""The journal of a study in the store, by which any number of launchers share it.

    studies/<name>/journal/<n>.json    write-once: entry n

Entries are numbered without a gap and each is written once, so all launchers read them in one
order; who is second to a number takes the next one. Whoever can write to the store can write
entries: each is read once, within bounds, and what Optuna stumbles over is named by its key.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue, StringConstraints

from moola.errors import ArtifactError, ConflictError
from moola.runs.protocol import canonical_json
from moola.runs.records import Record, parse_record
from moola.store import Store
from moola.store.background import map_in_background

STUDIES = "studies"
MAX_ENTRIES = 100_000  # of a study
MAX_ENTRY_BYTES = 1 << 20
READERS = 12  # requests under way at a time
PLACES_IN_A_ROW = 200  # that others were quicker to take

StudyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class JournalEntry(Record):
    """One entry: an operation of Optuna's journal storage."""

    n: Annotated[int, Field(ge=1, le=MAX_ENTRIES)]
    study: StudyName
    log: dict[str, JsonValue]


class StoreJournal:
    """A journal as one launcher reads and writes it: a backend of Optuna's `JournalStorage`.

    Optuna is not imported for it. `replayed` is the number of the entry that Optuna is at: it stays
    where Optuna cannot go on.
    """

    def __init__(self, store: Store, study: str) -> None:
        self.store = store
        self.study = study
        self.replayed: int | None = None
        self._logs: list[dict[str, Any]] = []  # those read so far: they never change

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from a number on, the first is 0. Raises ArtifactError for damage."""
        self.replayed = None
        self.refresh()
        for number in range(log_number_from, len(self._logs)):
            self.replayed = number + 1
            yield self._logs[number]
        self.replayed = None

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Write operations, each behind all that are there.

        Raises ArtifactError where the journal is full.
        """
        for log in logs:
            for _ in range(PLACES_IN_A_ROW):
                if self._append(log):
                    break
                self.refresh()
            else:
                raise ArtifactError(
                    f"the journal of {self.study} in {self.store.url} is written to by others "
                    "without a pause: nothing could be added"
                )

    def refresh(self) -> None:
        """Read what was added. Raises ArtifactError for an entry that is damaged."""
        if not self._take([self._read(len(self._logs) + 1)]):
            return
        while True:  # there may be many more
            first = len(self._logs) + 1
            numbers = range(first, min(first + READERS, MAX_ENTRIES + 1))
            if not self._take(list(map_in_background(self._read, numbers, READERS))):
                return

    def _take(self, entries: Sequence[JournalEntry | None]) -> bool:
        """Take those before the first that is missing; were all there?"""
        for entry in entries:
            if entry is None:
                return False
            self._logs.append(entry.log)
        return bool(entries)

    def _read(self, n: int) -> JournalEntry | None:
        if n > MAX_ENTRIES:
            return None
        key = self.key(n)
        data = self.store.get_or_none(key, MAX_ENTRY_BYTES)
        if data is None:
            return None
        entry = parse_record(JournalEntry, data, f"{key} in {self.store.url}")
        if (entry.n, entry.study) != (n, self.study):
            raise ArtifactError(
                f"{key} in {self.store.url} is damaged: it is entry {entry.n} of {entry.study}"
            )
        return entry

    def _append(self, log: Mapping[str, Any]) -> bool:
        """Write the next entry; False if another launcher has written one meanwhile."""
        n = len(self._logs) + 1
        if n > MAX_ENTRIES:
            raise ArtifactError(
                f"the journal of {self.study} in {self.store.url} must have at most "
                f"{MAX_ENTRIES:,} entries, and is full: search under another --study NAME"
            )
        data = canonical_json({"schema": 1, "n": n, "study": self.study, "log": log})
        try:
            self.store.put_once(self.key(n), data)
        except ConflictError:
            return False
        self._logs.append(parse_record(JournalEntry, data, self.key(n)).log)
        return True

    def key(self, n: int) -> str:
        """Where entry n is."""
        return f"{STUDIES}/{self.study}/journal/{n:08d}.json"
