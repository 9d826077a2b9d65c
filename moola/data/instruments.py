"""Whether a series is of one instrument: contracts that follow each other are rolls, several at a
time are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moola.data.advice import command
from moola.data.column_names import INSTRUMENT_ID
from moola.data.columns import plain
from moola.data.loading import Instruments
from moola.data.series import MINUTE_NS
from moola.data.series_rows import Rows
from moola.errors import DataError
from moola.features.arrays import Flags, Ints

# Instruments that follow each other roll; mean bars between two changes. Less is a mixture.
MIN_ROLL_BARS = 60
LEAST_STRETCH = 30  # bars; a roll by volume may flap back for an hour
# A jump from close to open that many ATR wide, inside a session or over a daily halt, is a roll:
# EUR/USD has 8, NQ 4; a roll of NQ some 40.
ROLL_ATR = 15.0
ROLL_ATR_BARS = 20
ROLL_STAYS_BARS = (
    10  # the price stays at the new level, at least half of the jump; a bad print comes back
)
ROLL_STEP_MINUTES = 5
# A halt is no longer; after it, the bars behind the jump are looked at too, which are wider there.
# After a night or a weekend a jump may be the market's.
ROLL_HALT_MINUTES = 125
# Two contracts in turn: jumps of this many usual ranges, up and down in turn and alike, at so many
# of the steps.
ALTERNATION_RANGES = 8.0
ALTERNATION_FRACTION = 0.01
ALTERNATION_LEAST = 10
_CONTRACT = re.compile(
    r"(?P<root>[A-Z0-9/]{1,4}?)[ _.-]?([FGHJKMNQUVXZ]\d{1,4}|\d\d-\d\d)(?P<suffix>[.-]\w+)?"
)


# What vendors write around a contract: CME_MINI:NQH2024, /NQH24:XCME, @NQH24, NQH4 Index.
_AROUND = re.compile(r"^[@/]|^\w+:(?=\w)|:\w+$| (INDEX|COMDTY|CURNCY)$")


@dataclass(frozen=True)
class Roll:
    """The first bar of another contract. `before` and `after` are what the column says, or closes
    and opens.
    """

    minute: pd.Timestamp
    reason: str  # the column that changed, or "jump"
    before: str
    after: str
    jump: float  # from the last close to the open, in price


def rolls_of_columns(
    bars: Rows,
) -> tuple[Flags, list[Roll]]:
    """Rows at which a column that names the instrument changes. Raises DataError where it names
    several at a time.
    """
    is_roll = np.zeros(bars.n_rows, dtype=np.bool_)
    rolls: list[Roll] = []

    for column in _telling(bars.instruments):
        order = np.argsort(bars.times, kind="stable")
        codes = column.codes[order]
        changes = np.flatnonzero(codes[1:] != codes[:-1]) + 1
        if not _is_sequence(bars.times[order], changes, column):
            raise DataError(_several(bars, column))

        for change in changes[~is_roll[order[changes]]]:
            row = int(order[change])
            before = int(order[change - 1])
            is_roll[row] = True
            rolls.append(_roll(bars, row, before, column))
    return is_roll, rolls


def _telling(columns: Sequence[Instruments]) -> list[Instruments]:
    """The plainest column that names more than one instrument, and instrument_id where it does."""
    varying = [column for column in columns if len(np.unique(column.codes)) > 1]
    named = [column for column in varying if plain(column.column) != INSTRUMENT_ID]
    ids = [column for column in varying if plain(column.column) == INSTRUMENT_ID]
    return [*named[:1], *ids]


def _is_sequence(
    times: Ints,
    changes: Ints,
    column: Instruments,
) -> bool:
    """Whether instruments follow each other as the contracts of a continuous series do."""
    shares_minute = (times[changes] == times[changes - 1]).any()
    stretches = np.diff(changes)  # the first and the last may be cut short
    is_mixed = len(times) < MIN_ROLL_BARS * (len(changes) + 1) or (stretches < LEAST_STRETCH).any()
    if shares_minute or is_mixed:
        return False
    if all(name.replace("-", "").isdigit() for name in column.names):  # ids, or days of expiry
        return True

    roots = {_root(name) for name in column.names}
    return len(roots) == 1 and None not in roots and not (column.codes < 0).any()


def _root(name: str) -> str | None:
    """NQ of NQH4, NQZ2023, NQ 03-24, NQH24.CME; None for what is no futures contract, or a spread
    of two.
    """
    match = _CONTRACT.fullmatch(_AROUND.sub("", name.strip().upper()))
    is_spread = match is not None and _CONTRACT.fullmatch((match["suffix"] or "")[1:])
    return None if match is None or is_spread else match["root"]


def _several(bars: Rows, column: Instruments) -> str:
    """Which instruments a column names, with their rows, and how one is chosen."""
    counts = np.bincount(column.codes + 1, minlength=len(column.names) + 1)
    names = ("no value", *column.names)
    present = [(int(count), name) for count, name in zip(counts, names, strict=True) if count]
    present.sort(key=lambda item: -item[0])

    shown = ", ".join(f"{name} ({count} rows)" for count, name in present[:8])
    more = f" and {len(present) - 8} more" if len(present) > 8 else ""
    path = bars.loaded.path
    return (
        f"a file must hold the bars of one instrument, and the column {column.column} names "
        f"{len(present)}: "
        f"{shown}{more}; choose one ({path.name}): {command(path, symbol=present[0][1])}"
    )


def _roll(bars: Rows, row: int, before: int, column: Instruments | None) -> Roll:
    close, open_ = (
        float(bars.values[3, before]),
        float(bars.values[0, row]),
    )
    if column is None:
        return Roll(
            bars.minute(row),
            "jump",
            f"{close:g}",
            f"{open_:g}",
            open_ - close,
        )

    names = (*column.names, "no value")  # code -1 is the last
    old, new = names[column.codes[before]], names[column.codes[row]]
    return Roll(bars.minute(row), column.column, old, new, open_ - close)


def rolls_of_jumps(bars: Rows, wide: Ints, is_roll: Flags) -> tuple[Flags, list[Roll]]:
    """Adds rows at which the price jumps to another level inside a session or over a halt, as
    between unadjusted contracts.
    """
    rolls = []
    candidates = wide[(wide > ROLL_ATR_BARS) & ~is_roll[wide]]
    is_near = bars.steps(candidates) <= ROLL_HALT_MINUTES * MINUTE_NS

    for row in candidates[is_near].tolist():
        if _is_new_level(bars, row):
            is_roll[row] = True
            rolls.append(_roll(bars, row, row - 1, None))
    return is_roll, rolls


def wide_jumps(bars: Rows) -> Ints:
    """Rows whose jump could be ROLL_ATR wide: an ATR is at least the mean range of a few of its
    bars.
    """
    n_looked_at = 4
    _, high, low, _ = bars.values[:4]
    found = []

    for block in bars.blocks(overlap=1):
        ranges = high[block] - low[block]
        jumps = np.abs(bars.values[0, block][1:] - bars.values[3, block][:-1])
        wide = np.flatnonzero(jumps * (ROLL_ATR_BARS / ROLL_ATR) > ranges[:-1])
        found.append(wide + block.start + 1)

    rows = np.concatenate([np.empty(0, dtype=np.int64), *found])
    rows = rows[rows >= n_looked_at]
    looked_at = sum(high[rows - back] - low[rows - back] for back in range(1, n_looked_at + 1))
    is_wide = np.abs(bars.jumps(rows)) * (ROLL_ATR_BARS / ROLL_ATR) > looked_at
    candidates: Ints = rows[is_wide]
    return candidates


def _is_new_level(bars: Rows, row: int) -> bool:
    """Whether a jump is ROLL_ATR wide, and the price stays."""
    before = slice(row - ROLL_ATR_BARS, row)
    jump = float(bars.values[0, row] - bars.values[3, row - 1])
    _, high, low, close = bars.values[:4]
    previous = close[row - ROLL_ATR_BARS - 1 : row - 1]
    true_range = np.maximum(high[before], previous) - np.minimum(low[before], previous)
    atr = float(true_range.mean())

    if bars.times[row] - bars.times[row - 1] > ROLL_STEP_MINUTES * MINUTE_NS:
        after = slice(row, row + ROLL_ATR_BARS)
        atr = max(atr, float((high[after] - low[after]).mean()))
    if not atr > 0 or abs(jump) <= ROLL_ATR * atr:
        return False

    level_before = float(np.median(close[row - ROLL_STAYS_BARS : row]))
    level_after = float(np.median(close[row : row + ROLL_STAYS_BARS]))
    return (level_after - level_before) / jump >= 0.5


def refuse_mixture(bars: Rows, wide: Ints) -> None:
    """Raises DataError where the prices are those of two contracts in turn."""
    n_least = max(ALTERNATION_LEAST, ALTERNATION_FRACTION * bars.n_rows)
    way_out = (
        f"keep the rows of one, or name the column that tells them apart: "
        f"--set layout.symbol=COLUMN --symbol NAME ({bars.loaded.path.name})"
    )
    gaps = bars.gaps()
    same = gaps[bars.steps(gaps) == 0]

    if len(same) >= n_least:
        row = int(same[0])
        one, other = bars.values[3, row - 1], bars.values[3, row]
        raise DataError(
            f"a minute must have one bar, and {len(same)} have several: "
            f"{bars.minute(row):%Y-%m-%d %H:%M} UTC closes at "
            f"{one:g} and at {other:g}; two contracts in one file? {way_out}"
        )

    sample = slice(None, None, max(1, bars.n_rows // 10_000))
    ranges = bars.values[1, sample] - bars.values[2, sample]
    usual = float(np.median(ranges[ranges > 0])) if (ranges > 0).any() else np.inf
    jumps = bars.jumps(wide)
    is_wider = np.abs(jumps) > ALTERNATION_RANGES * usual
    wide, jumps = wide[is_wider], jumps[is_wider]
    if len(wide) < n_least:
        return

    sizes = np.abs(jumps)
    in_turn = np.mean(np.sign(jumps[1:]) * np.sign(jumps[:-1]) < 0)
    alike = np.mean(np.abs(sizes - np.median(sizes)) < 0.25 * np.median(sizes))
    if in_turn > 0.9 and alike > 0.8:
        row = int(wide[0])
        raise DataError(
            f"the prices must be those of one instrument, and {len(wide)} times they jump by some "
            f"{np.median(sizes):g} "
            f"up and down in turn, first at {bars.minute(row):%Y-%m-%d %H:%M} UTC "
            f"({bars.place(row)}): two contracts "
            f"in one file? {way_out}"
        )
