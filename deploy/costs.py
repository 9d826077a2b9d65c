"""What a run's machines cost: price x time, beside what the provider has billed so far."""

from rich.table import Table

from deploy.pods import PodApi
from moola.errors import LaunchError, TryAgainError
from moola.launches import all_launches, cost_of
from moola.store import Store


def cost_table(store: Store, pods: PodApi, run_id: str) -> Table:
    """One row an attempt: USD by price x time, USD billed, and the difference; billing lags by minutes to hours."""
    rows = [cost_of(store, launch) for launch in all_launches(store, run_id)]
    billed, note = _billed(pods, [row["pod_id"] for row in rows if row["pod_id"]])
    table = Table("", "attempt", "state", "machine", "USD/h", "hours", "price x time", "billed", "difference")
    table.title, table.caption = f"cost of {run_id}, USD", note
    for row in rows:
        bill = billed.get(row["pod_id"])
        bill_cells = ("-", "-") if bill is None else (f"{bill:.4f}", f"{bill - row['cost']:+.4f}")
        table.add_row(
            *(str(row["n"]), row["attempt"], row["state"], row["type_id"] or "none"),
            *(f"{row['price_per_hour']:.3f}", f"{row['hours']:.3f}", f"{row['cost']:.4f}"),
            *bill_cells,
        )
    total, total_billed = sum(row["cost"] for row in rows), sum(billed.values())
    difference = f"{total_billed - total:+.4f}" if billed else "-"
    table.add_section()
    table.add_row("", "all", "", "", "", "", f"{total:.4f}", f"{total_billed:.4f}" if billed else "-", difference)
    return table


def _billed(pods: PodApi, pod_ids: list[str]) -> tuple[dict[str, float], str]:
    """(USD by machine, what to know about them)."""
    try:
        records = pods.billing(pod_ids) if pod_ids else []
    except (NotImplementedError, LaunchError, TryAgainError) as error:
        return {}, f"no billing records: {error}"
    billed: dict[str, float] = {}
    for record in records:
        billed[record.pod_id] = billed.get(record.pod_id, 0.0) + record.amount
    return billed, "" if billed else "no billing records yet: they lag by minutes to hours"
