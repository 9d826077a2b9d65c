"""The spec of training: a feature set and labels in; a model, its metrics and a report out."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from moola import WINDOW
from moola.specs.base import Names, Positive, Spec, whole_fractions
from moola.specs.machine import TrainMachine

COMPUTED_LABELS = ("hindsight", "planted")  # values of `labels.source` that name no file
FILE_SOURCE = "file"  # `labels.source` of a submitted run whose labels are one of its inputs

STATE_CLASSES = ("consolidation", "retracement")  # what comes before a move, in logit order
RareClasses = Literal["refuse", "train_only", "drop"]
NO_MOVE = "none"  # the word by which a label says that nobody sees a move
STATE_BARS = 24  # bars before a move that tell which of them it is
SESSION_BREAK_MINUTES = 30  # longer than any pause inside a CME session; the daily halt has 60


ClassName = Annotated[str, StringConstraints(max_length=200)]


class HindsightConfig(Spec):
    """Constants of the hindsight labels, which look ahead.

    See `moola.data.hindsight.hindsight_labels`.
    """

    atr_period: int = Field(
        20,
        ge=1,
        le=1_000,
        description="bars in the ATR, the last of them just before the move",
    )
    min_bars: int = Field(4, ge=1, le=80, description="shortest expansion")
    max_bars: int = Field(16, ge=1, le=80, description="longest expansion")
    min_net_atr: Positive = Field(4.0, description="smallest net move of an expansion, in ATR")
    min_efficiency: float = Field(
        0.75,
        gt=0,
        le=1,
        description="smallest |net move| / path of an expansion",
    )
    state_bars: int = Field(
        STATE_BARS,
        ge=2,
        le=80,
        description="bars before the expansion that decide its class",
    )
    max_range_atr: Positive = Field(
        4.5,
        description="consolidation: largest range of the state, in ATR",
    )
    min_leg_atr: Positive = Field(
        4.0,
        description="retracement: smallest leg in the expansion's direction, in ATR",
    )
    give_back: tuple[float, float] = Field(
        (0.25, 0.75),
        description="retracement: fraction of the leg given back",
    )
    gap_minutes: int = Field(
        SESSION_BREAK_MINUTES,
        ge=1,
        le=10_000,
        description="a pause this long ends a session; no move spans one",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_bars > self.max_bars:
            raise ValueError(f"min_bars <= max_bars, got {self.min_bars} > {self.max_bars}")
        if not 0 <= self.give_back[0] < self.give_back[1] <= 1:
            raise ValueError(f"0 <= give_back[0] < give_back[1] <= 1, got {self.give_back}")
        return self

    @model_validator(mode="after")
    def _fits_into_a_window(self) -> Self:
        if self.state_bars + self.max_bars > WINDOW:
            raise ValueError(
                f"the state and the expansion must fit into {WINDOW} bars, "
                f"got {self.state_bars} + {self.max_bars}"
            )
        return self


class LabelConfig(Spec):
    """Where the labels come from and which classes there are.

    A label outside `classes` is refused, but for NO_MOVE; case and blanks around are no difference.
    """

    source: Names = Field(
        "hindsight",
        description="hindsight, planted (synthetic bars only), or a file of labels; or a list of "
        "files, one for each of several feature sets, in their order",
    )
    timezone: str | None = Field(
        None,
        description="zone of naive times in a file of labels, such as America/New_York",
    )
    time_format: str | None = Field(
        None,
        description="of the times in a file of labels, such as %m/%d/%Y %H:%M; needed where day "
        "and month could be swapped",
    )
    classes: tuple[ClassName, ...] = Field(
        STATE_CLASSES,
        min_length=2,
        max_length=1000,
        description="in the order of the logits",
    )
    mirror: dict[str, str] | None = Field(
        None,
        description="which class a class is upside down: {bull: bear}, both ways; one without a "
        "direction is itself. Null: the default classes have none, others are never mirrored",
    )
    rare_classes: RareClasses = Field(
        "refuse",
        description="what is done about a class too rare for a split: refuse the labels, train on "
        "it without judging it, or leave it out",
    )
    fractions: tuple[float, float, float] = Field(
        (0.70, 0.15, 0.15),
        description="of labels that carry their own bars, in their order: train, validation, test",
    )
    left_out_grades: tuple[str, ...] = Field(
        ("D",),
        description="labels of these grades are left out, and counted",
    )
    state_bars: int = Field(
        STATE_BARS,
        ge=0,
        lt=WINDOW,
        description="bars before the move that a re-cut keeps, where the window has room",
    )
    hindsight: HindsightConfig = Field(default_factory=HindsightConfig)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        words = {label_word(name) for name in self.classes}
        if len(words) != len(self.classes) or not all(words):
            raise ValueError(
                f"classes must be distinct and not empty, whatever their case, got {self.classes}"
            )
        return self

    @model_validator(mode="after")
    def _mirror_goes_both_ways(self) -> Self:
        for name, image in (self.mirror or {}).items():
            for side in (name, image):
                if side not in self.classes:
                    raise ValueError(f"mirror must name classes, got {side!r} of {self.classes}")

            back = self.mirrored_classes()[image]
            if back != name:
                raise ValueError(
                    f"mirror must go both ways: {name} turns into {image}, and {image} into {back}"
                )
        return self

    @field_validator("fractions")
    @classmethod
    def _fractions_are_a_whole(
        cls, fractions: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        return whole_fractions(fractions)

    def mirrored_classes(self) -> dict[str, str]:
        """Class -> what it is upside down, for the classes of which that is known."""
        images = {name: name for name in self.classes if name in STATE_CLASSES}

        for name, image in (self.mirror or {}).items():
            images[image] = name
        return images | (self.mirror or {})


def label_word(label: str) -> str:
    """A label as it is compared: in any case, whatever blanks are around and inside."""
    return " ".join(label.split()).casefold()


class GateConfig(Spec):
    """The success criteria of a training run, judged on the validation split."""

    min_predicted_share: float = Field(
        0.30,
        ge=0,
        le=1,
        description="of a class-balanced set, each class must be predicted more often than this",
    )
    min_f1_macro: float = Field(
        0.60,
        ge=0,
        le=1,
        description="smallest F1 macro of the type",
    )
    min_hit_centre_3: float = Field(
        0.60,
        ge=0,
        le=1,
        description="smallest fraction of moves with the centre within 3 bars",
    )
    min_window_auc: float = Field(
        0.70,
        ge=0,
        le=1,
        description="smallest AUC of windows that hold a move against those that hold none",
    )
    min_average_precision: float = Field(
        0.50,
        ge=0,
        le=1,
        description="smallest average precision of the moves found, centres within 3 bars",
    )
    min_sigma: Positive = Field(
        0.5,
        description="lower end of the band in which both sigmas are shown; it decides nothing",
    )
    max_sigma: Positive = Field(
        2.0,
        description="sigma_ptr and sigma_type must be smaller once settled",
    )
    settled_tolerance: float = Field(
        0.25,
        gt=0,
        le=1,
        description="a sigma is settled where its square is within this share of its loss",
    )
    settled_fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="last part of training, in which the sigmas are settled",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_sigma >= self.max_sigma:
            raise ValueError(f"min_sigma < max_sigma, got {self.min_sigma} and {self.max_sigma}")
        return self


class TrainConfig(Spec):
    """How `moola.training.loop` trains: stages pretrain -> heads -> full.

    The weights that are best on validation are kept.
    """

    seed: int = Field(
        0,
        ge=0,
        description="of weights, dropout, draws and augmentation",
    )
    batch_size: int = Field(
        32,
        ge=1,
        le=65_536,
        description="windows per step, over all processes",
    )
    windows_per_epoch: int | None = Field(
        None,
        ge=1,
        description="windows drawn per epoch; null: as many as there are labels, 512 to 4096",
    )
    pretrain_epochs: int = Field(
        0,
        ge=0,
        le=10_000,
        description="epochs of filling in masked spans; 0 leaves the stage out",
    )
    pretrain_windows: int = Field(
        4096,
        ge=1,
        description="unlabelled windows drawn per epoch of pretraining",
    )
    heads_epochs: int = Field(
        1,
        ge=0,
        le=10_000,
        description="epochs with the encoder frozen",
    )
    full_epochs: int = Field(
        20,
        ge=1,
        le=10_000,
        description="most epochs in which everything is trained",
    )
    patience_epochs: int = Field(
        8,
        ge=1,
        description="epochs of `full` without a better validation score before it stops",
    )
    learning_rate: Positive = Field(
        2e-3,
        le=1,
        description="of the heads, at its highest",
    )
    encoder_step: Positive = Field(
        0.5,
        le=1,
        description="the encoder's learning rate in `full`, as a fraction of the heads'",
    )
    warm_up_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="part of a stage in which the learning rate rises",
    )
    weight_decay: float = Field(
        0.01,
        ge=0,
        le=1,
        description="AdamW; not applied to the sigmas",
    )
    gradient_limit: Positive = Field(
        1.0,
        description="largest gradient norm; longer gradients are scaled down to it",
    )
    target_width_bars: Positive = Field(
        1.5,
        description="standard deviation of the soft targets of start and end",
    )
    recut: bool = Field(
        True,
        description="cut training windows at a random place around the move",
    )
    mirrored: bool = Field(
        True,
        description="turn half of the training windows upside down, but for those of classes with "
        "a direction: `labels.mirror`",
    )
    mixed_precision: bool = Field(True, description="bfloat16 on CUDA")
    compile: bool = Field(True, description="torch.compile on CUDA")
    deterministic: bool = Field(
        False,
        description="use only kernels that give the same bits each time",
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="time between checkpoints; 0: after every step",
    )


class TreesConfig(Spec):
    """The trees of a model, grown once the network is trained: `moola.training.boosting`."""

    members: int = Field(
        3,
        ge=0,
        le=100,
        description="forests that are averaged, each grown with other columns; 0: no trees",
    )
    rounds: int = Field(
        200,
        ge=1,
        le=10_000,
        description="trees of a member that rank spans; half as many, of each class, tell the type",
    )
    leaves: int = Field(15, ge=2, le=64, description="most leaves of such a tree")
    learning_rate: Positive = Field(
        0.08,
        le=1,
        description="of the trees that rank spans",
    )
    columns_fraction: float = Field(
        0.3,
        gt=0,
        le=1,
        description="of the descriptors, drawn for each tree",
    )
    windows: int = Field(
        700,
        ge=1,
        le=1_000_000,
        description="where there are fewer labels, each is cut anew until there are about as many",
    )


class PresenceConfig(Spec):
    """What tells whether a window holds a move: `moola.training.presence`."""

    windows: int = Field(
        3000,
        ge=1,
        le=1_000_000,
        description="the most training windows with a move, and without one, that it learns from",
    )


class ModelConfig(Spec):
    """The network: `moola.models`."""

    name: Literal["jade"] = "jade"
    hidden_size: int = Field(
        96,
        ge=1,
        le=4096,
        description="H of the BiLSTM, in each direction",
    )
    num_layers: int = Field(1, ge=1, le=8)
    dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="of the input of the heads",
    )


class CrossValidation(Spec):
    """One fold of a forward-chaining cross-validation: the run's splits, in place of others.

    The time is cut into folds + 1 equal parts: of as many bars, those of all feature sets together
    where there are several. Fold k is tested on part k + 1, and knows the k + 1 parts before it:
    validation is the last of them in time, 15 %, and training the rest.
    """

    folds: int = Field(ge=1, le=50, description="of the cross-validation")
    fold: int = Field(ge=0, description="which of them this run is: 0 to folds - 1")

    @model_validator(mode="before")
    @classmethod
    def _is_one_fold(cls, fields: object) -> object:
        if isinstance(fields, dict) and ("seeds" in fields or "fold" not in fields):
            raise ValueError(
                "a run is one fold, such as {folds: 4, fold: 0}, and all of them are a sweep: "
                "moola sweep train --folds 4 --over training.seed=0,1,2"
            )
        return fields

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold < folds, got {self.fold} and {self.folds}")
        return self


class SplitDates(Spec):
    """Where train, validation and test of several feature sets end: the same days for all.

    A split ends with the last bar of its day (UTC). With none given, the sets' own splits must have
    been cut at the same time.
    """

    train_end: date | None = Field(None, description="last day of training")
    val_end: date | None = Field(None, description="last day of validation")
    test_end: date | None = Field(None, description="last day of test; null: the last day there is")

    @model_validator(mode="after")
    def _both_cuts(self) -> Self:
        if not self.given:
            return self
        if self.train_end is None or self.val_end is None:
            raise ValueError("train_end and val_end are given together")

        ends = [end for end in (self.train_end, self.val_end, self.test_end) if end is not None]
        if ends != sorted(set(ends)):
            listed = " / ".join(map(str, ends))
            raise ValueError(f"train_end < val_end < test_end, got {listed}")
        return self

    @property
    def given(self) -> bool:
        return any((self.train_end, self.val_end, self.test_end))


class TrainSpec(Spec):
    """A feature set and labels in; a model, its metrics and baselines, gates and a report out."""

    job: Literal["train"] = "train"
    features: Names | None = Field(
        None,
        description="the precompute run (its id, or the start of it); null: the newest; a list of "
        "several, as RUN or NAME=RUN, trains on all of these markets together",
    )
    splits: SplitDates = Field(
        default_factory=SplitDates,
        description="of several feature sets; one has its own",
    )
    labels: LabelConfig = Field(default_factory=LabelConfig)
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the training labels, drawn by the seed; 0.1 is a dry run",
    )
    max_train_labels: int | None = Field(
        None,
        ge=4,
        description="largest number of training labels, drawn by the seed",
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    encoder: str | None = Field(
        None,
        description="a train run whose encoder to start from, instead of pretraining",
    )
    training: TrainConfig = Field(default_factory=TrainConfig)
    trees: TreesConfig = Field(default_factory=TreesConfig)
    presence: PresenceConfig = Field(default_factory=PresenceConfig)
    gates: GateConfig = Field(default_factory=GateConfig)
    cross_validate: CrossValidation | None = Field(
        None,
        description="the fold that this run is, {folds: 4, fold: 0}; `moola sweep train --folds 4` "
        "runs all",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: CUDA where there is one, else the CPU, "
        "but never the CPU of a machine rented for its GPU",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="processes that train together; null: one per GPU, or one without a GPU",
    )
    machine: TrainMachine = Field(
        default_factory=TrainMachine,
        description="what --on runpod rents",
    )

    @model_validator(mode="after")
    def _no_encoder_with_other_cuts(self) -> Self:
        own_cuts = "cross_validate" if self.cross_validate is not None else "splits"
        if self.encoder is not None and (self.cross_validate is not None or self.splits.given):
            raise ValueError(
                f"encoder must be null with {own_cuts}: the run that it is of may have seen "
                "what this one is tested on"
            )
        return self

    @property
    def draws_labels(self) -> bool:
        """Whether some of the training labels are left out by lot."""
        return self.fraction < 1 or self.max_train_labels is not None
