"""The rows of a series while it is checked: some are left out, the others move to the front."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from moola import PRICES
from moola.data.blocks import BLOCK_ROWS
from moola.data.loading import Instruments, LoadedBars
from moola.data.series import MINUTE_NS
from moola.errors import DataError
from moola.features.arrays import Flags, Floats, Ints


class Rows:
    """The loaded rows that are still in; `keep` moves them to the front of the same arrays."""

    def __init__(self, loaded: LoadedBars) -> None:
        self.loaded = loaded
        self.times = loaded.times
        self.values = loaded.values
        self.instruments = loaded.instruments
        self.rows: Ints | None = None
        self._gaps: Ints | None = None

    @property
    def n_rows(self) -> int:
        return len(self.times)

    @property
    def volume(self) -> Floats | None:
        return self.values[len(PRICES)] if len(self.values) > len(PRICES) else None

    def keep(self, wanted: Flags) -> int:
        """Leaves the other rows out; how many there were."""
        n_kept = int(np.count_nonzero(wanted))
        n_left_out = self.n_rows - n_kept
        if n_left_out == 0:
            return 0

        self.rows = np.flatnonzero(wanted) if self.rows is None else self.rows[wanted]
        for column in (self.times, *self.values):
            column[:n_kept] = column[wanted]
        self.times = self.times[:n_kept]
        self.values = self.values[:, :n_kept]
        self._gaps = None
        self.instruments = tuple(
            Instruments(column.column, column.codes[wanted], column.names)
            for column in self.instruments
        )
        return n_left_out

    def keep_instrument(self, name: str | None) -> int:
        """Leaves out the rows of other instruments. Raises DataError where `name` has none."""
        if name is None:
            return 0
        for column in self.instruments:
            if name in column.names:
                return self.keep(column.codes == column.names.index(name))

        if not self.instruments:
            return 0  # chosen by the ticker in the columns' names
        column = self.instruments[0]
        raise DataError(
            f"no rows of {name}: the column {column.column} has {', '.join(column.names[:8])} "
            f"({self.loaded.path.name})"
        )

    def place(self, row: int) -> str:
        """Number and file of a row, for a message."""
        return self.loaded.place(row if self.rows is None else int(self.rows[row]))

    def minute(self, row: int) -> pd.Timestamp:
        return pd.Timestamp(int(self.times[row]), tz="UTC")

    def gaps(self) -> Ints:
        """Rows that are not one minute after the row before, in order."""
        if self._gaps is None:
            found = [
                np.flatnonzero(np.diff(self.times[block]) != MINUTE_NS) + block.start + 1
                for block in self.blocks(overlap=1)
            ]
            self._gaps = np.concatenate([np.empty(0, dtype=np.int64), *found])
        return self._gaps

    def steps(self, rows: Ints) -> Ints:
        """Nanoseconds between `rows` and the rows before them."""
        return self.times[rows] - self.times[rows - 1]

    def jumps(self, rows: Ints) -> Floats:
        """Opens of `rows` less the closes before them."""
        jumps: Floats = self.values[0, rows] - self.values[3, rows - 1]
        return jumps

    def blocks(self, overlap: int) -> Iterator[slice]:
        """Slices that fit into the processor's cache, each with the last `overlap` rows of the one
        before.
        """
        for start in range(0, self.n_rows, BLOCK_ROWS):
            yield slice(max(0, start - overlap), start + BLOCK_ROWS)
