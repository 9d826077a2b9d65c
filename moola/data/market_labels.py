"""The labels of several feature sets: which set each points into, and all of them as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moola.data.feature_set import Series
from moola.data.label_files import SET_COLUMN, LabelFile
from moola.data.label_sources import labels_by_split, load_labels
from moola.data.labels import EveryMove, LabelSet, NoMoves, refuse_first
from moola.data.markets import MarketRows, folds_of_markets, market_of, market_ranges
from moola.errors import DataError
from moola.features.arrays import Ints
from moola.specs import COMPUTED_LABELS, NO_MOVE, LabelConfig, TrainSpec

LEAST_NAME = 4  # characters of the start of a run's id, after the job


def load_market_labels(
    config: LabelConfig,
    files: Mapping[str, LabelFile],
    series: Mapping[str, Series],
    markets: Sequence[MarketRows],
) -> LabelSet:
    """The labels of all markets, their rows among those of all; each from the bars of its own.

    files  by the market's name; none for labels that are no file. Raises DataError.
    """
    unread = {market.name for market in markets} ^ files.keys()
    if unread and (files or config.source not in COMPUTED_LABELS):
        raise DataError(
            f"each feature set must have a file of labels, and each file a set: "
            f"{', '.join(sorted(unread))} has only one of them (labels.source)"
        )
    for name, file in files.items():
        if file.has_own_bars:
            raise DataError(
                f"labels that carry their own bars are in no feature set: train on them alone, or "
                f"with one ({file.name}, for {name})"
            )

    by_market = []
    for market in markets:
        labels = load_labels(config, files.get(market.name), series[market.name])
        by_market.append(_moved(labels, market.first_row))

    return _joined(by_market)


def check_market_labels(
    spec: TrainSpec,
    files: Mapping[str, LabelFile],
    series: Mapping[str, Series],
    markets: Sequence[MarketRows],
) -> tuple[str, ...]:
    """Everything that can be wrong with the labels of several markets; -> warnings.

    Raises DataError.
    """
    labels = load_market_labels(spec.labels, files, series, markets)
    folds = folds_of_markets(series)
    parts, _ = labels_by_split(labels, market_ranges(markets), spec, folds)
    warnings = require_labels_of_each(parts, markets, are_drawn=spec.draws_labels)
    return (*warnings, *no_move_warnings(labels, markets))


def files_by_set(file: LabelFile, runs: Mapping[str, str]) -> dict[str, LabelFile]:
    """The rows that point into each feature set; `runs` are the sets' names and precompute runs.

    Rows keep their numbers. Raises DataError for a row that names none of the sets, and for a set
    that no row names.
    """
    if SET_COLUMN not in file.table or file.has_own_bars:
        raise DataError(
            f"labels of several feature sets must say which one they point into, in a column "
            f"{SET_COLUMN}: {_listed(runs)}; or give one file for each set ({file.name})"
        )

    values = file.table[SET_COLUMN]
    texts = dict.fromkeys(value for value in values if isinstance(value, str))
    sets = {value: _set_of(value, runs) for value in texts}
    named = values.map(lambda value: sets.get(value) if isinstance(value, str) else None)
    rule = f"{SET_COLUMN} must name one of the feature sets, {_listed(runs)}"
    refuse_first(named.isna().to_numpy(), rule, values.tolist(), values.index, file.name)

    pieces = {}
    for name in runs:
        table = file.table[(named == name).to_numpy()]
        if table.empty:
            raise DataError(
                f"each feature set must have labels: no row names {name} ({runs[name]}) in the "
                f"column {SET_COLUMN} of {file.name}; leave the set out, or label it"
            )
        pieces[name] = replace(file, table=table)

    return pieces


def require_labels_of_each(
    parts: Mapping[str, LabelSet],
    markets: Sequence[MarketRows],
    *,
    are_drawn: bool,
) -> tuple[str, ...]:
    """Warnings of markets that nothing is learned from, though they are judged.

    Raises DataError for one whose labels are in no split, though all are taken (not `are_drawn`):
    it would do nothing.
    """
    warnings = []
    counts = {split: _counts(part, markets) for split, part in parts.items()}
    for number, market in enumerate(markets):
        if not are_drawn and not sum(count[number] for count in counts.values()):
            raise DataError(
                f"each feature set must have labels in a split: those of {market.name} "
                f"({market.run}) are in none; see where the splits are cut, or leave the set out"
            )
        if not counts["train"][number]:
            warnings.append(
                f"nothing is learned from {market.name} ({market.run}): it has no label in train, "
                f"{counts['val'][number]} in val, {counts['test'][number]} in test"
            )

    return tuple(warnings)


def no_move_warnings(labels: LabelSet, markets: Sequence[MarketRows]) -> tuple[str, ...]:
    """A warning where only some of the markets have rows that say that there is no move."""
    if labels.no_moves is None:
        return ()

    row = labels.no_moves.first_bar
    counts = np.bincount(market_of(row, markets), minlength=len(markets))
    without = [market.name for market, count in zip(markets, counts, strict=True) if not count]
    if not without:
        return ()

    have = [market.name for market in markets if market.name not in without]
    return (
        f"only {', '.join(have)} has rows without a move (the label {NO_MOVE}): what is found in "
        f"{', '.join(without)} where nothing is labelled counts as unknown there, not as wrong",
    )


def _counts(labels: LabelSet, markets: Sequence[MarketRows]) -> Ints:
    """[markets] labels in each."""
    return np.bincount(market_of(labels.anchor, markets), minlength=len(markets))


def _set_of(value: str, runs: Mapping[str, str]) -> str | None:
    """The set of that name in any case, or the only one whose run's id starts so."""
    word = value.strip().casefold()
    for name in runs:
        if name.casefold() == word:
            return name

    is_long = len(word.partition("-")[2]) >= LEAST_NAME
    starting = [name for name, run in runs.items() if run.startswith(word)]
    return starting[0] if is_long and len(starting) == 1 else None


def _listed(runs: Mapping[str, str]) -> str:
    return ", ".join(name if name == run else f"{name} ({run})" for name, run in runs.items())


# --- as one ---------------------------------------------------------------------------------------


def _moved(labels: LabelSet, rows: int) -> LabelSet:
    """The same labels where their series begins so many rows later."""
    no_moves = labels.no_moves
    every_move = labels.every_move
    if no_moves is not None:
        no_moves = NoMoves(no_moves.first_bar + rows, no_moves.last_bar + rows)
    if every_move is not None:
        every_move = EveryMove(every_move.first_bar + rows, every_move.last_bar + rows)

    return replace(
        labels,
        anchor=labels.anchor + rows,
        first_anchor=labels.first_anchor + rows,
        last_anchor=labels.last_anchor + rows,
        no_moves=no_moves,
        every_move=every_move,
    )


def _joined(sets: Sequence[LabelSet]) -> LabelSet:
    """Anchored labels of one configuration, one set after the other."""
    left_out: dict[str, int] = {}
    for labels in sets:
        for reason, count in labels.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count

    no_moves = [labels.no_moves for labels in sets if labels.no_moves is not None]
    every_move = [labels.every_move for labels in sets if labels.every_move is not None]
    return replace(
        sets[0],
        source=", ".join(dict.fromkeys(labels.source for labels in sets)),
        label_index=np.concatenate([labels.label_index for labels in sets]),
        start=np.concatenate([labels.start for labels in sets]),
        end=np.concatenate([labels.end for labels in sets]),
        window_id=np.concatenate([labels.window_id for labels in sets]),
        anchor=np.concatenate([labels.anchor for labels in sets]),
        first_anchor=np.concatenate([labels.first_anchor for labels in sets]),
        last_anchor=np.concatenate([labels.last_anchor for labels in sets]),
        left_out=left_out,
        no_moves=_joined_no_moves(no_moves),
        every_move=_joined_every_move(every_move),
    )


def _joined_no_moves(stretches: Sequence[NoMoves]) -> NoMoves | None:
    if not stretches:
        return None
    return NoMoves(
        np.concatenate([each.first_bar for each in stretches]),
        np.concatenate([each.last_bar for each in stretches]),
    )


def _joined_every_move(moves: Sequence[EveryMove]) -> EveryMove | None:
    if not moves:
        return None
    return EveryMove(
        np.concatenate([each.first_bar for each in moves]),
        np.concatenate([each.last_bar for each in moves]),
    )
