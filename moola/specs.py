"""Job specs: what a job reads, does and writes. Every field has a bound; an unknown field is refused, not ignored."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from moola import WINDOW
from moola.errors import DataError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    found = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not float(found[1]):
        raise ValueError("a duration is a number above 0 with its unit: 90s, 30m, 2h or 1d")
    return timedelta(seconds=float(found[1]) * UNITS[found[2]])


def duration_text(value: timedelta) -> str:
    """2h, 90m, 45s: the largest unit that needs no fraction."""
    seconds = value.total_seconds()
    unit = next((u for u in "dhm" if seconds % UNITS[u] == 0), "s")
    return f"{seconds / UNITS[unit]:g}{unit}"


Duration = Annotated[
    timedelta,
    BeforeValidator(_read_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION.pattern, "examples": ["90s", "30m", "2h", "1d"]}),
]


class Spec(BaseModel):
    """Base of all specs: strict about names, immutable once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureConfig(Spec):
    """Constants of the 11 features; the defaults are the published definition, to the last bit."""

    ema_range_period: int = Field(20, ge=1, le=10_000, description="bars in the moving average of the range")
    atr_period: int = Field(10, ge=1, le=10_000, description="bars in the average true range")
    zigzag_k: Positive = Field(1.2, description="a swing is confirmed when the close comes back this many ATR")
    hybrid_confirm_lookback: int = Field(5, ge=0, le=10_000, description="age in bars up to which the candidate counts")
    hybrid_min_retrace_atr: Positive | None = Field(
        0.5, description="ATR from the candidate that also confirm a swing; null switches this rule off"
    )
    eps: Positive = Field(1e-6, description="smallest range and smallest average range that is divided by, in price")


class MarketConfig(Spec):
    """The synthetic market of `moola.synthetic`: a session calendar, NQ-like moments, planted moves.

    A trading day is named after the date it closes on: Monday 6 January opens on Sunday the 5th at 18:00 New York.
    """

    seed: int = Field(0, ge=0, description="same seed, same bars")
    start: date = Field(date(2025, 1, 6), ge=date(2000, 1, 1), description="first trading day")
    end: date = Field(date(2025, 3, 28), le=date(2049, 12, 31), description="last trading day, included")
    start_price: float = Field(16_000.0, ge=1_000, le=100_000, description="price before the first bar")
    moves_per_day: float = Field(12.0, ge=0, le=20, description="planted moves per full trading day of 1380 bars, mean")
    consolidation_fraction: float = Field(
        0.5, ge=0, le=1, description="share of planted moves after a consolidation; the others follow a retracement"
    )
    difficulty: float = Field(
        0.5, ge=0, le=1, description="noise amid the planted paths: 0 is straight, 1 is as noisy as their bounds allow"
    )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start <= end, got {self.start} / {self.end}")
        return self


class SplitConfig(Spec):
    """Where train, validation and test end. No bar belongs to two splits.

    With dates, a split ends with the last bar of that day (UTC). Any date given makes the splits go by date, the
    others taking their default. With none given, and `fractions` as they are, the default dates hold where the bars
    reach past `test_end` and give each split a window; else `fractions` of the bars.
    """

    train_end: date | None = Field(None, description="last day of training (2024-12-31 where the bars reach so far)")
    val_end: date | None = Field(None, description="last day of validation (2025-03-31)")
    test_end: date | None = Field(None, description="last day of test (2025-06-30)")
    fractions: tuple[float, float, float] = Field((0.70, 0.15, 0.15), description="train, validation, test")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        given = [d for d in (self.train_end, self.val_end, self.test_end) if d is not None]
        if given != sorted(set(given)):
            raise ValueError(f"train_end < val_end < test_end, got {' / '.join(map(str, given))}")
        if any(f <= 0 for f in self.fractions) or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must be positive and sum to 1, got {self.fractions}")
        return self


class CpuMachine(Spec):
    """A rented machine without GPUs: flavours in the order they are tried, and a size."""

    flavors: tuple[str, ...] = Field(("cpu5c", "cpu3c", "cpu5g", "cpu3g"), min_length=1, description="in this order")
    vcpus: int = Field(4, ge=2, le=256, description="a power of two; the flavour decides the memory per vCPU")

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.vcpus & (self.vcpus - 1):
            raise ValueError(f"vcpus must be a power of two, got {self.vcpus}")
        return self


class GpuMachine(Spec):
    """A rented machine with GPUs: types in the order they are tried, or whatever is large and cheap enough."""

    types: tuple[str, ...] | None = Field(
        ("NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090", "NVIDIA L4", "NVIDIA GeForce RTX 4090"),
        min_length=1,
        description="in this order; null: any type with min_memory_gb, the cheapest first",
    )
    min_memory_gb: float = Field(16, gt=0, description="of one GPU; only for types: null")
    count: int = Field(1, ge=1, le=16)
    min_cuda: str | None = Field("13.0", pattern=r"^\d+\.\d+$", description="what the host's driver must support")


RetryReason = Literal["infra_lost", "preempted", "stalled", "crash_loop", "no_capacity", "try_again"]


class RetryConfig(Spec):
    """What is tried again with a further attempt. Bad input and divergence (exit 3, 5) never are."""

    on: tuple[RetryReason, ...] = Field(("infra_lost", "preempted", "stalled", "no_capacity", "try_again"))
    times: int = Field(2, ge=0, le=20, description="further attempts after the first")


class MachineConfig(Spec):
    """The machine a job rents, and what it may cost. Nothing here changes a result: it is no part of a run's id."""

    cpu: CpuMachine | None = Field(None, description="one of cpu and gpu")
    gpu: GpuMachine | None = Field(None, description="one of cpu and gpu")
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    data_centers: tuple[str, ...] = Field((), description="empty: any; the provider places nowhere else")
    disk_gb: int = Field(20, ge=20, le=2000, description="container disk; smaller ones are refused as if out of stock")
    registry: str | None = Field(None, description="id of the provider's credentials for a private image")
    secrets: dict[str, str] = Field(
        default_factory=dict, description="environment variable -> name of the provider's secret that fills it"
    )
    max_price_per_hour: Positive = Field(1.0, description="USD; dearer candidates are passed over")
    max_runtime: Duration = Field(timedelta(hours=6), description="of one attempt, the image's download included")
    max_wait_for_capacity: Duration = Field(timedelta(minutes=15), description="then the attempt ends as no_capacity")
    max_spend: Positive = Field(5.0, description="USD, all attempts of a run together")
    retry: RetryConfig = Field(default_factory=RetryConfig)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.cpu is None) == (self.gpu is None):
            raise ValueError("a machine has one of cpu and gpu; set the other to null")
        return self


class PrecomputeMachine(MachineConfig):
    """Precompute's: the highest clock there is, for two hours at most."""

    cpu: CpuMachine | None = Field(default_factory=CpuMachine, description="one of cpu and gpu")
    max_price_per_hour: Positive = Field(0.5, description="USD; dearer candidates are passed over")
    max_runtime: Duration = Field(timedelta(hours=2), description="of one attempt, the image's download included")
    max_spend: Positive = Field(1.0, description="USD, all attempts of a run together")


class TrainMachine(MachineConfig):
    """Training's: one cheap GPU with 24 GB, and three to fall back on."""

    gpu: GpuMachine | None = Field(default_factory=GpuMachine, description="one of cpu and gpu")


class PrecomputeSpec(Spec):
    """Bars in; features, windows, mask and splits out."""

    job: Literal["precompute"] = "precompute"
    bars: str | None = Field(None, description="path, file:// or s3:// of a parquet or CSV file; null: synthetic bars")
    timezone: str | None = Field(None, description="zone of naive times, such as America/New_York; converted to UTC")
    on_bad_bars: Literal["fail", "drop"] = Field("fail", description="refuse bad bars, or drop them (at most 1 %)")
    synthetic: MarketConfig = Field(default_factory=MarketConfig, description="the market made when bars is null")
    features: FeatureConfig = Field(default_factory=FeatureConfig)
    splits: SplitConfig = Field(default_factory=SplitConfig)
    windows: Literal["stored", "virtual"] = Field(
        "stored", description="virtual leaves features_11d.npy out of the run; pull rebuilds it to the recorded sha256"
    )
    machine: PrecomputeMachine = Field(default_factory=PrecomputeMachine, description="what --on runpod rents")


class HindsightConfig(Spec):
    """Constants of the hindsight labels (`moola.labels.hindsight_labels`): moves found with the future in view."""

    atr_period: int = Field(20, ge=1, le=1_000, description="bars in the ATR, the last of them just before the move")
    min_bars: int = Field(4, ge=1, le=80, description="shortest expansion")
    max_bars: int = Field(16, ge=1, le=80, description="longest expansion")
    min_net_atr: Positive = Field(4.0, description="least net move of an expansion, in ATR")
    min_efficiency: float = Field(0.75, gt=0, le=1, description="least |net move| / path of an expansion")
    state_bars: int = Field(24, ge=2, le=80, description="bars before the expansion that name its class")
    max_range_atr: Positive = Field(4.5, description="consolidation: largest range of the state, in ATR")
    min_leg_atr: Positive = Field(4.0, description="retracement: least leg in the expansion's direction, in ATR")
    give_back: tuple[float, float] = Field((0.25, 0.75), description="retracement: fraction of the leg given back")
    gap_minutes: int = Field(30, ge=1, le=10_000, description="a pause this long ends a session; no move spans one")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_bars > self.max_bars:
            raise ValueError(f"min_bars <= max_bars, got {self.min_bars} > {self.max_bars}")
        if self.state_bars + self.max_bars > WINDOW:
            raise ValueError(
                f"the state and the expansion must fit into {WINDOW} bars, got {self.state_bars} + {self.max_bars}"
            )
        if not 0 <= self.give_back[0] < self.give_back[1] <= 1:
            raise ValueError(f"0 <= give_back[0] < give_back[1] <= 1, got {self.give_back}")
        return self


class LabelConfig(Spec):
    """Where the labels come from and which classes there are. A label outside `classes` is refused."""

    source: str = Field(
        "hindsight", min_length=1, description="hindsight, planted (synthetic bars only), or a parquet or CSV file"
    )
    classes: tuple[str, ...] = Field(("consolidation", "retracement"), min_length=2, description="in logit order")
    left_out_grades: tuple[str, ...] = Field(("D",), description="label grades that are left out, and counted")
    state_bars: int = Field(24, ge=0, lt=WINDOW, description="label files: bars before the move that a re-cut keeps")
    hindsight: HindsightConfig = Field(default_factory=HindsightConfig)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            raise ValueError(f"classes must be distinct and not empty, got {self.classes}")
        return self


class GateConfig(Spec):
    """The success criteria of a training run, judged on the validation split."""

    min_predicted_share: float = Field(
        0.30, ge=0, le=1, description="of a class-balanced set, each class must be predicted more often than this"
    )
    min_f1_macro: float = Field(0.60, ge=0, le=1, description="least F1 macro of the type")
    min_hit_centre_3: float = Field(0.60, ge=0, le=1, description="least fraction with the centre within 3 bars")
    min_sigma: Positive = Field(0.5, description="least sigma_ptr and sigma_type once settled")
    max_sigma: Positive = Field(2.0, description="largest sigma_ptr and sigma_type once settled")
    settled_fraction: float = Field(0.25, gt=0, le=1, description="last part of training in which sigmas are settled")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_sigma >= self.max_sigma:
            raise ValueError(f"min_sigma < max_sigma, got {self.min_sigma} and {self.max_sigma}")
        return self


class TrainConfig(Spec):
    """How `moola.training.loop` trains: stages pretrain -> heads -> full, then the best weights on validation."""

    seed: int = Field(0, ge=0, description="of weights, dropout, draws and augmentation")
    batch_size: int = Field(32, ge=1, le=65_536, description="windows per step, over all processes")
    windows_per_epoch: int | None = Field(
        None, ge=1, description="windows drawn per epoch; null: as many as there are labels, at least 512"
    )
    pretrain_epochs: int = Field(0, ge=0, le=10_000, description="epochs of filling in masked spans; 0 leaves it out")
    pretrain_windows: int = Field(4096, ge=1, description="unlabelled windows drawn per epoch of pretraining")
    heads_epochs: int = Field(1, ge=0, le=10_000, description="epochs with the encoder frozen")
    full_epochs: int = Field(20, ge=1, le=10_000, description="most epochs with everything trained")
    patience_epochs: int = Field(8, ge=1, description="epochs of `full` without a better validation score, then stop")
    learning_rate: Positive = Field(2e-3, le=1, description="of the heads, at its highest")
    encoder_step: Positive = Field(0.5, le=1, description="the encoder's learning rate in `full`, as a fraction of it")
    warm_up_fraction: float = Field(0.05, ge=0, lt=1, description="part of a stage in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW; not applied to the sigmas")
    gradient_limit: Positive = Field(1.0, description="largest gradient norm; longer ones are scaled down to it")
    target_width_bars: Positive = Field(1.5, description="standard deviation of the soft targets of start and end")
    recut: bool = Field(True, description="cut training windows at a random place around the move")
    mirrored: bool = Field(True, description="turn half of the training windows upside down")
    mixed_precision: bool = Field(True, description="bfloat16 on CUDA")
    compile: bool = Field(True, description="torch.compile on CUDA")
    deterministic: bool = Field(False, description="only kernels that give the same bits each time")
    checkpoint_minutes: float = Field(5.0, ge=0, description="time between checkpoints; 0: after every step")


class ModelConfig(Spec):
    """The network: `moola.models`."""

    name: Literal["jade"] = "jade"
    hidden_size: int = Field(96, ge=1, le=4096, description="H of the BiLSTM, in each direction")
    num_layers: int = Field(1, ge=1, le=8)
    dropout: float = Field(0.3, ge=0, lt=1, description="on what the heads read")


class CrossValidation(Spec):
    """Forward-chaining folds x seeds: fold k trains on the first k parts of the time and is tested on the next."""

    folds: int = Field(4, ge=1, le=50)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each fold is trained once with each")


class TrainSpec(Spec):
    """A feature set and labels in; a model, its metrics beside their baselines, gates and a report out."""

    job: Literal["train"] = "train"
    features: str | None = Field(None, description="the precompute run (its id, or the start of it); null: the newest")
    labels: LabelConfig = Field(default_factory=LabelConfig)
    fraction: float = Field(1.0, gt=0, le=1, description="of the training labels, drawn by the seed; 0.1 is a dry run")
    max_train_labels: int | None = Field(None, ge=4, description="at most so many training labels, drawn by the seed")
    model: ModelConfig = Field(default_factory=ModelConfig)
    encoder: str | None = Field(None, description="a train run whose encoder to start from, instead of pretraining")
    training: TrainConfig = Field(default_factory=TrainConfig)
    gates: GateConfig = Field(default_factory=GateConfig)
    cross_validate: CrossValidation | None = Field(None, description="folds x seeds, besides the run's own splits")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is one, else the CPU, but never on a machine rented for its GPU"
    )
    processes: int | None = Field(None, ge=1, le=64, description="that train together; null: one per GPU, else one")
    machine: TrainMachine = Field(default_factory=TrainMachine, description="what --on runpod rents")


JobSpec = PrecomputeSpec | TrainSpec
JOBS: dict[str, type[PrecomputeSpec] | type[TrainSpec]] = {"precompute": PrecomputeSpec, "train": TrainSpec}


def read_spec(job: str, path: Path, overrides: dict[str, Any] | None = None) -> JobSpec:
    """The spec in a YAML file, with dotted overrides such as {"features.zigzag_k": 1.5} on top.

    Raises DataError that names the file, the field's path, the rule and the value.
    """
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"the spec must be a readable YAML file: {error} ({path})") from error
    if not isinstance(data, dict):
        raise DataError(f"a spec must be a mapping of fields, got {type(data).__name__} ({path})")
    for field, value in (overrides or {}).items():
        _set(data, field, value)
    return parse_spec(job, data, place=str(path))


def parse_spec(job: str, data: dict[str, Any], *, place: str) -> JobSpec:
    """A validated spec; `place` says where `data` came from. Raises DataError."""
    try:
        return JOBS[job].model_validate(data)
    except ValidationError as error:
        faults = [f"{_path(e['loc'])}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        raise DataError(f"the {job} spec is not valid ({place}):\n  " + "\n  ".join(faults)) from error


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "(whole spec)"


def _set(data: dict[str, Any], field: str, value: Any) -> None:
    *parents, name = field.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise DataError(f"{field} cannot be set: {parent} is {child!r}, not a group of fields")
        data = child
    data[name] = value
