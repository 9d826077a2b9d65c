"""Label Studio's exports of time series labels as rows of start, end and label.

A task has annotations, an annotation has regions: labelstud.io/guide/export, and
labelstud.io/tags/timeserieslabels for what a region holds. JSON, JSON-MIN, CSV and TSV are read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from moola.errors import DataError
from moola.text import quoted, shortened

REGION = "timeserieslabels"

Item = Mapping[str, Any]  # an object of the export: what it holds besides is anything


def are_tasks(items: Sequence[Item]) -> bool:
    """Whether the objects of a JSON file are Label Studio's tasks."""
    has_annotations = any("annotations" in item or "completions" in item for item in items)
    return has_annotations or any(_lists_of_regions(item) for item in items)


def regions_of_tasks(tasks: Sequence[Item], place: str) -> pd.DataFrame:
    """The regions of all tasks' annotations, in the file's order. Raises DataError."""
    return _rows(_values_of_tasks(tasks, place), place)


def regions_of_table(table: pd.DataFrame, place: str) -> pd.DataFrame | None:
    """The regions of a CSV or TSV export; None where the table is none. Raises DataError."""
    for at in range(table.shape[1]):
        cells = table.iloc[:, at].dropna()
        is_list = len(cells) > 0 and all(
            isinstance(cell, str) and cell.startswith("[") for cell in cells
        )
        if is_list and any(f'"{REGION}"' in cell for cell in cells):
            return _rows(_values_of_cells(cells, place), place)
    return None


def _values_of_tasks(tasks: Sequence[Item], place: str) -> Iterator[object]:
    for task in tasks:
        annotations = task.get("annotations", task.get("completions"))

        if annotations is None:
            for regions in _lists_of_regions(task):
                yield from regions
            continue

        for annotation in _objects(annotations, "annotations", place):
            if annotation.get("was_cancelled"):
                continue
            for result in _objects(annotation.get("result", []), "result", place):
                if result.get("type") == REGION:
                    yield result.get("value")


def _objects(value: object, name: str, place: str) -> list[Item]:
    """A list of objects. Raises DataError for anything else."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise DataError(
        f"{name} of a Label Studio task must be a list of objects, got {quoted(value)} ({place})"
    )


def _lists_of_regions(item: Item) -> list[list[Item]]:
    """The values of a JSON-MIN task that are lists of regions."""
    lists = [value for value in item.values() if isinstance(value, list) and value]
    return [
        regions
        for regions in lists
        if all(isinstance(region, dict) and REGION in region for region in regions)
    ]


def _values_of_cells(cells: Iterable[str], place: str) -> Iterator[object]:
    for cell in cells:
        try:
            regions = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"Label Studio's regions must be whole JSON: {error} ({place})"
            ) from error
        yield from regions


def _rows(values: Iterable[object], place: str) -> pd.DataFrame:
    """Columns start, end and label of the regions, numbered from 0. Raises DataError."""
    rows = []

    for number, value in enumerate(values):
        where = f"row {number} of {place}"
        region = value if isinstance(value, Mapping) else {}
        names = region.get(REGION)
        if not names:
            raise DataError(f"a Label Studio region must have a label, got none ({where})")
        if not isinstance(names, list) or len(names) > 1:
            listed = ", ".join(map(str, names)) if isinstance(names, list) else names
            raise DataError(
                f"a Label Studio region must have one label, got {shortened(str(listed))} ({where})"
            )
        rows.append((region.get("start"), region.get("end"), str(names[0]).strip()))

    if not rows:
        raise DataError(
            f"a Label Studio export must hold regions of TimeSeriesLabels, got none ({place})"
        )
    return pd.DataFrame(rows, columns=["start", "end", "label"], dtype=object)
