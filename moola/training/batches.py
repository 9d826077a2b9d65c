"""Labelled windows, gathered from the bars' features a batch at a time; balanced and augmented.

No window is ever stored: a batch is one gather of [B, T] rows out of [n_bars, F].

A row is a place in the series, an offset a place in the window: a dataset knows rows, a batch
offsets.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from moola import WINDOW
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES
from moola.specs import STATE_BARS

Batch = dict[str, Any]
SCHEMA = {
    "x": (torch.float32, (WINDOW, N_FEATURES)),
    "valid_mask": (torch.bool, (WINDOW,)),
    "label": (torch.int64, ()),
    "start": (torch.int64, ()),  # offsets of the move's first and last bar
    "end": (torch.int64, ()),
}
NOT_MIRRORED = -1  # of a class that has a direction, and no class that it turns into
WINDOW_ID = "window_id"  # [B] what a message calls the window; no tensor

OPEN_NORM = FEATURE_NAMES.index("open_norm")
CLOSE_NORM = FEATURE_NAMES.index("close_norm")
BODY = FEATURE_NAMES.index("body_pct")
UPPER_WICK = FEATURE_NAMES.index("upper_wick_pct")
LOWER_WICK = FEATURE_NAMES.index("lower_wick_pct")


def _mirrored_name(name: str) -> str:
    """Upside down, what was measured from the swing high is measured from the swing low."""
    return name.replace("SH", "S?").replace("SL", "SH").replace("S?", "SL")


# range_z stays, and so does expansion_proxy: leg and body both change sign.
MIRRORED_ORDER = [FEATURE_NAMES.index(_mirrored_name(name)) for name in FEATURE_NAMES]


@dataclass(frozen=True)
class WindowDataset(Dataset[Batch]):
    """N labelled windows over the rows of `bars_11d`.

    rows                [n_bars, F] float32, or a memory map of it
    valid               [n_bars] bool
    window_row          [N] row of the window's first bar
    start_row, end_row  [N] rows of the move's first and last bar, both inclusive, inside the window
    label               [N] class, 0..K-1
    min_row, stop_row   [N] the window may be re-cut anywhere within rows [min_row, stop_row): its
                        split, or for a window that brought its own bars just those 105 rows, which
                        cannot be cut otherwise
    window_id           [N] what a message calls the window
    state_bars          bars before the move that a re-cut window keeps, where there is room
    mirrored_class      the class that each of 0..K-1 is upside down, NOT_MIRRORED where its windows
                        are never turned; None: every class is itself

    Raises DataError, naming the window, where one of these rules is broken.
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]
    window_row: NDArray[np.int64]
    start_row: NDArray[np.int64]
    end_row: NDArray[np.int64]
    label: NDArray[np.int64]
    min_row: NDArray[np.int64]
    stop_row: NDArray[np.int64]
    window_id: NDArray[Any]
    state_bars: int = STATE_BARS
    mirrored_class: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] != N_FEATURES or self.rows.dtype != np.float32:
            raise DataError(
                f"rows must be float32 [n_bars, {N_FEATURES}], "
                f"got {self.rows.dtype} {list(self.rows.shape)}"
            )
        if len(self.valid) != len(self.rows):
            raise DataError(f"valid must have {len(self.rows)} bars, got {len(self.valid)}")

        lengths = {name: len(column) for name, column in self._columns().items()}
        if set(lengths.values()) != {len(self)}:
            raise DataError(f"all columns must have {len(self)} windows, got {lengths}")

        in_range = (self.min_row <= self.window_row) & (self.window_row + WINDOW <= self.stop_row)
        in_rows = (self.min_row >= 0) & (self.stop_row <= len(self.rows))
        self._refuse(~(in_range & in_rows), "a window must lie within its rows")

        in_order = (self.window_row <= self.start_row) & (self.start_row <= self.end_row)
        in_window = self.end_row < self.window_row + WINDOW
        self._refuse(~(in_order & in_window), "a move must lie in its window, start <= end")
        self._refuse(self.label < 0, "a label must be 0 or above")
        if self.mirrored_class is not None:
            is_known = self.label < len(self.mirrored_class)
            self._refuse(~is_known, "a label must be one of mirrored_class")

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {
            "window_row": self.window_row,
            "start_row": self.start_row,
            "end_row": self.end_row,
            "min_row": self.min_row,
            "stop_row": self.stop_row,
            "label": self.label,
            WINDOW_ID: self.window_id,
        }

    def _refuse(self, broken: NDArray[np.bool_], rule: str) -> None:
        if not broken.any():
            return

        i = int(broken.argmax())
        columns = self._columns()
        window_id = columns.pop(WINDOW_ID)[i]
        values = {name: int(column[i]) for name, column in columns.items()}
        raise DataError(f"{rule}: {values} (window {window_id})")

    def __len__(self) -> int:
        return len(self.window_row)

    def __getitems__(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """The indices themselves: the loader's collate gathers all windows of a batch at once."""
        return np.asarray(indices, np.int64)

    def gather(
        self,
        indices: NDArray[np.int64],
        window_row: NDArray[np.int64] | None = None,
    ) -> Batch:
        """The batch of these windows, cut at `window_row` [B] if given: SCHEMA, and window_id."""
        cut = self.window_row[indices] if window_row is None else window_row
        bars = cut[:, None] + np.arange(WINDOW)  # [B, T]
        return {
            "x": torch.from_numpy(self.rows[bars]),  # [B, T, F]
            "valid_mask": torch.from_numpy(self.valid[bars]),
            "label": torch.from_numpy(self.label[indices]),
            "start": torch.from_numpy(self.start_row[indices] - cut),
            "end": torch.from_numpy(self.end_row[indices] - cut),
            WINDOW_ID: self.window_id[indices],
        }

    def recut(
        self,
        indices: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """[B] random first rows of windows that hold the move and, where there is room, its state.

        The state is the `state_bars` bars before the move.

        Always one of the places between min_row and stop_row; a window as short of room as that
        keeps the move only.
        """
        start = self.start_row[indices]
        end = self.end_row[indices]
        latest = np.minimum(start, self.stop_row[indices] - WINDOW)
        earliest = np.maximum(end - WINDOW + 1, self.min_row[indices])
        with_state = np.maximum(np.minimum(latest, start - self.state_bars), earliest)
        return np.asarray(rng.integers(earliest, with_state + 1))

    def upside_down(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B] the classes of windows that are turned upside down; NOT_MIRRORED for those that must
        not be.
        """
        label = self.label[indices]
        if self.mirrored_class is None:
            return label
        return np.array(self.mirrored_class, np.int64)[label]


def mirror(x: Tensor) -> Tensor:
    """[..., F] -> [..., F]: the features of the same bars with prices upside down, exactly."""
    body = x[..., BODY]
    flipped = x[..., MIRRORED_ORDER]

    # From the other end of the bar; not 1 - value, which is wrong for a bar without range, where
    # both are 0.
    flipped[..., OPEN_NORM] = x[..., UPPER_WICK] + body.clamp(min=0)
    flipped[..., CLOSE_NORM] = x[..., UPPER_WICK] + (-body).clamp(min=0)
    flipped[..., BODY] = -body
    flipped[..., UPPER_WICK] = x[..., LOWER_WICK]
    flipped[..., LOWER_WICK] = x[..., UPPER_WICK]

    return flipped


class WindowLoader(DataLoader[Batch]):
    """Batches of one dataset. What an epoch holds depends only on the seed and the epoch's number.

    `set_epoch` starts one; `skip` leaves out its first batches, for a run that is resumed in the
    middle of an epoch.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        collate: "Collate",
        sampler: WeightedRandomSampler | None,
        batch_size: int,
        pin_memory: bool,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            pin_memory=pin_memory,
            # Its own: iterating must not advance the generator that dropout draws from.
            generator=torch.Generator(),
        )
        self._collate = collate
        self._skip = 0
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Start epoch `epoch` at its batch number `skip`."""
        self._collate.begin_epoch(epoch)
        self._skip = skip
        if isinstance(self.sampler, WeightedRandomSampler):
            self.sampler.generator.manual_seed(_sampler_seed(self._collate.seed, epoch))

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Skipped batches are drawn all the same, so that the random numbers of the others stay the
        # same.
        for number, batch in enumerate(super().__iter__()):
            if number >= self._skip:
                yield batch


class Collate:
    """Indices [B] of the whole batch -> this process's share of it, augmented in training."""

    def __init__(
        self,
        dataset: WindowDataset,
        seed: int,
        *,
        recut: bool,
        mirrored: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.recut = recut
        self.mirrored = mirrored
        self.share = slice(rank, None, world_size)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Its random numbers are those of (seed, epoch)."""
        self.rng = np.random.default_rng((self.seed, epoch))

    def __call__(self, indices: Any) -> Batch:
        # Drawn for all processes alike, then shared out: the whole batch is the same for any number
        # of them.
        if self.recut:
            cut = self.dataset.recut(indices, self.rng)
        else:
            cut = self.dataset.window_row[indices]
        is_turned = (self.rng.random(len(indices)) < 0.5) & self.mirrored

        batch = self.dataset.gather(indices[self.share], cut[self.share])
        upside_down = self.dataset.upside_down(indices[self.share])
        flip = is_turned[self.share] & (upside_down != NOT_MIRRORED)
        if flip.any():
            batch["x"][flip] = mirror(batch["x"][flip])
            batch["label"][flip] = torch.from_numpy(upside_down[flip])

        return batch


def setup_optimized_dataloader(
    dataset: WindowDataset,
    batch_size: int = 32,
    *,
    train: bool = False,
    seed: int = 0,
    recut: bool = True,
    mirrored: bool = True,
    windows_per_epoch: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> WindowLoader:
    """Batches of `batch_size` windows, shared evenly among `world_size` processes.

    In training: windows drawn with replacement, weight 1 / count of the class, re-cut at random and
    mirrored at random if asked, where their class allows it; an epoch is `windows_per_epoch`
    windows (default: as many as there are), rounded up to whole batches. Otherwise every window
    once, in order, as labelled. Raises DataError for an empty set, a class without a window, or a
    batch that cannot be shared evenly.
    """
    if len(dataset) == 0:
        raise DataError("a loader needs at least one window, got 0")
    if batch_size < 1 or batch_size % world_size:
        raise DataError(
            f"batch_size must be a multiple of the {world_size} processes, got {batch_size}"
        )

    collate = Collate(
        dataset,
        seed,
        recut=train and recut,
        mirrored=train and mirrored,
        rank=rank,
        world_size=world_size,
    )
    sampler = None
    if train:
        sampler = _balanced_sampler(
            dataset,
            batch_size,
            windows_per_epoch or len(dataset),
        )

    return WindowLoader(dataset, collate, sampler, batch_size, pin_memory)


def _balanced_sampler(
    dataset: WindowDataset,
    batch_size: int,
    windows_per_epoch: int,
) -> WeightedRandomSampler:
    """Draws every class equally often, and whole batches."""
    weights = 1.0 / class_counts(dataset.label)[dataset.label]
    n_drawn = math.ceil(windows_per_epoch / batch_size) * batch_size
    return WeightedRandomSampler(
        weights.tolist(), n_drawn, replacement=True, generator=torch.Generator()
    )


def _sampler_seed(seed: int, epoch: int) -> int:
    """A seed below 2^63 that mixes the two."""
    (mixed,) = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return int(mixed >> np.uint64(1))


def class_counts(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K] windows per class. Raises DataError where a class has none."""
    counts = np.bincount(label)
    if (counts == 0).any():
        raise DataError(
            f"every class needs a window, class {int(counts.argmin())} has none "
            f"(counts {counts.tolist()})"
        )

    return counts


def validate_batch_schema(batch: Mapping[str, Any]) -> None:
    """Raise DataError unless `batch` is as SCHEMA has it, finite, and 0 <= start <= end <= 104.

    The message names the rule and the window.
    """
    names = (*SCHEMA, WINDOW_ID)
    missing = [name for name in names if name not in batch]
    if missing:
        raise DataError(f"a batch must have {', '.join(names)}; {', '.join(missing)} is missing")

    n_windows = len(batch[WINDOW_ID])
    for name, (dtype, shape) in SCHEMA.items():
        value = batch[name]
        expected_shape = [n_windows, *shape]
        if value.dtype != dtype or list(value.shape) != expected_shape:
            raise DataError(
                f"{name} must be {dtype} {expected_shape}, got {value.dtype} {list(value.shape)}"
            )

    finite = batch["x"].isfinite().flatten(1).all(dim=1)
    _refuse_samples(~finite, "x must be finite", batch)

    start = batch["start"]
    end = batch["end"]
    in_window = (start >= 0) & (start <= end) & (end < WINDOW)
    _refuse_samples(
        ~in_window,
        f"0 <= start <= end < {WINDOW}",
        batch,
    )
    _refuse_samples(
        batch["label"] < 0,
        "a label must be 0 or above",
        batch,
    )


def _refuse_samples(
    broken: Tensor,
    rule: str,
    batch: Mapping[str, Any],
) -> None:
    if not broken.any():
        return

    i = int(broken.int().argmax())
    values = {name: int(batch[name][i]) for name in ("label", "start", "end")}
    window_id = batch[WINDOW_ID][i]
    raise DataError(f"{rule}: {values} (sample {i} of the batch, window {window_id})")
