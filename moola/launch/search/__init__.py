"""Searches: points of a space are chosen by Optuna, by what earlier ones have come to."""
