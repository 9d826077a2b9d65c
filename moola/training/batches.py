"""Labelled windows, gathered from the bars' features a batch at a time; balanced and augmented in training.

No window is ever stored: a batch is one gather of [B, T] rows out of [n_bars, F].
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

Batch = dict[str, Any]
STATE_BARS = 24  # bars before the move that a re-cut window keeps: the state that names its class
SCHEMA = {
    "x": (torch.float32, (WINDOW, N_FEATURES)),
    "valid_mask": (torch.bool, (WINDOW,)),
    "label": (torch.int64, ()),
    "start": (torch.int64, ()),
    "end": (torch.int64, ()),
}
OPEN, CLOSE, BODY, UPPER, LOWER = (
    FEATURE_NAMES.index(f) for f in ("open_norm", "close_norm", "body_pct", "upper_wick_pct", "lower_wick_pct")
)
# Upside down, what was measured from the swing high is measured from the swing low. range_z stays, and so does
# expansion_proxy: leg and body both change sign.
MIRRORED_ORDER = [
    FEATURE_NAMES.index(f.replace("SH", "S?").replace("SL", "SH").replace("S?", "SL")) for f in FEATURE_NAMES
]


@dataclass(frozen=True)
class WindowDataset(Dataset[Batch]):
    """N labelled windows over the rows of `bars_11d`. Raises DataError where a rule below is broken, with the window.

    rows           [n_bars, F] float32, or a memory map of it
    valid          [n_bars] bool
    window_start   [N] row of the window's first bar
    start, end     [N] rows of the move's first and last bar, both inclusive, inside the window
    label          [N] class, 0..K-1
    first, stop    [N] the window may be re-cut anywhere within rows [first, stop): its split, or for a window that
                   brought its own bars just those 105 rows, which cannot be cut otherwise
    window_id      [N] what a message calls the window
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]
    window_start: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    label: NDArray[np.int64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    window_id: NDArray[Any]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] != N_FEATURES or self.rows.dtype != np.float32:
            raise DataError(
                f"rows must be float32 [n_bars, {N_FEATURES}], got {self.rows.dtype} {list(self.rows.shape)}"
            )
        lengths = {name: len(getattr(self, name)) for name in ("start", "end", "label", "first", "stop", "window_id")}
        if set(lengths.values()) != {len(self.window_start)} or len(self.valid) != len(self.rows):
            raise DataError(f"all columns must have {len(self.window_start)} windows, got {lengths}")
        inside = (self.first <= self.window_start) & (self.window_start + WINDOW <= self.stop)
        self._refuse(~inside | (self.first < 0) | (self.stop > len(self.rows)), "a window must lie within its rows")
        held = (self.window_start <= self.start) & (self.start <= self.end) & (self.end < self.window_start + WINDOW)
        self._refuse(~held, "a move must lie in its window, start <= end")
        self._refuse(self.label < 0, "a label must be 0 or above")

    def _refuse(self, broken: NDArray[np.bool_], rule: str) -> None:
        if broken.any():
            i = int(broken.argmax())
            values = {
                name: int(getattr(self, name)[i]) for name in ("window_start", "start", "end", "first", "stop", "label")
            }
            raise DataError(f"{rule}: {values} (window {self.window_id[i]})")

    def __len__(self) -> int:
        return len(self.label)

    def __getitems__(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """The indices themselves: windows are gathered by the loader's collate, all of a batch at once."""
        return np.asarray(indices, np.int64)

    def subset(self, indices: NDArray[Any]) -> "WindowDataset":
        """The windows at `indices` (numbers or a mask), over the same rows."""
        columns = ("window_start", "start", "end", "label", "first", "stop", "window_id")
        return WindowDataset(self.rows, self.valid, **{name: getattr(self, name)[indices] for name in columns})

    def gather(self, indices: NDArray[np.int64], window_start: NDArray[np.int64] | None = None) -> Batch:
        """The batch of these windows, cut at `window_start` [B] if given: see SCHEMA, and window_id [B]."""
        cut = self.window_start[indices] if window_start is None else window_start
        bars = cut[:, None] + np.arange(WINDOW)  # [B, T]
        return {
            "x": torch.from_numpy(self.rows[bars]),  # [B, T, F]
            "valid_mask": torch.from_numpy(self.valid[bars]),
            "label": torch.from_numpy(self.label[indices]),
            "start": torch.from_numpy(self.start[indices] - cut),
            "end": torch.from_numpy(self.end[indices] - cut),
            "window_id": self.window_id[indices],
        }

    def recut(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """[B] random first rows of windows that hold the move and, where there is room, the STATE_BARS before it.

        Always one of the places between first and stop; a window as short of room as that keeps the move only.
        """
        start, end = self.start[indices], self.end[indices]
        latest = np.minimum(start, self.stop[indices] - WINDOW)
        earliest = np.maximum(end - WINDOW + 1, self.first[indices])
        with_state = np.maximum(np.minimum(latest, start - STATE_BARS), earliest)
        return np.asarray(rng.integers(earliest, with_state + 1))


def mirror(x: Tensor) -> Tensor:
    """[..., F] -> [..., F]: the features of the same bars with prices upside down, exactly."""
    flipped = x[..., MIRRORED_ORDER]
    # From the other end of the bar; not 1 - value, which is wrong for a bar without range, where both are 0.
    flipped[..., OPEN] = x[..., UPPER] + x[..., BODY].clamp(min=0)
    flipped[..., CLOSE] = x[..., UPPER] + (-x[..., BODY]).clamp(min=0)
    flipped[..., BODY] = -x[..., BODY]
    flipped[..., UPPER], flipped[..., LOWER] = x[..., LOWER], x[..., UPPER]
    return flipped


class WindowLoader(DataLoader[Batch]):
    """Batches of one dataset. What an epoch holds depends only on the seed and the epoch's number: `set_epoch`.

    `skip` leaves out an epoch's first batches, for a run that is resumed in the middle of one.
    """

    def __init__(self, dataset: WindowDataset, batches: "Collate", sampler: Any, batch_size: int, pin: bool) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=batches,
            pin_memory=pin,
            generator=torch.Generator(),  # its own: iterating must not advance the generator that dropout draws from
        )
        self._collate, self._skip = batches, 0
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Start epoch `epoch` at its batch number `skip`."""
        self._collate.start(epoch)
        self._skip = skip
        if isinstance(self.sampler, WeightedRandomSampler):
            self.sampler.generator.manual_seed(_mix(self._collate.seed, epoch))

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Batches left out are drawn all the same, so that the random numbers of the others stay what they were.
        for number, batch in enumerate(super().__iter__()):
            if number >= self._skip:
                yield batch


class Collate:
    """Indices [B] of the whole batch -> this process's share of the batch, augmented in training."""

    def __init__(
        self, dataset: WindowDataset, seed: int, recut: bool, mirrored: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset, self.seed, self.recut, self.mirrored = dataset, seed, recut, mirrored
        self.share = slice(rank, None, world_size)
        self.start(0)

    def start(self, epoch: int) -> None:
        """Begin an epoch: its random numbers are those of (seed, epoch)."""
        self.rng = np.random.default_rng((self.seed, epoch))

    def __call__(self, indices: Any) -> Batch:
        cut = self.dataset.recut(indices, self.rng) if self.recut else self.dataset.window_start[indices]
        flip = (self.rng.random(len(indices)) < 0.5) & self.mirrored
        # Drawn for all processes alike, then shared out: the whole batch is the same for any number of them.
        batch = self.dataset.gather(indices[self.share], cut[self.share])
        flip = flip[self.share]
        if flip.any():
            batch["x"][flip] = mirror(batch["x"][flip])
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

    In training: windows drawn with replacement, weight 1 / count of the class, re-cut at random and mirrored at random
    if asked; an epoch is `windows_per_epoch` windows (default: as many as there are), rounded up to whole batches.
    Otherwise every window once, in order, as labelled. Raises DataError for an empty set, a class without a window,
    or a batch that cannot be shared evenly.
    """
    if len(dataset) == 0:
        raise DataError("a loader needs at least one window, got 0")
    if batch_size < 1 or batch_size % world_size:
        raise DataError(f"batch_size must be a multiple of the {world_size} processes, got {batch_size}")
    collate = Collate(dataset, seed, train and recut, train and mirrored, rank, world_size)
    if not train:
        return WindowLoader(dataset, collate, None, batch_size, pin_memory)
    weights = 1.0 / class_counts(dataset.label)[dataset.label]
    n_drawn = math.ceil((windows_per_epoch or len(dataset)) / batch_size) * batch_size
    sampler = WeightedRandomSampler(weights.tolist(), n_drawn, replacement=True, generator=torch.Generator())
    return WindowLoader(dataset, collate, sampler, batch_size, pin_memory)


def class_counts(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K] windows per class. Raises DataError where a class has none."""
    counts = np.bincount(label)
    if (counts == 0).any():
        raise DataError(f"every class needs a window, class {int(counts.argmin())} has none (counts {counts.tolist()})")
    return counts


def validate_batch_schema(batch: Mapping[str, Any]) -> None:
    """Raise DataError unless `batch` is as SCHEMA says, finite, and 0 <= start <= end <= 104; names rule and window."""
    missing = [name for name in (*SCHEMA, "window_id") if name not in batch]
    if missing:
        raise DataError(f"a batch must have {', '.join(SCHEMA)}, window_id; {', '.join(missing)} is missing")
    n = len(batch["window_id"])
    for name, (dtype, shape) in SCHEMA.items():
        value = batch[name]
        if value.dtype != dtype or tuple(value.shape) != (n, *shape):
            raise DataError(f"{name} must be {dtype} {[n, *shape]}, got {value.dtype} {list(value.shape)}")
    start, end = batch["start"], batch["end"]
    _refuse_samples(~batch["x"].isfinite().flatten(1).all(dim=1), "x must be finite", batch)
    _refuse_samples(~((start >= 0) & (start <= end) & (end < WINDOW)), f"0 <= start <= end < {WINDOW}", batch)
    _refuse_samples(batch["label"] < 0, "a label must be 0 or above", batch)


def _refuse_samples(broken: Tensor, rule: str, batch: Mapping[str, Any]) -> None:
    if broken.any():
        i = int(broken.int().argmax())
        values = {name: int(batch[name][i]) for name in ("label", "start", "end")}
        raise DataError(f"{rule}: {values} (sample {i} of the batch, window {batch['window_id'][i]})")


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
