"""The runs of a sweep: every combination of the values that fields are swept over."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence

from moola.errors import DataError
from moola.runs.groups import MAX_MEMBERS
from moola.specs.yaml_text import read_yaml
from moola.text import quoted, shortened

Values = dict[str, list[object]]  # field -> the values that it takes
Overrides = dict[str, object]  # field -> value, of one run

CROSS_VALIDATE = "cross_validate"  # the field of a train spec that says which fold it is


def read_swept(texts: Sequence[str]) -> Values:
    """Field -> values, from texts such as training.seed=0,1,2; the values are read as YAML.

    Raises DataError.
    """
    swept: Values = {}
    for text in texts:
        field, equals, listed = text.partition("=")
        if not equals or not field:
            raise DataError(f"--over takes FIELD=VALUE,VALUE,..., got {quoted(text)}")
        if field in swept:
            raise DataError(f"--over names {quoted(field)} twice: give all its values at once")
        swept[field] = _read_values(field, listed)
    return swept


def _read_values(field: str, listed: str) -> list[object]:
    try:
        values = read_yaml(f"[{listed}]")
    except DataError as error:
        raise DataError(
            f"--over {quoted(field)}: values must be YAML, apart by commas: {error}"
        ) from error
    if not isinstance(values, list) or not values:
        raise DataError(f"--over {quoted(field)} must have at least one value")
    return values


def combinations(swept: Values, fixed: Mapping[str, object]) -> list[Overrides]:
    """The overrides of each run of the grid, the last field changing first.

    Raises DataError for a field that is also `fixed`, and for more runs than a group may have.
    """
    require_not_fixed(swept, fixed)
    _require_few(_size(swept))
    return [_point(swept, index) for index in range(_size(swept))]


def drawn(
    swept: Values,
    fixed: Mapping[str, object],
    count: int,
    seed: int,
) -> list[Overrides]:
    """`count` different points of the grid, drawn by a seed: the same ones every time.

    Raises DataError as `combinations` does, and where the grid has fewer points.
    """
    require_not_fixed(swept, fixed)
    _require_few(count)
    size = _size(swept)
    if count > size:
        raise DataError(f"--random must be at most the {size:,} points of the grid, got {count:,}")

    indices = random.Random(seed).sample(range(size), count)
    return [_point(swept, index) for index in sorted(indices)]


def with_folds(
    points: Sequence[Overrides],
    n_folds: int,
    fixed: Mapping[str, object],
) -> list[Overrides]:
    """Every fold of a cross-validation at each of the points.

    Raises DataError where the points or `fixed` say which fold, and for more runs than a group may
    have.
    """
    for field in [*fixed, *points[0]]:
        if field.partition(".")[0] == CROSS_VALIDATE:
            raise DataError(f"--folds sets {CROSS_VALIDATE}: give no {quoted(field)} beside it")
    _require_few(len(points) * n_folds)

    return [
        {**point, CROSS_VALIDATE: {"folds": n_folds, "fold": fold}}
        for point in points
        for fold in range(n_folds)
    ]


def title_of(overrides: Mapping[str, object]) -> str:
    """What a run of a sweep is called: training.seed=0 model.hidden_size=64."""
    texts = []
    for field, value in overrides.items():
        if isinstance(value, Mapping):
            inner = {f"{field}.{name}": each for name, each in value.items()}
            texts.append(title_of(inner))
        else:
            texts.append(f"{field}={shortened(str(value))}")
    return " ".join(texts)


def _size(swept: Values) -> int:
    return math.prod(len(values) for values in swept.values())


def _point(swept: Values, index: int) -> Overrides:
    """The point at a place in the grid, the last field changing first."""
    places: dict[str, int] = {}
    for field, values in reversed(swept.items()):
        index, places[field] = divmod(index, len(values))
    return {field: values[places[field]] for field, values in swept.items()}


def require_not_fixed(swept: Iterable[str], fixed: Mapping[str, object]) -> None:
    """Raises DataError for a field that is swept over and set."""
    for field in swept:
        if field in fixed:
            raise DataError(f"{quoted(field)} is swept over and set as well: give one of the two")


def _require_few(n_runs: int) -> None:
    if n_runs > MAX_MEMBERS:
        raise DataError(
            f"a sweep must have at most {MAX_MEMBERS:,} runs, got {n_runs:,}: sweep over fewer "
            "values, or draw some with --random N"
        )
