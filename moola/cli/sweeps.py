"""The commands for many runs at once: sweep and group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.jobs import (
    BadBarsOption,
    FeaturesOption,
    FractionOption,
    LabelsOption,
    LabelZoneOption,
    WindowsOption,
    label_flags,
    print_warnings,
    require_detachable,
)
from moola.cli.options import (
    FETCHED,
    DetachOption,
    DryRunOption,
    ImageOption,
    JsonOption,
    LayoutOption,
    OnOption,
    SetOption,
    SpecOption,
    StoreOption,
    SymbolOption,
    WatchOption,
    WorkOption,
    YesOption,
    ZoneOption,
    given,
    read_settings,
    reading_overrides,
    require_table_path,
    spec_overrides,
)
from moola.launch import Backend

if TYPE_CHECKING:
    from moola.jobs.prepare import PreparedRun
    from moola.launch.grid import Overrides
    from moola.launch.settings import Settings
    from moola.runs.groups import Group
    from moola.runs.watching import WatchedRun
    from moola.store import Store

OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over", metavar="FIELD=VALUES", help="a field and its values: training.seed=0,1,2"
    ),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(min=1, max=50, metavar="N", help="cross-validate: a run for each of N folds"),
]
PrecomputeOverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over", metavar="FIELD=VALUES", help="a field and its values: features.zigzag_k=1.2,1.5"
    ),
]
RandomOption = Annotated[
    int | None,
    typer.Option("--random", min=1, metavar="N", help="run N points of the grid, drawn by a seed"),
]
RandomSeedOption = Annotated[int, typer.Option("--random-seed", help="of the draw of --random")]
ParallelOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, metavar="N", help="runs at once; default: what cores and memory allow"
    ),
]
MachinesOption = Annotated[
    int,
    typer.Option(
        min=1, max=100, metavar="N", help="rented machines at once by this command (--on runpod)"
    ),
]
MaxMachinesOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=1000, metavar="N", help="at once by all launchers; default: as --machines"
    ),
]
MaxSpendOption = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=1e6, metavar="USD", help="of all runs and launchers; default: as the plan"
    ),
]
BarsFilesOption = Annotated[
    str,
    typer.Option("--bars", help="1-minute bars: a folder or a pattern; one run for each file"),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(help="write the out-of-fold predictions of a cross-validation: .parquet or .csv"),
]
GroupArgument = Annotated[
    str, typer.Argument(metavar="GROUP", help="a group's id, or the start of it")
]


def sweep_train(
    over: OverOption = None,
    folds: FoldsOption = None,
    random: RandomOption = None,
    random_seed: RandomSeedOption = 0,
    parallel: ParallelOption = None,
    labels: LabelsOption = None,
    timezone: LabelZoneOption = None,
    features: FeaturesOption = None,
    fraction: FractionOption = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    machines: MachinesOption = 1,
    max_machines: MaxMachinesOption = None,
    max_spend: MaxSpendOption = None,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Train a model for every combination of the values of --over, and each of --folds.

    Runs that are committed are not computed again: the same command goes on with what is left.
    """
    from moola.jobs.prepare import prepare_train, shipped_spec
    from moola.launch.grid import with_folds
    from moola.specs import TrainSpec, read_spec
    from moola.store import open_store

    if not over and folds is None:
        raise typer.BadParameter("a sweep needs values to sweep over: give --over, or --folds")
    settings = _settings(store, work, on, image, dry_run=dry_run)
    require_detachable(settings, detach)
    how = _How(parallel, machines, max_machines, max_spend, detach, dry_run, yes)
    flags = label_flags(labels, timezone, features, fraction)
    fixed = spec_overrides(set_, flags)
    path = spec or shipped_spec("train")
    run_store = open_store(settings.store)

    def prepare(point: "Overrides") -> "PreparedRun":
        resolved = read_spec(TrainSpec, path, {**fixed, **point})
        return prepare_train(resolved, run_store, settings.work)

    points = _points(over or [], fixed, random, random_seed)
    if folds is not None:
        points = with_folds(points, folds, fixed)
    _sweep(settings, "train", points, prepare, how)


def sweep_precompute(
    bars: BarsFilesOption,
    over: PrecomputeOverOption = None,
    parallel: ParallelOption = None,
    layout: LayoutOption = None,
    symbol: SymbolOption = None,
    timezone: ZoneOption = None,
    on_bad_bars: BadBarsOption = None,
    windows: WindowsOption = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    machines: MachinesOption = 1,
    max_machines: MaxMachinesOption = None,
    max_spend: MaxSpendOption = None,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Compute a feature set for each file of bars, and every combination of the values of --over.

    Runs that are committed are not computed again: the same command goes on with what is left.
    """
    from moola.data.loading import fetch_bars
    from moola.jobs.prepare import prepare_precompute, shipped_spec
    from moola.specs import PrecomputeSpec, read_spec

    settings = _settings(store, work, on, image, dry_run=dry_run)
    require_detachable(settings, detach)
    how = _How(parallel, machines, max_machines, max_spend, detach, dry_run, yes)
    flags = {"on_bad_bars": on_bad_bars, "windows": windows}
    fixed = {**reading_overrides(set_, layout, symbol, timezone), **given(flags)}
    path = spec or shipped_spec("precompute")

    def prepare(point: "Overrides") -> "PreparedRun":
        resolved = read_spec(PrecomputeSpec, path, {**fixed, **point})
        return prepare_precompute(resolved, settings.work)

    files = fetch_bars(bars, settings.work / FETCHED)
    rest = _points(over, fixed, None, 0) if over else [{}]
    points: list[Overrides] = [{"bars": str(file), **point} for file in files for point in rest]
    _sweep(settings, "precompute", points, prepare, how)


@dataclass(frozen=True)
class _How:
    """The options of both commands that say how the runs are run."""

    parallel: int | None
    machines: int
    max_machines: int | None
    max_spend: float | None
    detach: bool
    dry_run: bool
    yes: bool


def _settings(
    store: str | None,
    work: Path | None,
    on: Backend | None,
    image: str | None,
    *,
    dry_run: bool,
) -> "Settings":
    from moola.runs.work_limit import keep_within_limit

    settings = read_settings(store, work, on, image)
    if settings.on == "docker":
        raise typer.BadParameter("a sweep runs --on local, ray or runpod, got docker")
    if not dry_run:
        keep_within_limit(settings.work, settings.work_limit_gb)
    return settings


def _points(
    over: list[str], fixed: dict[str, object], random: int | None, seed: int
) -> list["Overrides"]:
    from moola.launch.grid import combinations, drawn, read_swept

    swept = read_swept(over)
    if random is None:
        return combinations(swept, fixed)
    return drawn(swept, fixed, random, seed)


def _sweep(
    settings: "Settings",
    job: str,
    points: list["Overrides"],
    prepare: "Callable[[Overrides], PreparedRun]",
    how: _How,
) -> None:
    from moola.launch.console import print_table
    from moola.launch.grid import title_of
    from moola.launch.group_table import plan_table
    from moola.launch.progress import count_bar
    from moola.launch.sweep import run_sweep, sweep_of

    members = []
    with count_bar("check", len(points), "runs") as advance:
        for point in points:
            members.append((title_of(point), prepare(point)))
            advance(1)

    print_warnings(run for _, run in members)  # the logs of the members are not shown
    sweep = sweep_of(job, members)
    if settings.on == "runpod":
        from moola.launch.rented.sweep import Caps, run_rented_sweep

        caps = Caps(how.machines, how.max_machines, how.max_spend)
        run_rented_sweep(settings, sweep, caps, detach=how.detach, dry_run=how.dry_run, yes=how.yes)
    elif how.dry_run:
        print_table(plan_table(sweep.group, sweep.titles))
    elif settings.on == "ray":
        from moola.launch.on_ray.sweep import run_ray_sweep

        run_ray_sweep(settings, sweep, parallel=how.parallel)
    else:
        run_sweep(settings, sweep, parallel=how.parallel)


def show_group(
    group: GroupArgument,
    predictions: PredictionsOption = None,
    watch: WatchOption = False,
    json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show how the runs of a group stand, and what tells them apart.

    Of a cross-validation also its metrics: mean and spread over the folds, and on all windows.
    With --watch until all have ended.
    """
    from moola.launch.console import print_json, print_table
    from moola.launch.group_table import group_document, group_tables
    from moola.runs.groups import find_group, read_group
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    found = read_group(run_store, find_group(run_store, group))
    if predictions is not None:
        _write_predictions(run_store, found, predictions)
    if watch:
        _watch_group(settings, run_store, found, as_json=json)
    elif json:
        print_json(group_document(run_store, found))
    else:
        for table in group_tables(run_store, found):
            print_table(table)


def _write_predictions(store: "Store", group: "Group", path: Path) -> None:
    """The out-of-fold predictions of all cross-validations of a group."""
    require_table_path("--predictions", path)
    import pandas as pd

    from moola.errors import DataError
    from moola.evaluation.run_tables import write_table
    from moola.launch.console import print_text, terminal
    from moola.launch.group_table import cross_validations_of, member_states

    results = cross_validations_of(store, member_states(store, group))
    tables = [result.predictions() for result in results if result.runs]
    if not tables:
        raise DataError(
            f"--predictions are those of the folds of a cross-validation, and {group.id} has no "
            "committed fold: moola sweep train --folds N"
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(tables, ignore_index=True)
    write_table(table, path)
    n_runs = sum(len(result.runs) for result in results)
    print_text(f"{len(table):,} predictions of {n_runs} runs: {path}", terminal())


def _watch_group(settings: "Settings", store: "Store", group: "Group", *, as_json: bool) -> None:
    from moola.cli.watching import live_document, watch_runs
    from moola.launch.group_table import member_document, member_of, member_states
    from moola.launch.live_table import runs_table
    from moola.runs.survey import survey_runs
    from moola.runs.watching import RunWatcher

    watcher = RunWatcher(store)
    differs = {member.run_id: member.differs for member in member_states(store, group)}
    titles = {run_id: " ".join(values.values()) for run_id, values in differs.items()}

    def document(runs: "Sequence[WatchedRun]") -> dict[str, object]:
        members = [
            {**member_document(member_of(run.summary, differs[run.run_id])), **live_document(run)}
            for run in runs
        ]
        return {"group": group.id, "job": group.job, "members": members}

    watch_runs(
        settings,
        look=lambda: watcher.all(survey_runs(store, group.job), list(differs)),
        draw=lambda runs, console: runs_table(runs, console, titles),
        document=document,
        as_json=as_json,
        is_over=lambda runs: not any(run.is_open and not run.is_abandoned for run in runs),
    )
