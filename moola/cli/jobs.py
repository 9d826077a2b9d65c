"""The commands that run a job: precompute and train."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moola.cli.options import (
    DetachOption,
    DryRunOption,
    ForceOption,
    ImageOption,
    LayoutOption,
    NameOption,
    OnOption,
    SetOption,
    SpecOption,
    StoreOption,
    SymbolOption,
    TagOption,
    WorkOption,
    YesOption,
    ZoneOption,
    given,
    one_or_all,
    read_settings,
    reading_overrides,
    spec_overrides,
)

if TYPE_CHECKING:
    from moola.jobs.prepare import PreparedRun
    from moola.launch.settings import Settings
    from moola.store import Store

# The same values as in the specs, which take too long to import for --help.
BadBars = Literal["fail", "drop"]
WindowStorage = Literal["stored", "virtual"]

BarsOption = Annotated[
    str | None,
    typer.Option(help="1-minute bars: a file, a folder or a pattern; path, file:// or s3://"),
]
BadBarsOption = Annotated[
    BadBars | None,
    typer.Option(help="what to do about bars that break a rule"),
]
WindowsOption = Annotated[
    WindowStorage | None,
    typer.Option(help="store the windows, or rebuild them when pulled"),
]
TrainEndOption = Annotated[
    str | None,
    typer.Option(help="last day of training, such as 2024-12-31"),
]
ValEndOption = Annotated[str | None, typer.Option(help="last day of validation")]
TestEndOption = Annotated[str | None, typer.Option(help="last day of test")]

LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="label file, or hindsight, or planted (synthetic bars); given again for each of "
        "several --features, in their order"
    ),
]
LabelZoneOption = Annotated[
    str | None,
    typer.Option(help="zone of naive times in the label file, such as America/New_York"),
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN",
        help="the precompute run; default: the newest; given again, as NAME=RUN: several markets "
        "together",
    ),
]
FractionOption = Annotated[
    float | None,
    typer.Option(help="of the training labels to use; 0.1 is a dry run"),
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="of weights, draws and augmentation"),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="resume this run from its newest checkpoint"),
]
RequireGatesOption = Annotated[
    bool,
    typer.Option("--require-gates", help="exit 1 if a gate fails"),
]


def precompute(
    bars: BarsOption = None,
    layout: LayoutOption = None,
    symbol: SymbolOption = None,
    timezone: ZoneOption = None,
    on_bad_bars: BadBarsOption = None,
    windows: WindowsOption = None,
    train_end: TrainEndOption = None,
    val_end: ValEndOption = None,
    test_end: TestEndOption = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    name: NameOption = None,
    tag: TagOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    detach: DetachOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Compute a feature set from 1-minute bars.

    It holds 11 causal features of every bar, windows, mask and splits.
    """
    from moola.jobs.prepare import prepare_precompute, shipped_spec
    from moola.launch.submit import submit_and_follow
    from moola.runs.about import new_about
    from moola.runs.work_limit import keep_within_limit
    from moola.specs import PrecomputeSpec, read_spec

    flags = {
        "bars": bars,
        "on_bad_bars": on_bad_bars,
        "windows": windows,
        "splits.train_end": train_end,
        "splits.val_end": val_end,
        "splits.test_end": test_end,
    }
    about = new_about(name, tag or ())
    settings = read_settings(store, work, on, image)
    require_detachable(settings, detach)
    if not dry_run:
        keep_within_limit(settings.work, settings.work_limit_gb)
    overrides = {**reading_overrides(set_, layout, symbol, timezone), **given(flags)}
    resolved = read_spec(PrecomputeSpec, spec or shipped_spec("precompute"), overrides)
    run = prepare_precompute(resolved, settings.work, force=force)
    show_warnings(settings, run, dry_run=dry_run)
    submit_and_follow(settings, run, dry_run=dry_run, yes=yes, about=about, detach=detach)


def train(
    labels: LabelsOption = None,
    timezone: LabelZoneOption = None,
    features: FeaturesOption = None,
    fraction: FractionOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = None,
    require_gates: RequireGatesOption = False,
    spec: SpecOption = None,
    set_: SetOption = None,
    name: NameOption = None,
    tag: TagOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    detach: DetachOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Train a model on features and labels; its metrics stand beside their baselines."""
    from moola.jobs.prepare import prepare_resume, prepare_train, shipped_spec
    from moola.launch.submit import submit_and_follow
    from moola.runs.about import new_about
    from moola.runs.work_limit import keep_within_limit
    from moola.specs import TrainSpec, read_spec
    from moola.store import open_store

    flags = label_flags(labels, timezone, features, fraction)
    flags["training.seed"] = seed
    if resume is not None:
        _require_own_spec(bool(force or spec or set_ or given(flags)))

    about = new_about(name, tag or ())
    settings = read_settings(store, work, on, image)
    require_detachable(settings, detach)
    if not dry_run:
        keep_within_limit(settings.work, settings.work_limit_gb)
    overrides = spec_overrides(set_, flags)
    resolved = read_spec(TrainSpec, spec or shipped_spec("train"), overrides)
    run_store = open_store(settings.store)
    if resume is not None:
        run = prepare_resume(resolved, run_store, resume)
    else:
        run = prepare_train(resolved, run_store, settings.work, force=force)
    show_warnings(settings, run, dry_run=dry_run)

    submit_and_follow(settings, run, dry_run=dry_run, yes=yes, about=about, detach=detach)
    if dry_run or detach:
        return
    passed = show_results(run_store, run.run_id)
    if require_gates and not passed:
        raise typer.Exit(1)


def label_flags(
    labels: list[str] | None,
    timezone: str | None,
    features: list[str] | None,
    fraction: float | None,
) -> dict[str, object]:
    """What the options of training on labels set, field -> value; None for one not given."""
    return {
        "labels.source": one_or_all(labels),
        "labels.timezone": timezone,
        "features": one_or_all(features),
        "fraction": fraction,
    }


def show_warnings(settings: "Settings", run: "PreparedRun", *, dry_run: bool) -> None:
    """What the run reads is odd in; a job that runs here says so in its log, which is shown."""
    if dry_run or settings.on != "local":
        print_warnings([run])


def print_warnings(runs: Iterable["PreparedRun"]) -> None:
    """What the runs read is odd in, once each."""
    from moola.launch.console import print_text, terminal

    for warning in dict.fromkeys(warning for run in runs for warning in run.warnings):
        print_text(f"warning: {warning}", terminal())


def _require_own_spec(is_changed: bool) -> None:
    if is_changed:
        raise typer.BadParameter(
            "--resume goes on with the run's own spec: give no other spec field and no --force"
        )


def require_detachable(settings: "Settings", detach: bool) -> None:
    """Raises BadParameter where a run would end with its launcher."""
    if detach and settings.on != "runpod":
        raise typer.BadParameter(
            f"--detach is for --on runpod, got {settings.on}: a job elsewhere is a process of its "
            "own, which `nohup` keeps"
        )


def show_results(store: "Store", run_id: str) -> bool:
    """Show a train run's metrics beside their baselines, and its gates; -> did all gates pass?"""
    from moola.evaluation.result_documents import GatesDocument, MetricsDocument
    from moola.evaluation.tables import gates_table, markets_table, metrics_table
    from moola.launch.console import print_table
    from moola.runs.reading import read_file_record, require_manifest

    manifest = require_manifest(store, run_id)
    metrics = read_file_record(store, manifest, "metrics.json", MetricsDocument)
    gates = read_file_record(store, manifest, "gates.json", GatesDocument)

    print_table(metrics_table(metrics.test.evaluation(), "Test"))
    if metrics.markets:
        by_market = {name: each.test for name, each in metrics.markets.items()}
        print_table(markets_table(by_market, metrics.test))
    print_table(gates_table([gate.gate() for gate in gates.gates]))
    return gates.passed and all(gate.passed for gate in gates.gates)
