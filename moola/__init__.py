"""moola: from 1-minute futures bars and a few hundred labels to a model with credible numbers.

Shape letters, used in every docstring: N windows, T = 105 bars of a window, F = 11 features,
B batch, H hidden. Times are timezone-aware UTC; a bar carries the minute it OPENED, so it is known
one minute later.

In a notebook `moola.connect`, `precompute`, `train` and `predict` do what the commands do; see
`moola.api`, which is imported when one of them is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moola.api import Connection, Run, connect, precompute, predict, predict_windows, train

__all__ = [
    "HIT_BARS",
    "PRICES",
    "WINDOW",
    "Connection",
    "Run",
    "connect",
    "precompute",
    "predict",
    "predict_windows",
    "train",
]

__version__ = "0.1.0"

WINDOW = 105  # bars = 1 h 45 min of 1-minute bars: the T of every shape
PRICES = ("open", "high", "low", "close")  # the columns of a bar, in this order
HIT_BARS = 3  # a predicted centre at most this many bars off is a hit: Hit@3, joint success, gates

_FROM_API = frozenset(__all__) - {"HIT_BARS", "PRICES", "WINDOW"}


def __getattr__(name: str) -> object:
    if name not in _FROM_API:
        raise AttributeError(f"module 'moola' has no attribute {name!r}")
    from moola import api

    return getattr(api, name)
