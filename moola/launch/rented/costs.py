"""What a run's machines cost: price x time, beside what the provider has billed so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from moola.errors import LaunchError, TryAgainError
from moola.providers.base import PodApi
from moola.runs.launches import LaunchCost, all_launches, cost_of
from moola.store import Store

COLUMNS = (
    "",
    "attempt",
    "state",
    "machine",
    "USD/h",
    "hours",
    "price x time",
    "billed",
    "difference",
)
WHOLE_COLUMNS = ("attempt", "state")  # whatever the width


@dataclass(frozen=True)
class RunCost:
    """What each launch of a run has cost, and what was billed of it, by pod; in USD.

    `note` is what to know about the bills.
    """

    run_id: str
    launches: Sequence[LaunchCost]
    billed: Mapping[str, float]
    note: str

    @property
    def total(self) -> float:
        return sum(launch["cost"] for launch in self.launches)

    @property
    def total_billed(self) -> float | None:
        """None where nothing was billed yet."""
        return sum(self.billed.values()) if self.billed else None

    def fields(self) -> dict[str, object]:
        """Ready for JSON: what `moola cost --json` prints."""
        launches = [
            {**launch, "billed": self.billed.get(launch["pod_id"] or "")}
            for launch in self.launches
        ]
        return {
            "run": self.run_id,
            "launches": launches,
            "cost": round(self.total, 6),
            "billed": self.total_billed,
            "note": self.note,
        }


def cost_of_run(store: Store, pods: PodApi, run_id: str) -> RunCost:
    """Price x time of each launch, and what is billed so far: bills lag by minutes to hours.

    Raises ArtifactError for a damaged record.
    """
    costs = [cost_of(store, launch) for launch in all_launches(store, run_id)]
    pod_ids = [cost["pod_id"] for cost in costs if cost["pod_id"]]
    billed, note = _billed_by_pod(pods, pod_ids)
    return RunCost(run_id, costs, billed, note)


def cost_table(cost: RunCost) -> Table:
    """One row an attempt, in USD."""
    columns = [Column(name, no_wrap=name in WHOLE_COLUMNS) for name in COLUMNS]
    table = Table(*columns, title=f"cost of {cost.run_id}, USD", caption=cost.note)
    for launch in cost.launches:
        table.add_row(
            str(launch["n"]),
            launch["attempt"],
            launch["state"],
            launch["type_id"] or "none",
            f"{launch['price_per_hour']:.3f}",
            f"{launch['hours']:.3f}",
            *_amounts(launch["cost"], cost.billed.get(launch["pod_id"] or "")),
        )

    table.add_section()
    table.add_row("", "all", "", "", "", "", *_amounts(cost.total, cost.total_billed))
    return table


def _amounts(cost: float, bill: float | None) -> tuple[str, str, str]:
    """The last three cells of a row; without a bill there is nothing to compare."""
    if bill is None:
        return f"{cost:.4f}", "-", "-"
    return f"{cost:.4f}", f"{bill:.4f}", f"{bill - cost:+.4f}"


def _billed_by_pod(pods: PodApi, pod_ids: list[str]) -> tuple[dict[str, float], str]:
    """(USD by pod, what to know about them)."""
    if not pod_ids:
        records = []
    else:
        try:
            records = pods.billing(pod_ids)
        except (NotImplementedError, LaunchError, TryAgainError) as error:
            return {}, f"no billing records: {error}"

    billed: dict[str, float] = {}
    for record in records:
        billed[record.pod_id] = billed.get(record.pod_id, 0.0) + record.amount
    note = "" if billed else "no billing records yet: they lag by minutes to hours"
    return billed, note
