"""The heartbeat of an attempt: its progress and its log, written every few seconds."""

import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from moola.errors import ExpiredError, MoolaError
from moola.runs.binding import is_attempt_id
from moola.runs.environment import beat_s
from moola.runs.logs import LogChunks
from moola.runs.protocol import CANCEL, HEARTBEAT, attempt_key, run_key
from moola.runs.records import Heartbeat, UsageHistory, parse_record
from moola.runs.usage import CpuMeter, usage
from moola.runs.usage_history import UsageRecorder
from moola.store import Store

BEAT_S = 5.0  # a request costs money
LOCAL_BEAT_S = 0.5  # in a folder it does not
POINT_BEATS = 4  # that a point of the history stands for at first: none is without one
EARLIER_ATTEMPTS = 20  # of which the one heard of last tells what was used before


@dataclass
class Progress:
    """What the heartbeat shows: the stage, and how far it is, in `unit`."""

    stage: str = "start"
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""


class StageRate:
    """How quickly the stage gets on, per second, since it was first seen."""

    def __init__(self) -> None:
        self._stage = ""
        self._done = 0
        self._since_s = 0.0

    def of(self, progress: Progress, now_s: float) -> float | None:
        """The rate up to now; None where nothing was done since."""
        if progress.stage != self._stage or progress.done < self._done:
            self._stage = progress.stage
            self._done = progress.done
            self._since_s = now_s
            return None

        done = progress.done - self._done
        passed_s = now_s - self._since_s
        return float(f"{done / passed_s:.4g}") if done and passed_s > 0 else None


class HeartbeatWriter:
    """Writes heartbeat.json and the log's chunks, and looks for a cancel note, in a thread.

    Where the token of the store has expired the work is stopped, for nothing of it could be kept;
    `expired` then says so.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        attempt_id: str,
        log_chunks: LogChunks,
    ) -> None:
        self.progress = Progress()
        self.expired: ExpiredError | None = None

        self._store = store
        self._run_id = run_id
        self._attempt_id = attempt_id
        self._heartbeat_key = attempt_key(run_id, attempt_id, HEARTBEAT)
        self._cancel_key = attempt_key(run_id, attempt_id, CANCEL)
        self._log_chunks = log_chunks
        self._beat_s = _beat_s(store)
        self._rate = StageRate()
        self._cpu = CpuMeter()
        self._recorder = UsageRecorder(POINT_BEATS * self._beat_s, time.monotonic())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write no more; a beat under way is waited for."""
        self._stopped.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def history(self) -> UsageHistory | None:
        """Use up to now, over all attempts of the run; None before the first heartbeat."""
        return self._recorder.history()

    def _run(self) -> None:
        try:
            earlier = earlier_history(self._store, self._run_id, self._attempt_id)
        except MoolaError as error:  # it is for a picture
            print(f"the use of earlier attempts is not known: {error}", file=sys.stderr, flush=True)
        else:
            if earlier is not None:
                self._recorder.go_on(earlier)

        while not self._stopped.wait(self._beat_s):
            try:
                self._beat()
                if self._store.get_or_none(self._cancel_key) is not None:
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            except ExpiredError as error:
                self.expired = error
                os.kill(os.getpid(), signal.SIGINT)
                return
            except MoolaError as error:  # a missed beat is not worth a run; the next one follows
                print(f"heartbeat not written: {error}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        self._log_chunks.write()
        now_s = time.monotonic()
        progress = self.progress
        used = usage(self._cpu.cores())
        self._recorder.add(used, now_s)
        heartbeat = Heartbeat(
            time=datetime.now(UTC),
            last_log_sequence=self._log_chunks.sequence,
            **asdict(progress),
            rate=self._rate.of(progress, now_s),
            usage=used,
            history=self._recorder.history(),
        )
        self._store.put(self._heartbeat_key, heartbeat.to_json())


def earlier_history(store: Store, run_id: str, attempt_id: str) -> UsageHistory | None:
    """The history of the earlier attempt that was heard of last; None where there is none.

    By the store's clock. Raises ArtifactError where its heartbeat is damaged.
    """
    names = store.children(run_key(run_id, "attempts"))
    earlier = [name for name in names if is_attempt_id(name) and name != attempt_id]
    heard: list[tuple[float, str, bytes]] = []
    for name in earlier[-EARLIER_ATTEMPTS:]:
        key = attempt_key(run_id, name, HEARTBEAT)
        dated = store.get_dated(key)
        if dated is not None and dated.age_s is not None:
            heard.append((dated.age_s, key, dated.data))
    if not heard:
        return None

    _, key, data = min(heard)
    return parse_record(Heartbeat, data, f"{key} in {store.url}").history


def _beat_s(store: Store) -> float:
    """Seconds between heartbeats: MOOLA_BEAT_S, or what suits the store."""
    default_s = LOCAL_BEAT_S if store.url.startswith("file:") else BEAT_S
    return beat_s(os.environ, default_s)
