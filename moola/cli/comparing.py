"""The commands that go on from runs that are there: compare and rerun."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.jobs import show_warnings
from moola.cli.options import (
    GROUP_PREFIX,
    DryRunOption,
    ForceOption,
    ImageOption,
    JsonOption,
    NameOption,
    OnOption,
    RunArgument,
    SetOption,
    StoreOption,
    TagOption,
    WorkOption,
    YesOption,
    read_settings,
    read_store,
    spec_overrides,
)

if TYPE_CHECKING:
    from moola.store import Store


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|GROUP", help="two runs or more, or a group; ids or their starts"
        ),
    ],
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(help="write a page with learning curves there")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Show what differs in the specs of runs beside what differs in their metrics.

    Of a group those runs that are committed. Where specs differ by seed or fold alone, also mean
    and spread over these.
    """
    from moola.evaluation.comparison import compare_runs
    from moola.evaluation.comparison_tables import comparison_tables
    from moola.launch.console import print_json, print_table

    run_store = read_store(store)
    run_ids = _named_runs(run_store, runs)
    comparison = compare_runs(run_store, run_ids, histories=html is not None)
    if html is not None:
        from moola.evaluation.comparison_page import render_comparison

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(render_comparison(comparison))
    if as_json:
        print_json(comparison.fields())
        return
    for table in comparison_tables(comparison):
        print_table(table)


def _named_runs(store: "Store", names: list[str]) -> list[str]:
    """The ids of the runs that are named, each once; for a group those of its committed runs."""
    from moola.launch.console import print_text, terminal
    from moola.launch.group_table import member_states
    from moola.runs.groups import find_group, read_group
    from moola.runs.reading import find_run

    run_ids: list[str] = []
    for name in names:
        if not name.startswith(GROUP_PREFIX):
            run_ids.append(find_run(store, name))
            continue

        group = read_group(store, find_group(store, name))
        members = member_states(store, group)
        committed = [member.run_id for member in members if member.state == "committed"]
        if len(committed) < len(members):
            n_left_out = len(members) - len(committed)
            count = f"{n_left_out} of {len(members)} runs of {group.id}"
            print_text(f"{count} are not committed, and left out", terminal())
        run_ids += [run_id for run_id in committed if run_id not in run_ids]
    return run_ids


def rerun(
    run: RunArgument,
    set_: SetOption = None,
    name: NameOption = None,
    tag: TagOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    on: OnOption = None,
    image: ImageOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Run a run's spec again, on the same inputs, with the changes of --set.

    With this version of moola. What is rented is not taken from the run: --set machine.FIELD=VALUE.
    """
    from moola.jobs.rerun import prepare_rerun
    from moola.launch.submit import submit_and_follow
    from moola.runs.about import new_about
    from moola.runs.reading import find_run
    from moola.runs.work_limit import keep_within_limit
    from moola.store import open_store

    about = new_about(name, tag or ())
    settings = read_settings(store, work, on, image)
    keep_within_limit(settings.work, settings.work_limit_gb)
    run_store = open_store(settings.store)
    run_id = find_run(run_store, run)
    overrides = spec_overrides(set_, {})
    prepared = prepare_rerun(run_store, run_id, settings.work, overrides, force=force)
    show_warnings(settings, prepared, dry_run=dry_run)
    submit_and_follow(settings, prepared, dry_run=dry_run, yes=yes, about=about)
