"""Use over time in a few points: when there is no room for one more, each two become one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moola.runs.records import MAX_USAGE_POINTS, Usage, UsageHistory

LONGEST_POINT_S = 1e7  # no run is at work for so long: somebody has put it there


@dataclass
class _Point:
    """What was measured in one point: sums and counts for the means, the most for memory."""

    cpu_cores: float = 0.0
    n_cpu: int = 0
    memory_mb: float = -1.0  # below 0: not known
    gpu: float = 0.0
    n_gpu: int = 0
    gpu_memory_mb: float = -1.0

    def add(self, usage: Usage) -> None:
        if usage.cpu_cores is not None:
            self.cpu_cores += usage.cpu_cores
            self.n_cpu += 1
        if usage.memory_mb is not None:
            self.memory_mb = max(self.memory_mb, usage.memory_mb)
        if usage.gpus:
            self.gpu += math.fsum(gpu.use for gpu in usage.gpus) / len(usage.gpus)
            self.n_gpu += 1
            in_use_mb = math.fsum(gpu.memory_mb for gpu in usage.gpus)
            self.gpu_memory_mb = max(self.gpu_memory_mb, in_use_mb)

    def merge(self, other: "_Point") -> None:
        """Make this point the two of them."""
        self.cpu_cores += other.cpu_cores
        self.n_cpu += other.n_cpu
        self.memory_mb = max(self.memory_mb, other.memory_mb)
        self.gpu += other.gpu
        self.n_gpu += other.n_gpu
        self.gpu_memory_mb = max(self.gpu_memory_mb, other.gpu_memory_mb)


class UsageRecorder:
    """Notes what is used, over all attempts of a run, in at most MAX_USAGE_POINTS points.

    `every_s` is the time that a point stands for at first, `now_s` the time by a monotonic clock.
    """

    def __init__(self, every_s: float, now_s: float) -> None:
        self._every_s = every_s
        self._start_s = now_s
        self._points: list[_Point] = []
        self._starts: list[int] = []
        self._earlier_s = 0.0  # that earlier attempts were at work
        self._begin()

    def go_on(self, earlier: UsageHistory) -> None:
        """Put what earlier attempts have noted in front. To be called before anything is noted."""
        if earlier.every_s > LONGEST_POINT_S:
            return
        least_s = self._every_s
        self._every_s = earlier.every_s
        self._points = _points_of(earlier)
        self._starts = list(earlier.starts)
        while self._every_s < least_s or len(self._points) >= MAX_USAGE_POINTS:
            self._halve()
        self._begin()

    def _begin(self) -> None:
        self._earlier_s = len(self._points) * self._every_s
        self._starts.append(len(self._points))

    def add(self, usage: Usage, now_s: float) -> None:
        """Note what is used now."""
        index = self._index(now_s)
        while index >= MAX_USAGE_POINTS:
            self._halve()
            index = self._index(now_s)
        while len(self._points) <= index:
            self._points.append(_Point())
        self._points[index].add(usage)

    def _index(self, now_s: float) -> int:
        return int((self._earlier_s + now_s - self._start_s) / self._every_s)

    def _halve(self) -> None:
        pairs = range(0, len(self._points), 2)
        for first in pairs:
            if first + 1 < len(self._points):
                self._points[first].merge(self._points[first + 1])
        self._points = [self._points[first] for first in pairs]
        self._starts = sorted({start // 2 for start in self._starts})
        self._every_s *= 2

    def history(self) -> UsageHistory | None:
        """What was noted; None where nothing was."""
        if not self._points:
            return None
        return UsageHistory(
            every_s=self._every_s,
            cpu_cores=tuple(_mean(point.cpu_cores, point.n_cpu) for point in self._points),
            memory_mb=tuple(_most(point.memory_mb) for point in self._points),
            gpu=tuple(_mean(point.gpu, point.n_gpu) for point in self._points),
            gpu_memory_mb=tuple(_most(point.gpu_memory_mb) for point in self._points),
            starts=tuple(start for start in self._starts if start < len(self._points)),
        )


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 2) if count else None


def _most(value: float) -> float | None:
    return float(round(value)) if value >= 0 else None


def _points_of(history: UsageHistory) -> list[_Point]:
    """The points of earlier attempts; each mean counts as one measurement."""
    rows = zip(
        history.cpu_cores, history.memory_mb, history.gpu, history.gpu_memory_mb, strict=True
    )
    return [_point_of(row) for row in rows]


def _point_of(row: Sequence[float | None]) -> _Point:
    cpu_cores, memory_mb, gpu, gpu_memory_mb = row
    return _Point(
        cpu_cores=cpu_cores or 0.0,
        n_cpu=int(cpu_cores is not None),
        memory_mb=-1.0 if memory_mb is None else memory_mb,
        gpu=gpu or 0.0,
        n_gpu=int(gpu is not None),
        gpu_memory_mb=-1.0 if gpu_memory_mb is None else gpu_memory_mb,
    )
