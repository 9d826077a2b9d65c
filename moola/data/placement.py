"""Windows around moves known by their bars: found in hindsight, or planted in a market."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import WINDOW
from moola.data.labels import (
    EveryMove,
    LabelSet,
    class_index,
    nonzero_counts,
    refuse_first,
    span_text,
)
from moola.features.arrays import Ints
from moola.specs import LabelConfig

# Column of a move's minute -> that of its bar.
MOVE_TIMES = {
    "state_start": "state_start_bar",
    "expansion_start": "start_bar",
    "expansion_end": "end_bar",
}


def place_windows(
    moves: pd.DataFrame,
    times: pd.DatetimeIndex,
    config: LabelConfig,
    *,
    source: str,
) -> LabelSet:
    """Moves as labelled windows of the bars that opened at `times`.

    `moves` has the columns label, state_start_bar, start_bar, end_bar, and may have clear_from and
    clear_to, as `moola.data.hindsight.hindsight_labels` explains them.

    A window holds the state and the whole expansion, and where `moves` has clear_from and clear_to,
    no stronger one: what a window's label is about must be in no doubt. Among the places left, the
    one taken is fixed by a hash of the minute the expansion starts in: all places are equally
    likely, so that no pointer can be guessed, and the same move lies at the same place however much
    history the series has. Raises DataError for a label that is not among the classes.
    """
    labels = class_index(moves["label"], config.classes, f"the {source} labels")
    start_bar = moves["start_bar"].to_numpy(np.int64)
    end_bar = moves["end_bar"].to_numpy(np.int64)

    state_start_bar = moves["state_start_bar"].to_numpy(np.int64)

    first = np.maximum(end_bar - WINDOW + 1, 0)
    last = np.minimum(state_start_bar, len(times) - WINDOW)
    too_long = first > last

    if "clear_from" in moves:
        first = np.maximum(first, moves["clear_from"].to_numpy(np.int64))
        last = np.minimum(last, moves["clear_to"].to_numpy(np.int64))

    fits = first <= last
    minutes = times[start_bar[fits]]
    anchor = _choose(first[fits], last[fits], minutes)

    return LabelSet(
        source=source,
        classes=config.classes,
        label_index=labels[fits],
        start=start_bar[fits] - anchor,
        end=end_bar[fits] - anchor,
        window_id=(f"{source}-" + minutes.strftime("%Y%m%dT%H%M")).to_numpy(object),
        anchor=anchor,
        first_anchor=first[fits],
        last_anchor=last[fits],
        state_bars=config.state_bars,
        mirror=config.mirrored_classes(),
        every_move=EveryMove(start_bar, end_bar),
        left_out=nonzero_counts(
            {
                f"state and expansion longer than {WINDOW} bars": int(too_long.sum()),
                "a stronger expansion in every window": int((~fits & ~too_long).sum()),
            }
        ),
    )


def planted_labels(
    moves: pd.DataFrame,
    times: pd.DatetimeIndex,
    config: LabelConfig,
) -> LabelSet:
    """`moves` of `moola.data.synthetic.Market` in the bars that opened at `times`.

    Raises DataError for a move that is not in the bars.
    """
    bars: dict[str, object] = {"label": moves["label"].to_numpy()}

    for minute_column, bar_column in MOVE_TIMES.items():
        minutes = pd.DatetimeIndex(moves[minute_column])
        rows = times.get_indexer(minutes)
        rule = f"{minute_column} must be a minute of the bars ({span_text(times)})"
        refuse_first(
            rows < 0,
            rule,
            minutes.astype(str),
            moves.index,
            "the planted moves",
        )
        bars[bar_column] = rows

    return place_windows(
        pd.DataFrame(bars),
        times,
        config,
        source="planted",
    )


def windows_around(
    start_bar: Ints,
    end_bar: Ints,
    times: pd.DatetimeIndex,
    state_bars: int,
) -> tuple[Ints, Ints, Ints]:
    """(anchor, first_anchor, last_anchor), each [n], of windows around moves known by their bars.

    A window holds the move and, where there is room, the `state_bars` bars before it. Where in its
    window a move lies is fixed by a hash of its minute, as in `place_windows`. Moves must be no
    longer than a window.
    """
    first = np.maximum(end_bar - WINDOW + 1, 0)
    latest = np.minimum(start_bar, len(times) - WINDOW)
    last = np.clip(start_bar - state_bars, first, latest)

    return _choose(first, last, times[start_bar]), first, last


def _choose(first: Ints, last: Ints, minutes: pd.DatetimeIndex) -> Ints:
    """[n] one of first..last for each move, by the minute that its expansion starts in."""
    epoch_minute = minutes.as_unit("s").asi8 // 60
    n_places = (last - first + 1).astype(np.uint64)
    steps = splitmix64(epoch_minute) % n_places

    return first + steps.astype(np.int64)


def splitmix64(values: Ints) -> NDArray[np.uint64]:
    """The same on every machine, and even in its low bits (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)

    return z ^ (z >> np.uint64(31))
