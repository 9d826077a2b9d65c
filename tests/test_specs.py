"""Specs are strict: every field has a bound, an unknown one is refused with its path, the shipped ones are valid."""

from pathlib import Path

import pytest
import yaml

from moola.errors import DataError
from moola.specs import JOBS, FeatureConfig, parse_spec, read_spec

JOBS_DIR = Path(__file__).resolve().parents[1] / "jobs"


@pytest.mark.parametrize("job", JOBS)
def test_the_shipped_spec_is_the_default(job: str) -> None:
    """A spec file that only repeats the defaults: what it says is what holds without it."""
    shipped = read_spec(job, JOBS_DIR / f"{job}.yaml")
    assert shipped == JOBS[job]()


@pytest.mark.parametrize("job", JOBS)
def test_the_shipped_spec_names_every_top_level_field(job: str) -> None:
    assert set(yaml.safe_load((JOBS_DIR / f"{job}.yaml").read_text())) == set(JOBS[job].model_fields)


def test_the_feature_constants_are_the_published_ones() -> None:
    assert FeatureConfig().model_dump() == {
        "ema_range_period": 20,
        "atr_period": 10,
        "zigzag_k": 1.2,
        "hybrid_confirm_lookback": 5,
        "hybrid_min_retrace_atr": 0.5,
        "eps": 1e-6,
    }


def test_a_typo_in_a_spec_is_refused_with_its_path_and_place() -> None:
    with pytest.raises(
        DataError, match=r"not valid \(here\):\n  features\.zigzag: Extra inputs are not permitted, got 1"
    ):
        parse_spec("precompute", {"features": {"zigzag": 1}}, place="here")


def test_every_fault_of_a_spec_is_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        parse_spec("precompute", {"windows": "x", "features": {"eps": 0, "atr_period": "ten"}}, place="here")
    for field in ("windows:", "features.eps:", "features.atr_period:"):
        assert field in str(caught.value)


def test_a_spec_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FeatureConfig().zigzag_k = 2.0  # type: ignore[misc]


def test_overrides_reach_nested_fields_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("features: {atr_period: 14}\n")
    spec = read_spec("precompute", path, {"features.zigzag_k": 2, "splits.train_end": "2024-06-30"})
    assert spec.features == FeatureConfig(atr_period=14, zigzag_k=2)
    assert str(spec.splits.train_end) == "2024-06-30"


def test_a_broken_yaml_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("features: {")
    with pytest.raises(DataError, match=r"(?s)readable YAML file: .*spec\.yaml"):
        read_spec("precompute", path)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("1d", 86_400)]
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    spec = parse_spec("precompute", {"machine": {"max_runtime": text}}, place="here")
    assert spec.machine.max_runtime.total_seconds() == seconds
    again = parse_spec("precompute", spec.model_dump(mode="json"), place="here")
    assert again == spec


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
def test_a_machine_out_of_bounds_is_refused_with_its_field(machine: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_spec("precompute", {"machine": machine}, place="here")


def test_training_can_be_sent_to_a_cpu_machine() -> None:
    spec = parse_spec("train", {"machine": {"gpu": None, "cpu": {}}}, place="here")
    assert spec.machine.cpu is not None
