"""Reading specs: a YAML file with overrides on top, validated."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from moola.errors import DataError
from moola.specs.base import Spec
from moola.specs.precompute import PrecomputeSpec
from moola.specs.train import TrainSpec
from moola.specs.yaml_text import MAX_DEPTH, read_small_text, read_yaml
from moola.text import quoted, shortened

JobSpec = TypeVar("JobSpec", bound=Spec)
Fields = dict[str, Any]  # a spec, or a group of its fields, before it is validated

SHOWN_FAULTS = 20  # of a spec, in one message

JOBS: dict[str, type[PrecomputeSpec] | type[TrainSpec]] = {
    "precompute": PrecomputeSpec,
    "train": TrainSpec,
}


def read_spec(
    kind: type[JobSpec],
    path: Path,
    overrides: Mapping[str, object] | None = None,
) -> JobSpec:
    """The spec of a job in a YAML file, with overrides such as {"features.zigzag_k": 1.5} on top.

    Raises DataError that names the file, the field's path, the rule and the value.
    """
    try:
        fields = read_yaml(read_small_text(path)) or {}
    except DataError as error:
        raise DataError(f"the spec must be a readable YAML file: {error} ({path})") from error

    if not isinstance(fields, dict):
        raise DataError(f"a spec must be a mapping of fields, got {type(fields).__name__} ({path})")

    return parse_spec(kind, with_overrides(fields, overrides or {}), place=str(path))


def with_overrides(fields: Fields, overrides: Mapping[str, object]) -> Fields:
    """A copy of `fields` with overrides such as {"features.zigzag_k": 1.5} on top.

    Raises DataError.
    """
    fields = deepcopy(fields)

    for dotted_name, value in overrides.items():
        _set(fields, dotted_name, value)
    return fields


def parse_spec(
    kind: type[JobSpec],
    fields: Fields,
    *,
    place: str,
) -> JobSpec:
    """A validated spec; `place` says where the fields came from.

    Raises DataError that names every fault.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [f"the {kind.model_fields['job'].default} spec is not valid ({place}):"]
        lines += [f"  {fault_text(fault)}" for fault in faults[:SHOWN_FAULTS]]
        if len(faults) > SHOWN_FAULTS:
            lines.append(f"  and {len(faults) - SHOWN_FAULTS} more")
        raise DataError("\n".join(lines)) from error


def fault_text(fault: ErrorDetails) -> str:
    """A fault of a spec or of settings, one line: field, rule, value."""
    field = shortened(".".join(map(str, fault["loc"]))) or "(whole spec)"
    return f"{field}: {shortened(fault['msg'])}, got {quoted(fault['input'])}"


def _set(fields: Fields, dotted_name: str, value: object) -> None:
    """Set one field in place. Raises DataError where a name on the way is not a group of fields."""
    *groups, name = dotted_name.split(".")
    if len(groups) >= MAX_DEPTH:
        raise DataError(f"{shortened(dotted_name)} cannot be set: more than {MAX_DEPTH} levels")

    for group in groups:
        inner = fields.setdefault(group, {})
        if not isinstance(inner, dict):
            raise DataError(
                f"{shortened(dotted_name)} cannot be set: "
                f"{shortened(group)} is {quoted(inner)}, not a group of fields"
            )
        fields = inner
    fields[name] = value
