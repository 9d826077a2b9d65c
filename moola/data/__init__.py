"""Bars, windows, splits and labels: read, checked, made."""
