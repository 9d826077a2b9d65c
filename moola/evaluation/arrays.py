"""Array types, and arithmetic that knows what is undefined: NaN in arrays, None in JSON."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Number = np.float64 | np.int64


def ratio(numerator: NDArray[Number], denominator: NDArray[Number]) -> Floats:
    """numerator / denominator, NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    undefined = np.full(shape, np.nan)
    quotient: Floats = np.divide(
        numerator,
        denominator,
        out=undefined,
        where=denominator > 0,
    )

    return quotient


def mean_of_defined(values: Floats) -> Floats:
    """Mean along axis 1 over what is not NaN; there is always something."""
    defined = np.isfinite(values)
    mean: Floats = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
    return mean


def finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
