"""Where the labels of a file lie in the bars of a series."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from moola import WINDOW
from moola.data.label_times import to_utc
from moola.data.labels import LabelSet, refuse_first, span_text
from moola.data.placement import windows_around
from moola.errors import DataError
from moola.features.arrays import Flags, Ints
from moola.specs import LabelConfig


@dataclass(frozen=True)
class Places:
    """The series that a file's labels point into; `place` is the file's name, for messages.

    times    of its bars, UTC; None where there is none
    dropped  minutes whose rows were dropped from it
    """

    config: LabelConfig
    times: pd.DatetimeIndex | None
    dropped: Sequence[pd.Timestamp]
    place: str

    def of_windows(self, labels: LabelSet, window_start: "pd.Series[Any]") -> LabelSet:
        """The labels, whose start and end are offsets, at the windows that the file names."""
        times = self._times(window_start.name)
        anchor = self.anchors(window_start)
        bars_before_state = np.maximum(labels.start - labels.state_bars, 0)

        return replace(
            labels,
            anchor=anchor,
            first_anchor=np.maximum(anchor + labels.end - WINDOW + 1, 0),
            last_anchor=np.minimum(anchor + bars_before_state, len(times) - WINDOW),
        )

    def of_times(self, labels: LabelSet, table: pd.DataFrame) -> LabelSet:
        """The labels at the bars that `start` and `end` name, in windows that are cut around them.

        Raises DataError for a move that is longer than a window.
        """
        times = self._times("start")
        start_bar, end_bar = self.bars_of_times(table)
        n_bars = end_bar - start_bar + 1
        refuse_first(
            n_bars > WINDOW,
            f"a move must fit into a window of {WINDOW} bars",
            [f"{n} bars" for n in n_bars.tolist()],
            table.index,
            self.place,
        )

        anchor, first, last = windows_around(start_bar, end_bar, times, labels.state_bars)
        return replace(
            labels,
            start=start_bar - anchor,
            end=end_bar - anchor,
            anchor=anchor,
            first_anchor=first,
            last_anchor=last,
        )

    def bars_of_times(self, table: pd.DataFrame) -> tuple[Ints, Ints]:
        """(first bar, last bar), each [n], both included, of the rows' `start` and `end`."""
        start_bar = self._bars(table["start"])
        end_bar = self._bars(table["end"])

        spans = list(zip(table["start"].astype(str), table["end"].astype(str), strict=True))
        refuse_first(
            end_bar < start_bar,
            "start must be <= end",
            spans,
            table.index,
            self.place,
        )
        return start_bar, end_bar

    def anchors(self, window_start: "pd.Series[Any]") -> Ints:
        """[n] rows of the bars that whole windows without a dropped bar start at."""
        times = self._times(window_start.name)
        anchor = self._bars(window_start)
        values = [str(value) for value in window_start]

        def refuse(broken: Flags, rule: str) -> None:
            refuse_first(broken, rule, values, window_start.index, self.place)

        stop = anchor + WINDOW
        rule = f"a window needs {WINDOW} bars from window_start on ({span_text(times)})"
        refuse(stop > len(times), rule)

        lost = times[:0]
        if len(self.dropped):
            lost = pd.DatetimeIndex(list(self.dropped)).sort_values()
        lost_before = lost.searchsorted(times[anchor])
        lost_by_end = lost.searchsorted(times[stop - 1], side="right")
        refuse(
            lost_by_end > lost_before,
            "a labelled window must hold no dropped bar: window_start",
        )
        return anchor

    def _bars(self, column: "pd.Series[Any]") -> Ints:
        """[n] rows of the bars that opened at the minutes of a column."""
        times = self._times(column.name)
        utc = to_utc(column, self.config, self.place)
        bars = times.get_indexer(utc).astype(np.int64)

        is_off = bars < 0
        if is_off.any():
            values = [str(value) for value in column]
            first = int(np.argmax(is_off))
            rule = f"{column.name} must be a minute of the bars ({span_text(times)})"
            refuse_first(
                is_off,
                f"{rule}{_neighbours(utc[first], times)}",
                values,
                column.index,
                self.place,
            )
        return bars

    def _times(self, column: object) -> pd.DatetimeIndex:
        if self.times is None:
            raise DataError(f"{column} needs the bars it points into, got none ({self.place})")
        return self.times


def _neighbours(time: pd.Timestamp, times: pd.DatetimeIndex) -> str:
    """For messages: the bars before and after a time that lies between bars."""
    if not times[0] < time < times[-1]:  # NaT is nowhere
        return ""

    after = int(times.searchsorted(time))
    return f", whose next ones are {times[after - 1]:%Y-%m-%d %H:%M} and {times[after]:%H:%M}"
