"""Features of a file computed again, read as the run that is checked read it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moola.data.bars import read_bars_of
from moola.data.feature_records import FeatureMetadata
from moola.features import compute_features
from moola.features.arrays import Float32s
from moola.runs.submit import sha256_file
from moola.specs import READING_FIELDS, PrecomputeSpec, parse_spec, with_overrides

# How a file is written: what holds for another file need not hold for this one.
OF_THE_FILE = {"layout", "timezone"}


def recompute(
    bars: Sequence[Path],
    overrides: Mapping[str, object],
    metadata: FeatureMetadata,
) -> Float32s:
    """The features of `bars`, computed with the set's own configuration.

    The same files are read as the set's run read them, others as they show themselves; `overrides`
    are fields of a PrecomputeSpec, such as "layout.name", that hold instead. Raises DataError.
    """
    stated = {"on_bad_bars": metadata.on_bad_bars, **(metadata.reading or {})}
    names = READING_FIELDS
    if not _are_those_of_the_run(bars, metadata):
        names = names - OF_THE_FILE

    reading = {name: value for name, value in stated.items() if name in names}
    fields = with_overrides(reading, overrides)
    spec = parse_spec(PrecomputeSpec, fields, place="how to read the bars")
    return compute_features(read_bars_of(spec, bars).frame, metadata.feature_config())


def _are_those_of_the_run(bars: Sequence[Path], metadata: FeatureMetadata) -> bool:
    digests = {item.sha256 for item in metadata.inputs.values()}
    return {sha256_file(file) for file in bars} == digests
