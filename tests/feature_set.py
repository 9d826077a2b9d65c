"""A small, good feature set on disk, for tests that damage it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from moola.data.splits import split_windows, splits_document
from moola.data.windows import WindowSource, density, valid_ratio, valid_rows, window_view
from moola.features import FEATURE_NAMES, FeatureConfig, compute_features
from moola.runs.submit import sha256_file

N_BARS = 1500


def random_bars(n: int = N_BARS, seed: int = 1, price: float = 15_000.0) -> pd.DataFrame:
    """A random walk on a 0.25 tick, one bar a minute."""
    rng = np.random.default_rng(seed)
    close = price + np.round(np.cumsum(rng.normal(0, 4, n)) * 4) / 4
    open_ = np.concatenate([[price], close[:-1]])
    wicks = np.round(rng.exponential(2, (2, n)) * 4) / 4
    columns = {
        "open": open_,
        "high": np.maximum(open_, close) + wicks[0],
        "low": np.minimum(open_, close) - wicks[1],
        "close": close,
        "volume": rng.integers(1, 500, n).astype(np.float64),
    }
    index = pd.date_range("2024-03-04", periods=n, freq="min", tz="UTC", name="timestamp")
    return pd.DataFrame(columns, index=index)


def write_feature_set(
    folder: Path,
    n_bars: int = N_BARS,
    bars: pd.DataFrame | None = None,
    config: FeatureConfig | None = None,
) -> dict[str, str]:
    """The files of the contract in `folder`, of random bars or of given ones; -> path -> sha256."""
    from moola.specs import SplitConfig

    bars = random_bars(n_bars) if bars is None else bars
    n_bars = len(bars)
    config = config or FeatureConfig()
    bars.reset_index().to_parquet(folder / "bars.parquet")
    rows = compute_features(bars, config)
    valid = valid_rows(np.zeros(n_bars, bool))
    rule, splits = split_windows(bars.index, SplitConfig())
    metadata = {
        "feature_names": list(FEATURE_NAMES),
        "config": config.model_dump(),
        "n_bars": n_bars,
        "n_windows": n_bars - 104,
        "valid_ratio": valid_ratio(valid),
        "density": density(rows).tolist(),
    }
    np.save(folder / "features_11d.npy", window_view(rows))
    np.save(folder / "bars_11d.npy", rows)
    np.save(folder / "valid_mask.npy", window_view(valid))
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "splits.json").write_text(json.dumps(splits_document(rule, splits, bars.index)))
    assert WindowSource(rows).size == (folder / "features_11d.npy").stat().st_size
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
