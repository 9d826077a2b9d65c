"""model.json of a train run: all that is needed, beside the weights, to use the model."""

from typing import Annotated

from pydantic import Field, StringConstraints

from moola import WINDOW
from moola.data.move_truth import NoMoveKind
from moola.runs.records import Component, Count, InputRun, Record
from moola.specs import SESSION_BREAK_MINUTES, FeatureConfig, ModelConfig

ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PresenceDocument(Record):
    """What a presence model was fitted on and where it finds a move; or why there is none.

    no_moves              where it comes from that a window holds no move
    windows_with_move, windows_without_move
                          on which it was fitted
    pause_minutes         from one bar to the next, over which no move reaches
    threshold             a move is found at this probability or above; chosen on validation, with
                          this precision and recall there; null where there is no presence model
    reason                why there is none
    """

    no_moves: NoMoveKind | None = None
    windows_with_move: Count = 0
    windows_without_move: Count = 0
    pause_minutes: Annotated[int, Field(ge=2, le=10**9)] = SESSION_BREAK_MINUTES
    threshold: Fraction | None = None
    precision: Fraction | None = None
    recall: Fraction | None = None
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None


class ModelDocument(Record):
    """model.json.

    temperature   by which logits are divided for probabilities
    longest_move  bars
    own_bars      whether features are those of each window alone, not of the series
    feature_set   null where the labels carried their own bars and no feature set was named
    feature_sets  by the market's name, where there are several; then `feature_set` is null
    presence      null in a run of a version that had none
    """

    model: ModelConfig
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=1000)
    temperature: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    feature_names: tuple[str, ...] = Field(max_length=1000)
    feature_config: FeatureConfig
    longest_move: Annotated[int, Field(ge=2, le=WINDOW)]
    own_bars: bool
    feature_set: InputRun | None
    feature_sets: dict[Component, InputRun] | None = None
    presence: PresenceDocument | None = None
    moola: Annotated[str, StringConstraints(max_length=100)]

    def stored(self) -> dict[str, object]:
        """As it is written; a run on one feature set has no `feature_sets`."""
        left_out = {"feature_sets"} if self.feature_sets is None else set()
        return self.model_dump(mode="json", exclude=left_out)
