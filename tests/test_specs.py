"""Specs are strict: every field has a bound, and an unknown one is refused with its path."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from moola.errors import DataError
from moola.jobs.prepare import shipped_spec
from moola.specs import (
    JOBS,
    FeatureConfig,
    PrecomputeSpec,
    TrainSpec,
    duration_text,
    parse_spec,
    read_spec,
)


@pytest.mark.parametrize("job", JOBS)
def test_the_shipped_spec_is_the_default(job: str) -> None:
    """A spec file that only repeats the defaults: what it says is what holds without it."""
    shipped = read_spec(JOBS[job], shipped_spec(job))
    assert shipped == JOBS[job]()


@pytest.mark.parametrize("job", JOBS)
def test_the_shipped_spec_names_every_top_level_field(job: str) -> None:
    assert set(yaml.safe_load(shipped_spec(job).read_text())) == set(JOBS[job].model_fields)


def test_the_feature_constants_are_the_published_ones() -> None:
    assert FeatureConfig().model_dump() == {
        "ema_range_period": 20,
        "atr_period": 10,
        "zigzag_k": 1.2,
        "hybrid_confirm_lookback": 5,
        "hybrid_min_retrace_atr": 0.5,
    }


def test_a_typo_in_a_spec_is_refused_with_its_path_and_place() -> None:
    with pytest.raises(
        DataError,
        match=r"not valid \(here\):\n  features\.zigzag: Extra inputs are not permitted, got 1",
    ):
        parse_spec(PrecomputeSpec, {"features": {"zigzag": 1}}, place="here")


def test_every_fault_of_a_spec_is_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        parse_spec(
            PrecomputeSpec,
            {"windows": "x", "features": {"zigzag_k": 0, "atr_period": "ten"}},
            place="here",
        )
    for field in ("windows:", "features.zigzag_k:", "features.atr_period:"):
        assert field in str(caught.value)


def test_eps_of_older_specs_is_read_over_at_its_default_only() -> None:
    """Runs that were stored with it are read; features made with another one cannot be."""
    assert FeatureConfig.model_validate({"eps": 1e-6, "atr_period": 14}).atr_period == 14
    with pytest.raises(DataError, match=r"features: .*scale-free and have no eps"):
        parse_spec(PrecomputeSpec, {"features": {"eps": 1e-3}}, place="here")


def test_a_spec_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FeatureConfig().zigzag_k = 2.0  # type: ignore[misc]


def test_overrides_reach_nested_fields_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("features: {atr_period: 14}\n")
    spec = read_spec(
        PrecomputeSpec, path, {"features.zigzag_k": 2, "splits.train_end": "2024-06-30"}
    )
    assert spec.features == FeatureConfig(atr_period=14, zigzag_k=2)
    assert str(spec.splits.train_end) == "2024-06-30"


def test_a_broken_yaml_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("features: {")
    with pytest.raises(DataError, match=r"(?s)readable YAML file: .*spec\.yaml"):
        read_spec(PrecomputeSpec, path)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("1d", 86_400)]
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    spec = parse_spec(PrecomputeSpec, {"machine": {"max_runtime": text}}, place="here")
    assert spec.machine.max_runtime.total_seconds() == seconds
    again = parse_spec(PrecomputeSpec, spec.model_dump(mode="json"), place="here")
    assert again == spec


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45, "45s"),
        (0.5, "0.5s"),
        (90, "90s"),
        (60, "1m"),
        (5400, "90m"),
        (7200, "2h"),
        (86_400, "1d"),
        (90_000, "25h"),
    ],
)
def test_a_duration_is_shown_in_the_largest_unit_that_needs_no_fraction(
    seconds: float, text: str
) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("job", "fields", "message"),
    [
        ("precompute", {"synthetic": {"start": "2025-01-07", "end": "2025-01-06"}}, "start <= end"),
        (
            "precompute",
            {"splits": {"train_end": "2025-01-07", "val_end": "2025-01-07"}},
            "< val_end",
        ),
        ("precompute", {"splits": {"fractions": [0.5, 0.5, 0.0]}}, "must be positive and sum to 1"),
        ("precompute", {"splits": {"fractions": [0.5, 0.3, 0.1]}}, "must be positive and sum to 1"),
        (
            "train",
            {"labels": {"hindsight": {"min_bars": 5, "max_bars": 4}}},
            "min_bars <= max_bars",
        ),
        (
            "train",
            {"labels": {"hindsight": {"state_bars": 80, "max_bars": 26}}},
            r"must fit into 105 bars, got 80 \+ 26",
        ),
        ("train", {"labels": {"hindsight": {"give_back": [0.5, 0.5]}}}, "0 <= give_back"),
        ("train", {"labels": {"hindsight": {"give_back": [0.5, 1.1]}}}, "0 <= give_back"),
        ("train", {"labels": {"classes": ["up", "up"]}}, "classes must be distinct and not empty"),
        ("train", {"labels": {"classes": ["up", ""]}}, "classes must be distinct and not empty"),
        ("train", {"labels": {"classes": ["Up", "up "]}}, "classes must be distinct and not empty"),
        ("train", {"labels": {"fractions": [0.5, 0.3, 0.1]}}, "must be positive and sum to 1"),
        ("train", {"labels": {"mirror": {"bull": "bear"}}}, "mirror must name classes, got 'bull'"),
        (
            "train",
            {"labels": {"classes": ["a", "b", "c"], "mirror": {"a": "b", "c": "b"}}},
            "mirror must go both ways: a turns into b, and b into c",
        ),
        ("train", {"gates": {"min_sigma": 1.0, "max_sigma": 1.0}}, "min_sigma < max_sigma"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    job: str, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        parse_spec(JOBS[job], fields, place="here")


@pytest.mark.parametrize(
    ("job", "fields"),
    [
        ("precompute", {"synthetic": {"start": "2025-01-06", "end": "2025-01-06"}}),
        ("train", {"labels": {"hindsight": {"min_bars": 4, "max_bars": 4}}}),
        ("train", {"labels": {"hindsight": {"state_bars": 80, "max_bars": 25}}}),
        ("train", {"labels": {"hindsight": {"give_back": [0.0, 1.0]}}}),
        ("train", {"labels": {"classes": ["a", "b"], "mirror": {"a": "b", "b": "a"}}}),
    ],
)
def test_fields_at_the_limit_of_a_rule_are_taken(job: str, fields: dict[str, object]) -> None:
    parse_spec(JOBS[job], fields, place="here")


def test_an_override_below_a_plain_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("windows: stored")
    with pytest.raises(
        DataError, match=r"windows\.x cannot be set: windows is 'stored', not a group"
    ):
        read_spec(PrecomputeSpec, path, {"windows.x": 1})
    path.write_text("- a list")
    with pytest.raises(DataError, match="a spec must be a mapping of fields, got list"):
        read_spec(PrecomputeSpec, path)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"max_runtime": 7200}, "machine.max_runtime: .*90s, 30m, 2h or 1d, got 7200"),
        ({"max_runtime": "0h"}, "a number above 0 with its unit"),
        ({"cpu": {"vcpus": 6}}, "machine.cpu: .*a power of two, got 6"),
        ({"gpu": {}}, "one of cpu and gpu; set the other to null"),
        ({"cpu": None}, "one of cpu and gpu; set the other to null"),
        ({"disk_gb": 10}, "machine.disk_gb: .*got 10"),
        ({"max_spend": 0}, "machine.max_spend"),
        ({"retry": {"on": ["boredom"]}}, "machine.retry.on.0: .*got 'boredom'"),
        ({"max_prize": 1}, "machine.max_prize: .*Extra inputs"),
    ],
)
def test_a_machine_out_of_bounds_is_refused_with_its_field(
    machine: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        parse_spec(PrecomputeSpec, {"machine": machine}, place="here")


def test_training_can_be_sent_to_a_cpu_machine() -> None:
    spec = parse_spec(TrainSpec, {"machine": {"gpu": None, "cpu": {}}}, place="here")
    assert spec.machine.cpu is not None
