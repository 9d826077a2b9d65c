"""The study of a search: Optuna's record of its trials, in the store or in a user's database.

A study is input: whoever can write to it decides which points are tried, within the space, and
what is told is checked against the runs themselves (`moola.launch.search.trials`).
"""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import JsonValue, TypeAdapter, ValidationError

from moola.errors import ArtifactError, DataError, MoolaError, TryAgainError
from moola.launch.grid import Overrides
from moola.launch.search.journal import StoreJournal
from moola.launch.search.objective import Direction
from moola.launch.search.space import Space
from moola.runs.records import RunId
from moola.runs.redaction import keep_secret, redacted
from moola.store import Store
from moola.text import quoted, shortened

if TYPE_CHECKING:  # importing it takes a second
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

DEFINITION, RUN = "moola", "run"  # user attributes of a study, and of a trial
SHOWN_DIFFERENCES = 10
LONGEST_REASON = 300  # characters
Outcome = Literal["running", "complete", "failed"]
_RUN_ID: TypeAdapter[str] = TypeAdapter(RunId)


class _EndedElsewhereError(ArtifactError):
    """A trial has ended that this launcher had at work."""


@dataclass(frozen=True)
class Definition:
    """What a study is of. `fixed`: what all of its runs have in common, field -> value."""

    space: Space
    objective: str
    direction: Direction
    fixed: Mapping[str, JsonValue]

    def document(self) -> dict[str, JsonValue]:
        """As a study keeps it."""
        return {
            "space": self.space.document(),
            "objective": {"metric": self.objective, "direction": self.direction},
            "fixed": dict(self.fixed),
        }


@dataclass(frozen=True)
class Trial:
    """A trial whose point is whole. `run_id`: "" where it has none; `value`: of a complete one."""

    number: int
    outcome: Outcome
    point: Overrides
    run_id: str = ""
    value: float | None = None


def require_optuna() -> None:
    """Raises DataError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise DataError("moola search needs the package optuna: pip install 'moola[search]'")


class SearchStudy:
    """A study as one launcher reads and writes it. `place` says where it is, without a secret.

    Its methods raise ArtifactError where it is damaged, TryAgainError where a database is silent.
    """

    def __init__(
        self, name: str, place: str, definition: Definition, journal: StoreJournal | None
    ) -> None:
        self.name = name
        self.place = place
        self.definition = definition
        self._journal = journal
        self._distributions = definition.space.distributions()
        self._storage: BaseStorage
        self._study: Study

    def open(self, storage_url: str | None, seed: int) -> None:
        """Load it, or begin it. Raises DataError for one of another search."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        with self._guarded():
            self._storage = _storage(self._journal, storage_url)
            sampler = _sampler(seed)
            if self.name in optuna.get_all_study_names(self._storage):
                self._study = optuna.load_study(
                    study_name=self.name, storage=self._storage, sampler=sampler
                )
            else:
                self._study = optuna.create_study(
                    study_name=self.name,
                    storage=self._storage,
                    sampler=sampler,
                    direction=self.definition.direction,
                    load_if_exists=True,  # somebody may be quicker
                )
            stored = self._study.user_attrs.get(DEFINITION)
            if stored is None and not self._study.get_trials(deepcopy=False):
                stored = self.definition.document()
                self._study.set_user_attr(DEFINITION, stored)
            direction = [each.name.lower() for each in self._study.directions]
        self._require_same(stored, direction)

    def _require_same(self, stored: object, direction: Sequence[str]) -> None:
        if not isinstance(stored, dict):
            raise DataError(f"{self.place} is of another program: give another --study NAME")
        own = self.definition.document()
        differing = [] if list(direction) == [self.definition.direction] else ["its direction"]
        for part in own:
            differing += _differences(part, stored.get(part), own[part])
        if differing:
            listed = "; ".join(differing[:SHOWN_DIFFERENCES])
            raise DataError(
                f"{self.place} is of another search: {listed}. Give another --study NAME, or none"
            )

    def trials(self) -> list[Trial]:
        """Those whose points are whole, by number: one that somebody was killed at asking for has
        none, and counts for nothing."""
        with self._guarded():
            stored = self._study.get_trials(deepcopy=False)
        return [trial for each in stored if (trial := self._read(each)) is not None]

    def _read(self, stored: "FrozenTrial") -> Trial | None:
        outcomes: dict[str, Outcome] = {
            "RUNNING": "running",
            "COMPLETE": "complete",
            "FAIL": "failed",
        }
        outcome = outcomes.get(stored.state.name)
        is_whole = stored.params.keys() == self._distributions.keys()
        if stored.state.name == "WAITING" or (not is_whole and outcome in ("running", "failed")):
            return None
        if outcome is None:
            raise self._bad(stored.number, f"is {stored.state.name}, which no trial of moola's is")
        if stored.distributions != self._distributions:
            raise self._bad(stored.number, "is of another space")

        run_id = self._run_id(stored)
        value = self._value(stored) if outcome == "complete" else None
        if outcome == "complete" and not run_id:
            raise self._bad(stored.number, "is complete, and names no run")
        return Trial(stored.number, outcome, self._point(stored), run_id, value)

    def _point(self, stored: "FrozenTrial") -> Overrides:
        try:
            return self.definition.space.point(stored.params)
        except ValueError as error:
            raise self._bad(stored.number, f"is outside the space: {error}") from error

    def _run_id(self, stored: "FrozenTrial") -> str:
        name = stored.user_attrs.get(RUN, "")
        if name == "":
            return ""
        try:
            run_id = _RUN_ID.validate_python(name, strict=True)
        except ValidationError as error:
            raise self._bad(stored.number, f"names the run {quoted(name)}") from error
        if not run_id.startswith("train-"):
            raise self._bad(stored.number, f"names {run_id}, which is no train run")
        return run_id

    def _value(self, stored: "FrozenTrial") -> float:
        values = stored.values
        if not isinstance(values, list) or len(values) != 1 or not _is_finite(values[0]):
            raise self._bad(stored.number, f"has the values {quoted(values)}")
        return float(values[0])

    def _bad(self, number: int, fault: str) -> ArtifactError:
        return ArtifactError(f"{self.place} is damaged: trial {number} {fault}")

    def ask(self) -> Trial:
        """A new trial."""
        with self._guarded():
            asked = self._study.ask(fixed_distributions=self._distributions)
            number, params = asked.number, dict(asked.params)
        try:
            return Trial(number, "running", self.definition.space.point(params))
        except ValueError as error:
            raise self._bad(number, f"is outside the space: {error}") from error

    def name_run(self, trial: Trial, run_id: str) -> None:
        """Write down which run a trial is. Nothing where another launcher has ended the trial."""
        if trial.run_id == run_id:
            return
        with self._unless_ended(), self._guarded():
            study_id = self._storage.get_study_id_from_name(self.name)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self._storage.set_trial_user_attr(trial_id, RUN, run_id)

    def tell(self, trial: Trial, value: float | None) -> None:
        """End a trial, as failed without a value. Nothing where another launcher has ended it."""
        from optuna.trial import TrialState

        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with self._unless_ended(), self._guarded():
            self._study.tell(trial.number, value, state=state, skip_if_finished=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Optuna at work: silent, and what it raises as an error of moola's."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is experimental in one of its versions
                yield
        except MoolaError:
            raise
        except Exception as error:
            raise self._fault(error) from None  # its own words may hold a password

    @contextlib.contextmanager
    def _unless_ended(self) -> Iterator[None]:
        """Nothing is raised where another launcher has ended the trial meanwhile."""
        try:
            yield
        except _EndedElsewhereError:
            return

    def _fault(self, error: Exception) -> MoolaError:
        if isinstance(error, RuntimeError) and "already finished" in str(error):
            return _EndedElsewhereError(f"{self.place}: {error}")
        said = f"{type(error).__name__} {error}".strip()
        reason = shortened(redacted(said), LONGEST_REASON)
        if self._journal is not None:
            place = self.place
            if self._journal.replayed is not None:
                place = f"{self._journal.key(self._journal.replayed)} in {self._journal.store.url}"
            return ArtifactError(f"{place} is damaged: Optuna stumbles over it ({reason})")
        if any(name in said for name in ("OperationalError", "StorageInternalError")):
            return TryAgainError(f"{self.place} does not answer: {reason}")
        return DataError(
            f"{self.place} cannot be used: {reason}. --study-storage is a URL of SQLAlchemy, such "
            "as sqlite:///search.db, and its driver must be installed"
        )


def open_study(
    store: Store, storage_url: str | None, name: str, definition: Definition, seed: int
) -> SearchStudy:
    """The study of that name, in the store or in the database of a URL.

    Raises DataError for one of another search and for what is no database, ArtifactError for one
    that is damaged, TryAgainError where the database does not answer.
    """
    if storage_url is None:
        journal = StoreJournal(store, name)
        study = SearchStudy(name, f"study {name} in {store.url}", definition, journal)
    else:
        keep_secrets_of(storage_url)
        study = SearchStudy(name, f"study {name} in --study-storage", definition, None)
    study.open(storage_url, seed)
    return study


def keep_secrets_of(storage_url: str) -> None:
    """See to it that no password of a database's URL is shown."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(storage_url)
        _, colon, password = parts.netloc.rpartition("@")[0].partition(":")
        secrets = [password] if colon else []
        secrets += [value for name, value in parse_qsl(parts.query) if "pass" in name.lower()]
        for secret in filter(None, [*secrets, *map(unquote, secrets)]):
            keep_secret(secret)


def _storage(journal: StoreJournal | None, storage_url: str | None) -> "BaseStorage":
    from optuna.storages import JournalStorage, RDBStorage

    if journal is None:
        assert storage_url is not None
        return RDBStorage(storage_url)
    return JournalStorage(journal)  # type: ignore[arg-type]  # it has what a backend has


def _sampler(seed: int) -> "BaseSampler":
    """TPE, whose draws of a trial depend on the seed, the trial's number and what was told.

    So a search that goes on draws what it would have drawn.
    """
    from optuna.samplers import BaseSampler, TPESampler

    class SeededSampler(BaseSampler):
        """TPE with a seed of its own for each trial."""

        _inner: BaseSampler = TPESampler()

        def before_trial(self, study: "Study", trial: "FrozenTrial") -> None:
            digest = hashlib.sha256(f"{seed}:{trial.number}".encode()).digest()
            self._inner = TPESampler(
                seed=int.from_bytes(digest[:4], "big"), multivariate=True, constant_liar=True
            )
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: "Study", trial: "FrozenTrial") -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: "Study", trial: "FrozenTrial", search_space: dict[str, Any]
        ) -> dict[str, Any]:
            return self._inner.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: "Study", trial: "FrozenTrial", param_name: str, param_distribution: Any
        ) -> Any:
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

    return SeededSampler()


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _differences(part: str, stored: object, own: JsonValue) -> list[str]:
    """What differs between a part of a stored definition and this command's, in words."""
    assert isinstance(own, dict)
    if not isinstance(stored, dict):
        return [f"it has no {part}"]
    names = sorted({*map(str, stored), *own})
    return [
        f"{shortened(name)} is {_said(stored.get(name))} there and {_said(own.get(name))} here"
        for name in names
        if stored.get(name) != own.get(name)
    ]


def _said(value: object) -> str:
    """A value of a definition for people: a dimension of the space as its fields."""
    if value is None:
        return "missing"
    if isinstance(value, dict) and set(value) == {"low", "high", "log", "step"}:
        way = " log" if value["log"] else "" if value["step"] is None else f" step {value['step']}"
        return shortened(f"{value['low']}..{value['high']}{way}")
    if isinstance(value, dict) and set(value) == {"values"}:
        return shortened(",".join(map(str, value["values"] or ())))
    return quoted(value)
