"""The 11 causal features of a bar."""

from moola.features.relativity import (
    FEATURE_NAMES,
    FEATURE_RANGES,
    N_FEATURES,
    compute_features,
)
from moola.features.state import FeatureState
from moola.specs import FeatureConfig

__all__ = [
    "FEATURE_NAMES",
    "FEATURE_RANGES",
    "N_FEATURES",
    "FeatureConfig",
    "FeatureState",
    "compute_features",
]
