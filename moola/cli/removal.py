"""The commands that remove runs and groups: remove and gc."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import GROUP_PREFIX, JsonOption, StoreOption, read_store

if TYPE_CHECKING:
    from moola.runs.removal import Candidate
    from moola.store import Store

MOST_REASONS = 5  # that are told of a group

RemoveYesOption = Annotated[bool, typer.Option("--yes", "-y", help="remove without asking")]


def remove(
    run: Annotated[str, typer.Argument(metavar="RUN|GROUP", help="an id, or the start of it")],
    yes: RemoveYesOption = False,
    store: StoreOption = None,
) -> None:
    """Remove a run and all that it made, or a group with all its runs.

    Not what is under way, or what another run reads. Needs a key that may delete; killed half way,
    the same command finishes it.
    """
    from moola.launch.console import confirm
    from moola.runs.reading import find_run
    from moola.runs.removal import require_removable

    run_store = read_store(store)
    if run.startswith(GROUP_PREFIX):
        _remove_group(run_store, run, yes=yes)
        return

    run_id = find_run(run_store, run)
    require_removable(run_store, run_id)
    if not yes and not confirm(f"remove {run_id} from {run_store.url}?"):
        raise typer.Exit(0)
    _remove(run_store, [run_id], {})


def _remove_group(store: "Store", name: str, *, yes: bool) -> None:
    from moola.errors import DataError, TryAgainError
    from moola.launch.console import confirm, print_text
    from moola.runs.group_removal import members_of, remove_group, require_group_removable
    from moola.runs.groups import find_group

    group_id = find_group(store, name)
    require_group_removable(store, group_id)
    n_runs = len(members_of(store, group_id))
    if not yes and not confirm(f"remove {group_id} and its {n_runs} runs from {store.url}?"):
        raise typer.Exit(0)

    removed = remove_group(store, group_id, _tell)
    if removed.stay and not removed.is_gone:
        raise DataError(f"{group_id} stays, for of its runs these do: {_few(removed.stay)}")
    if not removed.is_gone:
        raise TryAgainError(f"{group_id} stays: a run of it was started again meanwhile")
    print_text(f"removed {group_id}")
    if removed.stay:
        print_text(f"kept: {_few(removed.stay)}")


def _few(stay: dict[str, str]) -> str:
    """The first reasons."""
    more = len(stay) - MOST_REASONS
    reasons = "; ".join(list(stay.values())[:MOST_REASONS])
    return f"{reasons}; and {more} more" if more > 0 else reasons


def gc(
    keep_last: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="keep the newest N of each job, of committed runs and of others",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="only what did not change for so long: 30d, 12h"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be removed; remove nothing")
    ] = False,
    yes: RemoveYesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Remove old runs; never one that is under way, or that a run which stays reads.

    By the store's clock. With both options, what is old and not one of the newest. Runs of a group
    stay while one of them has not ended; a group without runs goes. Inputs that were uploaded stay.
    """
    from moola.launch.console import confirm, print_json, print_table, print_text, terminal
    from moola.runs.group_removal import choose_groups, groups_in
    from moola.runs.removal import choose_runs

    if keep_last is None and older_than is None:
        raise typer.BadParameter("give --keep-last N, --older-than TIME, or both")
    older_than_s = None if older_than is None else _seconds(older_than)

    run_store = read_store(store)
    groups = groups_in(run_store)
    candidates = choose_runs(
        run_store, keep_last=keep_last, older_than_s=older_than_s, groups=groups
    )
    chosen = [each.run_id for each in candidates if each.is_removed]
    run_ids = [each.run_id for each in candidates]
    chosen_groups = choose_groups(run_store, groups, run_ids, chosen)
    if as_json:
        print_json(_document(run_store, candidates, chosen_groups, dry_run=dry_run))
    else:
        from moola.cli.tables import candidates_table

        print_table(candidates_table([*candidates, *map(_group_row, chosen_groups)]))
        counts = f"{len(chosen)} of {len(candidates)} runs and {len(chosen_groups)}"
        print_text(f"{counts} of {len(groups)} groups are to be removed")
    if dry_run or not (chosen or chosen_groups):
        return

    question = f"remove {len(chosen)} runs and {len(chosen_groups)} groups from {run_store.url}?"
    if not yes and not confirm(question):
        raise typer.Exit(0)
    _remove(run_store, chosen, chosen_groups, is_quiet=as_json)
    if as_json:
        print_text(f"{len(chosen)} runs removed", terminal())


def _group_row(group_id: str) -> "Candidate":
    from moola.runs.removal import Candidate

    return Candidate(group_id, True, "none of its runs is left")


def _document(
    store: "Store",
    candidates: "Sequence[Candidate]",
    groups: Iterable[str],
    *,
    dry_run: bool,
) -> dict[str, object]:
    return {
        "store": store.url,
        "dry_run": dry_run,
        "runs": [{"run": c.run_id, "remove": c.is_removed, "why": c.why} for c in candidates],
        "groups": list(groups),
    }


def _seconds(text: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from moola.specs import Duration

    try:
        return float(TypeAdapter(Duration).validate_python(text).total_seconds())
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"--older-than: {rule}, got {text!r}") from error


def _remove(
    store: "Store",
    run_ids: list[str],
    groups: Mapping[str, Collection[str]],
    *,
    is_quiet: bool = False,
) -> None:
    from moola.errors import DataError
    from moola.launch.console import print_text, terminal
    from moola.runs.group_removal import delete_group
    from moola.runs.removal import remove_runs

    stay = remove_runs(store, run_ids, None if is_quiet else _tell)
    for group_id, members in groups.items():
        if delete_group(store, group_id, members):
            print_text(f"removed {group_id}", terminal() if is_quiet else None)
    if stay:
        raise DataError("; ".join(stay.values()))


def _tell(run_id: str, n_objects: int) -> None:
    from moola.launch.console import print_text

    print_text(f"removed {run_id}: {n_objects} objects")
