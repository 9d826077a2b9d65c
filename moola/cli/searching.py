"""The command that searches: sweeps whose points are chosen by what earlier ones have come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.jobs import (
    FeaturesOption,
    FractionOption,
    LabelsOption,
    LabelZoneOption,
    label_flags,
    print_warnings,
)
from moola.cli.options import (
    DryRunOption,
    OnOption,
    SetOption,
    SpecOption,
    StoreOption,
    WorkOption,
    read_settings,
    spec_overrides,
)
from moola.cli.sweeps import ParallelOption
from moola.launch import Backend
from moola.runs.redaction import STUDY_STORAGE

if TYPE_CHECKING:
    from moola.jobs.prepare import PreparedRun
    from moola.launch.grid import Overrides
    from moola.launch.search.searching import Search
    from moola.launch.settings import Settings

SpaceOption = Annotated[
    list[str],
    typer.Option(
        "--over",
        metavar="FIELD=LOW..HIGH",
        help="a field and its range, 'training.learning_rate=1e-4..1e-2 log' or "
        "model.hidden_size=32..128, or its values: model.dropout=0.1,0.2",
    ),
]
TrialsOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="in all, those of earlier commands among them")
]
ObjectiveOption = Annotated[
    str,
    typer.Option(metavar="METRIC", help="what is made better: a metric of the validation split"),
]
StudyOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="of the study; default: by spec, space and objective"),
]
StudyStorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"a database for the study: sqlite:///search.db; else the store  [{STUDY_STORAGE}]",
    ),
]
SearchSeedOption = Annotated[int, typer.Option("--search-seed", min=0, help="of the draws")]


def search(
    over: SpaceOption,
    trials: TrialsOption = 20,
    objective: ObjectiveOption = "joint_success",
    study: StudyOption = None,
    study_storage: StudyStorageOption = None,
    search_seed: SearchSeedOption = 0,
    parallel: ParallelOption = None,
    labels: LabelsOption = None,
    timezone: LabelZoneOption = None,
    features: FeaturesOption = None,
    fraction: FractionOption = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    on: OnOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Search for the fields of a train spec that are best on the validation split, with Optuna.

    Each trial is an ordinary train run. The same command again goes on with what is left.
    """
    from moola.launch.search.study import keep_secrets_of, require_optuna

    require_optuna()
    storage_url = _storage_url(study_storage)
    if storage_url is not None:
        keep_secrets_of(storage_url)
    settings = _settings(store, work, on, dry_run=dry_run)
    _require_name(study)
    flags = label_flags(labels, timezone, features, fraction)
    planned = _plan(
        settings,
        over,
        spec_overrides(set_, flags),
        spec,
        objective=objective,
        n_trials=trials,
        seed=search_seed,
        study=study or "",
    )
    print_warnings([planned.sample])
    if dry_run:
        _show_plan(planned)
        return

    from moola.launch.search.searching import run_search

    run_search(settings, planned, parallel=parallel, storage_url=storage_url)


def _storage_url(option: str | None) -> str | None:
    """The database of the option, or of the environment: where a password is not listed by `ps`."""
    import os

    return option or os.environ.get(STUDY_STORAGE, "").strip() or None


def _settings(
    store: str | None, work: Path | None, on: Backend | None, *, dry_run: bool
) -> "Settings":
    from moola.runs.work_limit import keep_within_limit

    settings = read_settings(store, work, on)
    if settings.on not in ("local", "ray"):
        raise typer.BadParameter(
            f"a search runs --on local or ray, got {settings.on}: machines are rented for points "
            "that are drawn at once, moola sweep train --over FIELD=VALUES --random N --on runpod"
        )
    if not dry_run:
        keep_within_limit(settings.work, settings.work_limit_gb)
    return settings


def _require_name(study: str | None) -> None:
    from pydantic import TypeAdapter, ValidationError

    from moola.launch.search.journal import StudyName

    try:
        TypeAdapter(StudyName).validate_python(study or "search")
    except ValidationError as error:
        raise typer.BadParameter(
            f"--study must be 1 to 64 letters, digits, - . and _, a letter or digit first, got "
            f"{study!r}"
        ) from error


def _plan(
    settings: "Settings",
    over: list[str],
    fixed: dict[str, object],
    spec: Path | None,
    *,
    objective: str,
    n_trials: int,
    seed: int,
    study: str,
) -> "Search":
    from moola.jobs.prepare import prepare_train, shipped_spec
    from moola.launch.search.searching import plan_search
    from moola.launch.search.space import read_space
    from moola.specs import TrainSpec, read_spec
    from moola.store import open_store

    run_store = open_store(settings.store)
    path = spec or shipped_spec("train")

    def prepare(point: "Overrides") -> "PreparedRun":
        resolved = read_spec(TrainSpec, path, {**fixed, **point})
        return prepare_train(resolved, run_store, settings.work)

    return plan_search(
        read_space(over),
        fixed,
        prepare,
        objective=objective,
        n_trials=n_trials,
        seed=seed,
        study=study,
    )


def _show_plan(planned: "Search") -> None:
    from moola.launch.console import print_text

    definition = planned.definition
    lines = [f"study {planned.name}: {planned.n_trials} trials"]
    lines += [f"  {field}={each.text()}" for field, each in definition.space.dimensions.items()]
    lines.append(f"  {definition.direction} {definition.objective} of the validation split")
    print_text("\n".join(lines))
