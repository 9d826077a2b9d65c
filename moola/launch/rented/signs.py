"""The signs of life that a job leaves in the store, and how old they are by the store's own clock.

The clock of the machine that wrote a sign is not compared with this computer's. It is a second
witness only for one who looks once: a sign whose own time is days away from the store's is not
that of a running job, but was copied or forged.
"""

import time
from dataclasses import dataclass
from datetime import datetime

from moola.errors import ArtifactError
from moola.runs.launches import Launch
from moola.runs.protocol import HEARTBEAT, STATUS
from moola.runs.records import Heartbeat, State, Status, parse_record
from moola.store import Dated, Store

MOST_SKEW_S = 2 * 86_400.0  # between the clocks of a machine and of the store
MOST_FUTURE_S = 60.0  # of the store's own time of writing: clocks are set back at times
FOREVER_S = float("inf")


@dataclass(frozen=True)
class Sign:
    """A job's newest sign of life.

    time     when it was written, by the machine's clock; None for a damaged record
    damage   what is wrong with it
    """

    stored: Dated
    time: datetime | None
    damage: ArtifactError | None = None

    def silent_s(self) -> float | None:
        """Seconds since the sign, for one who looks once; infinite for one that proves nothing.

        None where the store does not tell its age.
        """
        age_s = self.stored.age_s
        if age_s is None or self.stored.written_s is None:
            return None
        if age_s < -MOST_FUTURE_S:
            return FOREVER_S
        if self.time is None:
            return age_s

        ahead_s = self.time.timestamp() - self.stored.written_s
        if ahead_s > MOST_SKEW_S:
            return FOREVER_S
        if ahead_s < -MOST_SKEW_S:
            return age_s - ahead_s
        return age_s


def last_sign(store: Store, launch: Launch) -> Sign | None:
    """The attempt's heartbeat; before the first one its status, if that is `running`.

    Raises ArtifactError for a damaged status.
    """
    heartbeat = store.get_dated(launch.key(HEARTBEAT))
    if heartbeat is not None:
        place = f"{launch.key(HEARTBEAT)} in {store.url}"
        try:
            return Sign(heartbeat, parse_record(Heartbeat, heartbeat.data, place).time)
        except ArtifactError as error:
            return Sign(heartbeat, None, error)

    status = store.get_dated(launch.key(STATUS))
    if status is None:
        return None
    record = parse_record(Status, status.data, f"{launch.key(STATUS)} in {store.url}")
    return Sign(status, record.time) if record.state is State.RUNNING else None


class Pulse:
    """How long a job has been silent, for one who looks again and again.

    A sign that changes is alive, whatever time stands in it. At the first look its age in the
    store counts; from then on the monotonic clock of this computer.
    """

    def __init__(self, store: Store, launch: Launch) -> None:
        self._store = store
        self._launch = launch
        self._last: tuple[str, bytes] | None = None
        self._last_at = time.monotonic()  # when it was written
        self.damage: ArtifactError | None = None  # of the newest sign

    def silent_s(self) -> float | None:
        """Seconds since the last sign; None while there has been none."""
        now = time.monotonic()
        sign = last_sign(self._store, self._launch)
        if sign is not None:
            seen = (sign.stored.etag, sign.stored.data)
            if self._last is None:
                self._last_at = now - max(sign.stored.age_s or 0.0, 0.0)
            elif seen != self._last:
                self._last_at = now
            self._last = seen
            self.damage = sign.damage

        return None if self._last is None else now - self._last_at
