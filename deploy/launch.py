"""The command line: submit jobs, follow them, check and fetch what they made.

Exit codes: 0 done, 2 usage, 3 bad input, 4 artifact missing or corrupt, 5 training diverged, 6 launch refused,
75 try again, 124 time limit, 130 cancelled (Ctrl-C), 143 terminated (SIGTERM).
"""

import errno
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

import typer  # noqa: E402

from deploy.ahead import start_ahead  # noqa: E402
from moola.errors import DataError, MoolaError, TryAgainError  # noqa: E402

if TYPE_CHECKING:  # the rest is imported by the command that needs it: --help stays quick
    from deploy.follow import RunLog
    from deploy.remote import Remote
    from deploy.settings import Settings
    from moola.store import Store

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
store_app = typer.Typer(help="Look after the store.", no_args_is_help=True)
app.add_typer(store_app, name="store")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, or the start of it")]
StoreOption = Annotated[str | None, typer.Option(help="s3://bucket/prefix or file:///dir  [MOOLA_STORE]")]
WorkOption = Annotated[Path | None, typer.Option(help="scratch directory  [MOOLA_WORK]")]
OnOption = Annotated[str | None, typer.Option("--on", help="where the job runs: local, docker or runpod  [MOOLA_ON]")]
SpecOption = Annotated[Path | None, typer.Option("--spec", help="a job spec (YAML) instead of the shipped one")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="set any field of the spec")]
ImageOption = Annotated[str | None, typer.Option(help="NAME@sha256:..., or a tag to look up  [MOOLA_IMAGE_CPU, _GPU]")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="rent without asking")]
ForceOption = Annotated[bool, typer.Option("--force", help="compute even if the same run is committed")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="print what would run; send and write nothing")]


@app.command()
def precompute(
    bars: Annotated[
        str | None, typer.Option(help="parquet or CSV with 1-minute bars: a path, file:// or s3://")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="zone of naive times, such as America/New_York")] = None,
    on_bad_bars: Annotated[str | None, typer.Option(help="fail | drop")] = None,
    windows: Annotated[str | None, typer.Option(help="stored | virtual")] = None,
    train_end: Annotated[str | None, typer.Option(help="last day of training, 2024-12-31")] = None,
    val_end: Annotated[str | None, typer.Option(help="last day of validation")] = None,
    test_end: Annotated[str | None, typer.Option(help="last day of test")] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    dry_run: DryOption = False,
    yes: YesOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Bars in; a verified feature set out. That is 11 causal features, windows, mask and splits."""
    flags = {
        "bars": bars,
        "timezone": timezone,
        "on_bad_bars": on_bad_bars,
        "windows": windows,
        "splits.train_end": train_end,
        "splits.val_end": val_end,
        "splits.test_end": test_end,
    }
    settings = _settings(store, work, on, image)
    ahead = start_ahead("precompute") if settings.on == "local" and not dry_run else None
    from deploy.start import Order, start
    from jobs.precompute import SPEC, prepare
    from moola.specs import PrecomputeSpec, read_spec

    overrides = {**_assignments(set_), **{k: v for k, v in flags.items() if v is not None}}
    resolved = read_spec("precompute", spec or SPEC, overrides)
    assert isinstance(resolved, PrecomputeSpec)
    run_id, document, inputs = prepare(resolved, settings.work, force=force)
    start(settings, Order("precompute", run_id, document, inputs, resolved.machine, yes, dry_run, ahead))


@app.command()
def train(
    labels: Annotated[str | None, typer.Option(help="label file, or hindsight, or planted (synthetic bars)")] = None,
    features: Annotated[str | None, typer.Option(metavar="RUN", help="the precompute run; default: the newest")] = None,
    fraction: Annotated[float | None, typer.Option(help="of the training labels; 0.1 is a dry run")] = None,
    seed: Annotated[int | None, typer.Option(help="of weights, draws and augmentation")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="go on from this run's newest checkpoint")] = None,
    require_gates: Annotated[bool, typer.Option("--require-gates", help="exit 1 if a gate fails")] = False,
    spec: SpecOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    dry_run: DryOption = False,
    yes: YesOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Features and labels in; a model out. With metrics beside their baselines, gates and a report."""
    flags = {"labels.source": labels, "features": features, "fraction": fraction, "training.seed": seed}
    if resume is not None and (force or spec or set_ or any(value is not None for value in flags.values())):
        raise typer.BadParameter("--resume goes on with the run's own spec: give no other spec field and no --force")
    from deploy.start import Order, start
    from jobs.train import SPEC, prepare
    from moola.runs import find_run, read_spec_document
    from moola.specs import TrainSpec, read_spec

    settings = _settings(store, work, on, image)
    overrides = {**_assignments(set_), **{k: v for k, v in flags.items() if v is not None}}
    resolved = read_spec("train", spec or SPEC, overrides)
    assert isinstance(resolved, TrainSpec)
    store_ = _store(settings)
    if resume is not None:
        run_id = find_run(store_, resume, "train")
        inputs: dict[str, Path] = {}
        document = read_spec_document(store_, run_id)
    else:
        run_id, document, inputs = prepare(resolved, store_, settings.work, force=force)
    start(settings, Order("train", run_id, document, inputs, resolved.machine, yes, dry_run))
    if dry_run:
        return
    passed = _show_results(store_, run_id)
    if require_gates and not passed:
        raise typer.Exit(1)


@app.command()
def predict(
    run: RunArgument,
    bars: Annotated[Path, typer.Option(help="parquet or CSV with 1-minute bars")],
    every: Annotated[int, typer.Option(min=1, help="bars from one window to the next")] = 15,
    out: Annotated[Path, typer.Option(help="where the predictions go: .parquet or .csv")] = Path("predictions.parquet"),
    timezone: Annotated[str | None, typer.Option(help="zone of naive times in the bars")] = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """What a model says of new bars. Type, probabilities, where the move starts and ends."""
    from moola.machine import spin_less

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise typer.BadParameter(f"--out must end in .parquet or .csv, got {out}")
    spin_less()
    from deploy.tail import count_bar
    from moola import WINDOW
    from moola.bars import read_bars
    from moola.predict import MODEL, WEIGHTS, load_model, predict_bars
    from moola.runs import find_run, pull_files, require_manifest

    settings = _settings(store, work)
    store_ = _store(settings)
    run_id = find_run(store_, run, "train")
    folder = settings.work / "models" / run_id
    pull_files(store_, require_manifest(store_, run_id), folder, only=(WEIGHTS, MODEL))
    model, info = load_model(folder)
    frame = read_bars(bars, timezone=timezone).frame
    out.parent.mkdir(parents=True, exist_ok=True)
    with count_bar("predict", (len(frame) - WINDOW) // every + 1, "windows") as advance:
        table = predict_bars(model, info, frame, every, advance)
    if out.suffix.lower() == ".csv":
        table.to_csv(out, index=False)
    else:
        table.to_parquet(out, index=False)
    typer.echo(f"{len(table):,} windows, one every {every} bars: {out}")


@app.command()
def verify(
    target: Annotated[str | None, typer.Argument(metavar="RUN_OR_DIR", help="a run, or a pulled directory")] = None,
    features: Annotated[Path | None, typer.Option(help="a published features_11d.npy, with --metadata")] = None,
    metadata: Annotated[Path | None, typer.Option(help="its metadata.json")] = None,
    bars: Annotated[Path | None, typer.Option(help="the bars: recompute the features and compare")] = None,
    timezone: Annotated[str | None, typer.Option(help="zone of naive times in the bars")] = None,
    store: StoreOption = None,
) -> None:
    """Check a feature set; exit 4 if a check fails."""
    from rich.console import Console

    from moola.verify import Files, FolderFiles, checks_table, features_table
    from moola.verify import verify as run_checks
    from moola.windows import FEATURES, METADATA

    files: Files
    if (features is None) != (metadata is None) or (features is None) == (not target):
        raise typer.BadParameter("give RUN_OR_DIR, or both --features and --metadata")
    if features is not None and metadata is not None:
        files, manifest = FolderFiles(Path(), {FEATURES: features, METADATA: metadata}), None
    else:
        files, manifest = _feature_set(str(target), store)
    with _byte_bar("verify") as advance:
        report = run_checks(
            files, manifest=manifest, bars=bars, timezone=timezone, published=features is not None, on_progress=advance
        )
    console = Console()
    if report.stats is not None:
        console.print(features_table(report.stats))
    console.print(checks_table(report))
    failed = [check.name for check in report.checks if not check.passed]
    console.print(
        f"{len(report.checks) - len(failed)} checks passed, {len(failed)} failed"
        + ("" if not failed else ": " + "; ".join(failed))
    )
    if failed:
        raise typer.Exit(4)


@app.command()
def pull(
    run: RunArgument,
    dest: Annotated[Path | None, typer.Argument(help="directory; default ./RUN")] = None,
    store: StoreOption = None,
) -> None:
    """Fetch a run's artifacts. Every digest is checked; virtual windows are rebuilt to their recorded digest."""
    from moola.protocol import MANIFEST, canonical_json
    from moola.runs import find_run, pull_files, require_manifest
    from moola.windows import rebuild

    store_ = _store(_settings(store))
    run_id = find_run(store_, run)
    manifest = require_manifest(store_, run_id)
    dest = dest or Path(run_id)
    with _byte_bar(f"pull {run_id}", sum(item["size"] for item in manifest["files"] + manifest["derived"])) as advance:
        pull_files(store_, manifest, dest, advance)
        for item in manifest["derived"]:
            rebuild(dest, item, advance)
    (dest / MANIFEST).write_bytes(canonical_json(manifest))
    for item in manifest["files"] + manifest["derived"]:
        typer.echo(f"{item['sha256'][:16]}  {item['size']:>14,} bytes  {dest / item['path']}")
    typer.echo(f"{len(manifest['files']) + len(manifest['derived'])} files, every sha256 as in the manifest")


@app.command("list")
def list_(store: StoreOption = None) -> None:
    """Runs in the store, with their state."""
    from rich.console import Console
    from rich.table import Column, Table

    from moola.errors import ArtifactError
    from moola.runs import is_silent, run_state

    store_ = _store(_settings(store))
    rows = []
    for run_id in store_.children("runs"):
        try:
            found = run_state(store_, run_id)
            state = f"silent for {found['silent_s']:.0f} s" if is_silent(found) else found["state"]
            rows.append((found["attempt"] or "-", run_id, state, found["status"].get("reason", "")))
        except ArtifactError as error:
            rows.append(("-", run_id, "damaged", str(error)))
    table = Table(Column("run", min_width=max((len(row[1]) for row in rows), default=0)), "state",
                  "last attempt (UTC)", Column("reason", no_wrap=True, overflow="ellipsis"))  # fmt: skip
    for attempt_id, run_id, state, reason in sorted(rows):
        table.add_row(run_id, state, attempt_id[:16], reason)
    Console().print(table)


@app.command()
def status(run: RunArgument, store: StoreOption = None) -> None:
    """Where a run is. State, stage, progress, reason, and the machines it was given."""
    from moola.launches import all_launches, cost_of
    from moola.runs import find_run, run_state

    store_ = _store(_settings(store))
    run_id = find_run(store_, run)
    launches = [cost_of(store_, launch) for launch in all_launches(store_, run_id)]
    _print_json({"run": run_id, **run_state(store_, run_id), **({"launches": launches} if launches else {})})


@app.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the run ends")] = False,
    store: StoreOption = None,
) -> None:
    """The log of a run's newest attempt. Ctrl-C leaves the run alone."""
    from deploy import tail
    from moola.runs import find_run, run_state

    settings = _settings(store)
    store_ = _store(settings)
    run_id = find_run(store_, run)
    attempt_id = run_state(store_, run_id)["attempt"]
    if attempt_id is None:
        typer.echo(f"{run_id} has not started")
        return
    from rich.console import Console

    ended = (lambda: tail.final(store_, run_id)) if follow else (lambda: True)
    source = _run_log(settings, store_, run_id, attempt_id, live=follow)
    try:
        for record in tail.records(source, ended=ended, every_s=min(1.0, settings.watch.poll_s)):
            tail.show(Console(), record)
    except KeyboardInterrupt:
        typer.echo(f"no longer following; to come back: python deploy/launch.py logs {run_id} --follow", err=True)
        raise typer.Exit(130) from None
    finally:
        source.close()


@app.command()
def attach(run: RunArgument, store: StoreOption = None) -> None:
    """Take over a run on a rented machine. From any computer; it does all that the launcher would do."""
    remote = _remote(run, store)
    raise typer.Exit(remote.attended(remote.see_through))


@app.command()
def cancel(run: RunArgument, store: StoreOption = None) -> None:
    """Stop a run and end its machine."""
    from deploy.local import cancel as cancel_local
    from moola.launches import newest_launch
    from moola.runs import find_run

    store_ = _store(_settings(store))
    run_id = find_run(store_, run)
    here = newest_launch(store_, run_id) is None
    typer.echo(f"{run_id}: {cancel_local(store_, run_id) if here else _remote(run_id, store).cancel()}")


@app.command()
def reap(store: StoreOption = None) -> None:
    """End machines that have no business. Those of ours that are done, late, silent or given up; for cron.

    Exit 75 if one could not be ended.
    """
    from rich.console import Console

    from deploy.providers import open_pods
    from deploy.reap import reap as reap_all
    from deploy.reap import verdict_table

    settings = _settings(store)
    verdicts = reap_all(settings, _store(settings), open_pods(settings.pods))
    Console().print(verdict_table(verdicts))
    typer.echo(f"{len(verdicts)} machines found, {sum(one.ended for one in verdicts)} ended")
    if any(one.failed for one in verdicts):
        raise typer.Exit(75)


@app.command()
def cost(run: RunArgument, store: StoreOption = None) -> None:
    """What a run's machines cost. Price x time now, the provider's billing records when they have arrived."""
    from rich.console import Console

    from deploy.costs import cost_table

    remote = _remote(run, store)
    Console().print(cost_table(remote.store, remote.pods, remote.run_id))


@app.command()
def doctor(on: OnOption = None, image: ImageOption = None, store: StoreOption = None) -> None:
    """Check the whole set-up. Says for each part what to do; exit 2 if something is missing."""
    from rich.console import Console

    from deploy.doctor import doctor_table, examine

    rows = examine(_settings(store, None, on, image))
    Console().print(doctor_table(rows))
    if not all(ok for _, ok, _ in rows):
        raise typer.Exit(2)


@app.command("spec")
def spec_(
    job: Annotated[str, typer.Argument(help="precompute or train")],
    spec: SpecOption = None,
    set_: SetOption = None,
) -> None:
    """The resolved spec of a job, and its JSON schema."""
    from moola.specs import JOBS, read_spec

    if job not in JOBS:
        raise typer.BadParameter(f"job must be one of {', '.join(JOBS)}, got {job!r}")
    resolved = read_spec(job, spec or ROOT / "jobs" / f"{job}.yaml", _assignments(set_))
    _print_json({"spec": resolved.model_dump(mode="json"), "schema": JOBS[job].model_json_schema()})


@store_app.command("check")
def store_check(
    save: Annotated[bool, typer.Option("--save", help="keep what was found as the store's profile.json")] = False,
    store: StoreOption = None,
) -> None:
    """Probe what the provider can do: conditional writes, checksums, parts, ranges."""
    from rich.console import Console
    from rich.table import Table

    from moola.store import implied_profile
    from moola.store.base import PROFILE_KEY

    store_ = _store(_settings(store))
    probes = store_.check()
    table = Table("probe", "", "found", title=store_.url)
    for probe in probes:
        table.add_row(probe.name, "[green]yes[/]" if probe.ok else "[yellow]no[/]", probe.detail)
    console = Console()
    console.print(table)
    if store_.url.startswith("file:"):
        return  # a folder has no provider whose ways would have to be kept
    profile = implied_profile(probes)
    console.print(f"profile: {profile.model_dump_json()}", highlight=False)
    if save:
        store_.put(PROFILE_KEY, profile.model_dump_json().encode())
        console.print(f"saved as {PROFILE_KEY} in {store_.url}")


@store_app.command("sweep")
def store_sweep(
    older_than_hours: Annotated[float, typer.Option(help="leave younger uploads alone")] = 48.0,
    store: StoreOption = None,
) -> None:
    """Abort uploads that nobody will finish: their parts are billed and in no listing."""
    swept = _store(_settings(store)).sweep(older_than_s=older_than_hours * 3600)
    typer.echo("\n".join([*swept, f"{len(swept)} unfinished uploads removed"]))


# --- what the commands share ------------------------------------------------------------------------------------


def _settings(
    store: str | None = None, work: Path | None = None, on: str | None = None, image: str | None = None
) -> "Settings":
    from pydantic import ValidationError

    from deploy.settings import Settings

    flags = {"store": store, "work": work, "on": on, "image_cpu": image, "image_gpu": image}
    given: dict[str, Any] = {k: v for k, v in flags.items() if v is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise typer.BadParameter(f"settings (flags, MOOLA_*, moola.toml): {faults}") from error
    except ValueError as error:  # no TOML, no JSON, no UTF-8
        raise typer.BadParameter(f"settings (flags, MOOLA_*, moola.toml) must be readable: {error}") from error
    return settings.model_copy(update={"work": settings.work.expanduser()})


def _remote(run: str, store: str | None) -> "Remote":
    """A run's rented machines, from nothing but its id, the store and the provider's key."""
    from deploy.providers import open_pods
    from deploy.remote import Remote
    from moola.runs import find_run

    settings = _settings(store)
    store_ = _store(settings)
    return Remote(settings, store_, open_pods(settings.pods), find_run(store_, run))


def _run_log(settings: "Settings", store: "Store", run_id: str, attempt_id: str, *, live: bool) -> "RunLog":
    """An attempt's log; with `live`, and a machine and a key for it, also what it says before it is stored."""
    import os

    from deploy.follow import LiveLines, RunLog
    from moola.launches import newest_launch, read_rented

    launch = newest_launch(store, run_id) if live and os.environ.get("RUNPOD_API_KEY") else None
    rented = read_rented(store, launch) if launch is not None and launch.attempt == attempt_id else None
    if rented is None:
        return RunLog(store, run_id, attempt_id)
    from deploy.providers import open_pods

    return RunLog(store, run_id, attempt_id, LiveLines(open_pods(settings.pods), rented.pod_id))


def _store(settings: "Settings") -> "Store":
    from moola.store import open_store

    return open_store(settings.store)


def _assignments(items: list[str] | None) -> dict[str, Any]:
    """FIELD=VALUE pairs; a value is read as YAML, so that 0.5, null and [1, 2] are what they look like."""
    import yaml

    pairs = {}
    for item in items or []:
        field, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes FIELD=VALUE, got {item!r}")
        try:
            pairs[field] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise typer.BadParameter(f"--set takes FIELD=VALUE, the value as YAML, got {item!r}: {error}") from error
    return pairs


def _feature_set(target: str, store: str | None) -> tuple[Any, dict[str, Any] | None]:
    """(files, manifest) of a pulled directory or of a committed run."""
    import json

    from moola.errors import ArtifactError
    from moola.protocol import MANIFEST
    from moola.runs import find_run, require_manifest
    from moola.verify import FolderFiles, RunFiles

    folder = Path(target)
    if folder.is_dir():
        typer.echo(f"the folder {folder.resolve()}:")
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_bytes()) if path.exists() else None
            if manifest is not None and not {"files", "derived"} <= manifest.keys():
                raise ValueError("files or derived is missing")
        except (ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} must be a run's manifest: {error}") from error
        return FolderFiles(folder), manifest
    store_ = _store(_settings(store))
    run_id = find_run(store_, target)
    committed = require_manifest(store_, run_id)
    typer.echo(f"run {run_id} in {store_.url}:")
    return RunFiles(store_, committed), committed


def _show_results(store: "Store", run_id: str) -> bool:
    """The tables of a train run: metrics beside their baselines, gates. -> did all gates pass?"""
    import json

    from rich.console import Console

    from moola.metrics import Gate, gates_table, metrics_table
    from moola.runs import require_manifest

    keys = {item["path"]: item["key"] for item in require_manifest(store, run_id)["files"]}
    found, gates = (json.loads(store.get(keys[name])) for name in ("metrics.json", "gates.json"))
    console = Console()
    console.print(metrics_table(found["test"], "Test"))
    if "cross_validation" in found:
        mean, spread = found["cross_validation"]["mean"], found["cross_validation"]["spread"]
        console.print("cross-validation: " + ", ".join(f"{k} {mean[k]:.3f} ± {spread[k]:.3f}" for k in mean))
    console.print(gates_table([Gate(**gate) for gate in gates["gates"]]))
    return bool(gates["passed"])


def _byte_bar(description: str, total: int | None = None) -> Any:
    from deploy.tail import byte_bar

    return byte_bar(description, total)


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, default=str))


def main() -> None:
    try:
        app()
    except MoolaError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    except OSError as error:  # a file of the user's: the store's own are told by the store
        typer.echo(f"error: {error}", err=True)
        kind = TryAgainError if error.errno == errno.ENOSPC else DataError
        raise SystemExit(kind.exit_code) from error
    finally:
        gc.freeze()  # no last collection: a third of a second after pandas, for memory that is given back anyway


if __name__ == "__main__":
    main()
