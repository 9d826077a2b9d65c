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
