"""The commands that look after the store: check and sweep."""

from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import JsonOption, StoreOption, read_store
from moola.errors import ArtifactError

if TYPE_CHECKING:
    from moola.store import Check

S_PER_HOUR = 3600
MOST_HOURS = 1_000_000


def check(
    save: Annotated[
        bool,
        typer.Option("--save", help="keep the result as the store's profile.json, limits included"),
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Probe what the store's provider can do.

    Conditional writes, checksums, multipart uploads, ranges. Exit code 0 if the store keeps every
    promise, or if its limits are accepted by --save.
    """
    from moola.cli.tables import probes_table
    from moola.launch.console import output, print_json, print_table, print_text, terminal
    from moola.store import PROFILE_KEY

    run_store = read_store(store)
    found = run_store.check()
    if as_json:
        print_json(_check_document(run_store.url, found))
    else:
        print_table(probes_table(run_store.url, found.probes))
    profile = found.usable_profile()

    console = terminal() if as_json else output()
    for limit in found.limits:
        print_text(f"limit: {limit}", console)
    is_folder = run_store.url.startswith("file:")  # no provider whose abilities are to be recorded
    if not is_folder:
        print_text(f"profile: {profile.model_dump_json()}", console)
    if save and not is_folder:
        run_store.save_profile(profile)
        print_text(f"saved as {PROFILE_KEY} in {run_store.url}", console)
    elif found.limits:
        print_text("`moola store check --save` accepts the limits", console)
        raise typer.Exit(ArtifactError.exit_code)


def _check_document(store_url: str, found: "Check") -> dict[str, object]:
    probes = [
        {"name": probe.name, "ok": probe.ok, "detail": probe.detail} for probe in found.probes
    ]
    return {
        "store": store_url,
        "probes": probes,
        "profile": None if found.profile is None else found.profile.model_dump(mode="json"),
        "limits": list(found.limits),
        "refused": None if found.refusal is None else str(found.refusal),
    }


def sweep(
    older_than_hours: Annotated[float, typer.Option(help="leave younger uploads alone")] = 48.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be removed; remove nothing")
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Abort uploads that were never finished.

    Their parts are billed, and no listing shows them.
    """
    from moola.launch.console import print_json, print_text

    if not 0 <= older_than_hours <= MOST_HOURS:
        raise typer.BadParameter(f"--older-than-hours is from 0 to {MOST_HOURS:,}")
    older_than_s = older_than_hours * S_PER_HOUR
    swept = read_store(store).sweep(older_than_s, dry_run=dry_run)
    if as_json:
        print_json({"uploads": swept, "removed": not dry_run})
        return
    end = "would be removed" if dry_run else "removed"
    print_text("\n".join([*swept, f"{len(swept)} unfinished uploads {end}"]))
