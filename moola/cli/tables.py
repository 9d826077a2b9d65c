"""Tables of what the commands list.

At 80 columns an id and a state are whole; what is long beside them is cut or wrapped.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Column, Table
from rich.text import Text

from moola.launch.console import one_line
from moola.launch.doctor import Finding
from moola.store import Probe

if TYPE_CHECKING:
    from moola.runs.removal import Candidate

YES = Text("yes", style="green")
NO = Text("no", style="yellow")
OK = Text("ok", style="green")
NOT_OK = Text("no", style="red")

ATTEMPT_TIME_CHARACTERS = 16  # 20261122T231500Z, of an attempt's id
LONGEST_ID = 28  # characters of a run's id that are shown; none of ours has more
LONGEST_STATE = 17
LEAST_REASON = 5


class RunRow(NamedTuple):
    """A run as `moola list` shows it."""

    attempt_id: str
    run_id: str
    state: str
    reason: str
    name: str = ""  # and tags


def runs_table(rows: Sequence[RunRow]) -> Table:
    """One row per run. Id and state have their width first; the reason takes what is left.

    There is a column for names and tags if any run has one.
    """
    columns = [
        Column("run", no_wrap=True, max_width=LONGEST_ID),
        Column("state", no_wrap=True, max_width=LONGEST_STATE),
        Column("last attempt (UTC)", min_width=ATTEMPT_TIME_CHARACTERS),
        Column("reason", overflow="ellipsis", min_width=LEAST_REASON),
    ]
    has_names = any(row.name for row in rows)
    if has_names:
        columns.insert(1, Column("name, tags", overflow="ellipsis", min_width=LEAST_REASON))

    table = Table(*columns)
    for row in rows:
        time = row.attempt_id[:ATTEMPT_TIME_CHARACTERS]
        name = [row.name] if has_names else []
        table.add_row(*map(one_line, (row.run_id, *name, row.state, time, row.reason)))
    return table


def candidates_table(candidates: "Sequence[Candidate]") -> Table:
    """One row per run that `gc` looked at."""
    table = Table(
        Column("run", no_wrap=True, max_width=LONGEST_ID),
        Column("", no_wrap=True),
        Column("why", overflow="fold"),
    )
    for candidate in candidates:
        word = Text("remove", style="yellow") if candidate.is_removed else Text("keep")
        table.add_row(one_line(candidate.run_id), word, one_line(candidate.why))
    return table


def probes_table(store_url: str, probes: Sequence[Probe]) -> Table:
    """One row per capability of a store."""
    table = Table(
        Column("probe", no_wrap=True), "", Column("found", overflow="fold"), title=store_url
    )
    for probe in probes:
        table.add_row(one_line(probe.name), YES if probe.ok else NO, one_line(probe.detail))
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row per part of the set-up."""
    table = Table("part", Column("", no_wrap=True), Column("found, or what to do", overflow="fold"))
    for finding in findings:
        table.add_row(finding.part, OK if finding.ok else NOT_OK, finding.note)
    return table
