"""The table of costs: price x time beside the bills, worked out by hand."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from moola.launch.rented.costs import cost_of_run, cost_table
from moola.providers.base import BillingRecord
from moola.runs.launches import claim, record_rented
from moola.runs.protocol import STATUS, canonical_json
from moola.store import Store, open_store
from tests.rented import rented_machine
from tests.test_json_output import fields_of, fields_on_page

IMAGE = "img@sha256:" + "0" * 64
RUN = "small-ffffffffffff"
HOUR_AGO = datetime(2026, 11, 22, 22, 15, tzinfo=UTC)
END = datetime(2026, 11, 22, 23, 15, tzinfo=UTC)


class Provider:
    """Has billing records."""

    def __init__(self, *amounts: tuple[str, float]) -> None:
        self.records = [BillingRecord(pod_id, HOUR_AGO, END, usd) for pod_id, usd in amounts]

    def billing(self, pod_ids: Sequence[str]) -> list[BillingRecord]:
        return [record for record in self.records if record.pod_id in pod_ids]


class NoBilling:
    def billing(self, _: Sequence[str]) -> list[BillingRecord]:
        raise NotImplementedError("none here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two attempts on machines for an hour each, at 0.10 and 0.20 USD/h, and one on none."""
    store = open_store(f"file://{tmp_path}/store")
    for n, price in enumerate((0.1, 0.2, None), 1):
        launch = claim(store, RUN, n, "small", IMAGE, {"cpu": {}})
        assert launch is not None
        status = {"state": "infra_lost", "time": END.isoformat()}
        store.put(launch.key(STATUS), canonical_json(status))
        if price is not None:
            machine = rented_machine(
                pod_id=f"pod{n}",
                pod_name=launch.pod_name,
                price_per_hour=price,
                created=HOUR_AGO.timestamp(),
                deadline=END.timestamp(),
            )
            record_rented(store, launch, machine)
    return store


def rows(store: Store, provider: object) -> tuple[list[list[str]], str]:
    """(the last four cells of each row, everything printed)."""
    out = io.StringIO()
    cost = cost_of_run(store, provider, RUN)  # type: ignore[arg-type]
    Console(file=out, width=200).print(cost_table(cost))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in out.getvalue().splitlines()
        if line.startswith("│")
    ]
    return [row[-4:] for row in cells], out.getvalue()


def test_bills_of_a_pod_are_added_up_and_compared_with_price_x_time(store: Store) -> None:
    provider = Provider(("pod1", 0.07), ("pod1", 0.05), ("pod2", 0.19), ("other", 9.0))
    table, text = rows(store, provider)
    assert table == [
        ["1.000", "0.1000", "0.1200", "+0.0200"],
        ["1.000", "0.2000", "0.1900", "-0.0100"],
        ["0.000", "0.0000", "-", "-"],
        ["", "0.3000", "0.3100", "+0.0100"],
    ]
    assert "no billing records" not in text


def test_without_bills_there_is_nothing_to_compare(store: Store) -> None:
    table, text = rows(store, Provider())
    assert table[0] == ["1.000", "0.1000", "-", "-"]
    assert table[-1] == ["", "0.3000", "-", "-"]
    assert "no billing records yet" in text
    assert "no billing records: none here" in rows(store, NoBilling())[1]


def test_the_document_of_costs_has_the_fields_of_its_page(store: Store) -> None:
    provider = Provider(("pod1", 0.08), ("pod1", 0.01))
    document = cost_of_run(store, provider, RUN).fields()  # type: ignore[arg-type]
    assert fields_of(document) == fields_on_page("cost")
    assert document["cost"] == pytest.approx(0.3)
    assert document["billed"] == pytest.approx(0.09)
    launches = document["launches"]
    assert isinstance(launches, list)
    assert [launch["billed"] for launch in launches] == [pytest.approx(0.09), None, None]
