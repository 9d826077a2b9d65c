"""What the machines that one launcher has rented have cost, by its own monotonic clock.

Records in the store can be changed by whoever can write there. They may raise what a run has cost,
and so end it early; the ledger keeps them from lowering it.
"""

import time

SECONDS_PER_HOUR = 3600


class Ledger:
    """The price of each machine that was rented, and for how long it has been there."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[float, float]] = {}  # launch -> (USD per hour, start)
        self._ended: dict[int, float] = {}  # launch -> USD
        self._launches: set[int] = set()

    def requested(self, n: int) -> None:
        """A machine is asked for now for launch n: whatever the answer, there may be one."""
        self._launches.add(n)

    def rented(self, n: int, price_per_hour: float) -> None:
        """Launch n has a machine from now on."""
        self._running[n] = (price_per_hour, time.monotonic())

    def ended(self) -> None:
        """All machines have gone by now."""
        for n in self._running:
            self._ended[n] = self._cost_so_far(n)
        self._running.clear()

    def has_requested(self, n: int) -> bool:
        """Has this launcher asked for a machine for launch n?"""
        return n in self._launches

    def cost_of(self, n: int) -> float | None:
        """USD of launch n, whose machine has ended; None where this launcher rented none for it."""
        return self._ended.get(n)

    def spent(self) -> float:
        """USD so far."""
        return sum(self._ended.values()) + sum(map(self._cost_so_far, self._running))

    def _cost_so_far(self, n: int) -> float:
        price_per_hour, start = self._running[n]
        return price_per_hour * (time.monotonic() - start) / SECONDS_PER_HOUR
