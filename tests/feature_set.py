"""A small, good feature set on disk, for tests that damage it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moola.features import FEATURE_NAMES, FeatureConfig, compute_features
from moola.runs import sha256_file
from moola.windows import WindowSource, density, split_windows, splits_document, valid_ratio, valid_rows, window_view

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


def write_feature_set(folder: Path, n_bars: int = N_BARS) -> dict[str, Any]:
    """The files of the contract in `folder`; -> a manifest of them."""
    from moola.specs import SplitConfig

    bars = random_bars(n_bars)
    bars.reset_index().to_parquet(folder / "bars.parquet")
    rows = compute_features(bars)
    valid = valid_rows(np.zeros(n_bars, bool))
    rule, splits = split_windows(bars.index, SplitConfig())
    metadata = {
        "feature_names": list(FEATURE_NAMES),
        "config": FeatureConfig().model_dump(),
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
    files = [
        {"path": path.name, "sha256": sha256_file(path), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
    ]
    return {"files": files, "derived": []}
