"""moola: from 1-minute futures bars and a few hundred labels to a model whose numbers can be believed.

Shape letters, used in every docstring: N windows, T = 105 bars of a window, F = 11 features, B batch, H hidden.
Times are timezone-aware UTC; a bar carries the minute it OPENED, so it is known one minute later.
"""

__version__ = "0.1.0"

WINDOW = 105  # bars = 1 h 45 min of 1-minute bars: the T of every shape
