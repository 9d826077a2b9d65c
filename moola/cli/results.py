"""The commands that take what a run made back from the store: verify and pull."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import (
    FETCHED,
    JsonOption,
    LayoutOption,
    ReadingSetOption,
    RunArgument,
    StoreOption,
    SymbolOption,
    WorkOption,
    ZoneOption,
    read_settings,
    read_store,
    reading_overrides,
)
from moola.errors import ArtifactError, DataError
from moola.text import shortened

if TYPE_CHECKING:
    from moola.data.feature_set_files import Files
    from moola.data.verify import Report
    from moola.runs.records import Manifest, SpecDocument
    from moola.specs import PrecomputeSpec
    from moola.store import Store


def verify(
    target: Annotated[
        str | None, typer.Argument(metavar="RUN_OR_DIR", help="a run, or a pulled directory")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="a published features_11d.npy, with --metadata")
    ] = None,
    metadata: Annotated[Path | None, typer.Option(help="its metadata.json")] = None,
    bars: Annotated[
        str | None, typer.Option(help="the bars: recompute the features and compare")
    ] = None,
    layout: LayoutOption = None,
    symbol: SymbolOption = None,
    timezone: ZoneOption = None,
    set_: ReadingSetOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Check a feature set; exit 4 if a check fails."""
    from moola.data import verify as checks
    from moola.data.feature_set import FEATURES, METADATA
    from moola.data.feature_set_files import FolderFiles
    from moola.data.loading import fetch_bars
    from moola.launch.console import output, print_text, terminal
    from moola.launch.progress import byte_bar

    files: Files
    digests: dict[str, str] | None = None
    spec: PrecomputeSpec | None = None
    if target and features is None and metadata is None:
        files, digests, spec, place = _files_of(target, store)
        print_text(f"{place}:", terminal() if as_json else output())
    elif not target and features is not None and metadata is not None:
        files = FolderFiles(Path(), {FEATURES: features, METADATA: metadata})
    else:
        raise typer.BadParameter("give RUN_OR_DIR, or both --features and --metadata")

    bar_files: list[Path] = []
    if bars is not None:
        bar_files = fetch_bars(bars, read_settings(store, work).work / FETCHED)

    with byte_bar("verify") as advance:
        report = checks.verify(
            files,
            digests=digests,
            spec=spec,
            bars=bar_files,
            overrides=reading_overrides(set_, layout, symbol, timezone),
            published=features is not None,
            on_progress=advance,
        )

    _show_report(report, as_json)
    if not report.passed:
        raise typer.Exit(ArtifactError.exit_code)


def _show_report(report: "Report", as_json: bool) -> None:
    from moola.data.verify_tables import checks_table, features_table
    from moola.launch.console import print_json, print_table, print_text

    if as_json:
        print_json({"passed": report.passed, "checks": [asdict(each) for each in report.checks]})
        return
    if report.stats is not None:
        print_table(features_table(report.stats))
    print_table(checks_table(report))
    print_text(_verdict(report))


def _verdict(report: "Report") -> str:
    failed = [check.name for check in report.checks if not check.passed]
    n_passed = len(report.checks) - len(failed)
    names = f": {'; '.join(failed)}" if failed else ""
    return f"{n_passed} checks passed, {len(failed)} failed{names}"


def _files_of(
    target: str, store: str | None
) -> "tuple[Files, dict[str, str] | None, PrecomputeSpec | None, str]":
    """The files, digests and spec of a committed run, or of a pulled directory, and where it is.

    A directory has no spec, and digests only if its manifest is there.
    """
    from moola.data.feature_set_files import FolderFiles, RunFiles
    from moola.runs.reading import find_run
    from moola.specs import PrecomputeSpec, parse_spec

    folder = Path(target)
    if folder.is_dir():
        return FolderFiles(folder), _pulled_digests(folder), None, f"the folder {folder.resolve()}"

    run_store = read_store(store)
    run_id = find_run(run_store, target)
    manifest, document = committed_run(run_store, run_id)
    spec: PrecomputeSpec | None = None
    if document.job == "precompute":
        spec = parse_spec(PrecomputeSpec, document.spec, place=f"spec.json of {run_id}")
    place = f"run {run_id} in {run_store.url}"
    return RunFiles(run_store, manifest), _digests(manifest), spec, place


def committed_run(store: "Store", run_id: str) -> "tuple[Manifest, SpecDocument]":
    """A run's manifest and spec. Raises ArtifactError unless both are the run's."""
    from moola.runs.reading import require_manifest
    from moola.runs.submit import read_spec_document

    manifest = require_manifest(store, run_id)
    return manifest, read_spec_document(store, run_id)


def _digests(manifest: "Manifest") -> dict[str, str]:
    """Path -> sha256 of all files of a run, also of those that pull rebuilds."""
    return {entry.path: entry.sha256 for entry in manifest.entries}


def _pulled_digests(folder: Path) -> dict[str, str] | None:
    """The digests in the manifest of a pulled directory; None if it has none.

    Raises ArtifactError.
    """
    from moola.runs.protocol import MANIFEST
    from moola.runs.records import Manifest, parse_record
    from moola.store import MAX_DOCUMENT_BYTES

    path = folder / MANIFEST
    if not path.exists():
        return None
    with path.open("rb") as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    try:
        return _digests(parse_record(Manifest, data, str(path)))
    except ArtifactError as error:
        raise ArtifactError(f"{path} must be a run's manifest: {error}") from error


def pull(
    run: RunArgument,
    dest: Annotated[Path | None, typer.Argument(help="directory; default ./RUN")] = None,
    store: StoreOption = None,
) -> None:
    """Fetch a run's artifacts.

    Every digest is checked; virtual windows are rebuilt to their recorded digest.
    """
    from moola.data.feature_set import rebuild
    from moola.launch.console import print_text
    from moola.launch.progress import byte_bar
    from moola.runs.protocol import MANIFEST
    from moola.runs.reading import find_run, pull_files, read_manifest_bytes
    from moola.store import Folder

    run_store = read_store(store)
    run_id = find_run(run_store, run)
    folder = dest or Path(run_id)
    _refuse_working_folder(folder)
    manifest, _ = committed_run(run_store, run_id)
    n_bytes = sum(entry.size for entry in manifest.entries)

    with byte_bar(f"pull {run_id}", n_bytes) as advance:
        pull_files(run_store, manifest, folder, advance)
        for derived in manifest.derived:
            rebuild(folder, derived, advance)
    Folder(folder).write(MANIFEST, read_manifest_bytes(run_store, run_id))

    for entry in manifest.entries:
        digest = entry.sha256[:16]
        print_text(f"{digest}  {entry.size:>14,} bytes  {folder / entry.path}")
    print_text(f"{len(manifest.entries)} files, every sha256 as in the manifest")


def _refuse_working_folder(folder: Path) -> None:
    """Raises DataError for a folder in which programs, moola among them, look for their settings.

    A run's files may have any name, also that of such a file.
    """
    folder = folder.resolve()
    places = [Path.cwd()]
    with contextlib.suppress(RuntimeError):  # nobody knows of a home
        places.append(Path.home())

    for place in places:
        if place.resolve().is_relative_to(folder):
            raise DataError(
                "a run is pulled into a folder of its own, for its files may have any name, such "
                f"as moola.toml, got {shortened(str(folder))}: name another folder, or leave it out"
            )
