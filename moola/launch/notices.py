"""Word of how a run ended, to the addresses in MOOLA_NOTIFY, by whoever sees it end first.

Of the members of a group those that failed alone; the group has a notice of its own
(`moola.launch.group_notices`).

Addresses are those of the library Apprise (mail, Slack, Telegram, webhooks ...). They are secrets,
so they are in the environment alone and no message names one. `notified.json` of an attempt is the
claim to send its notice: it is written before, so that none is sent twice. What fails is said, and
fails nothing else.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from moola.errors import ArtifactError, DataError
from moola.launch.console import print_text, terminal
from moola.runs.about import read_about
from moola.runs.binding import job_of
from moola.runs.launches import LaunchCost, all_launches, cost_of
from moola.runs.protocol import attempt_key, canonical_json, now_text
from moola.runs.reading import RunState, read_file_record, require_manifest, run_state
from moola.runs.records import State
from moola.runs.redaction import NOTIFY, safe_text
from moola.store import Store
from moola.text import shortened

if TYPE_CHECKING:
    from moola.evaluation.result_documents import MetricDocument

NOTIFIED = "notified.json"
LONGEST_REASON = 1000  # characters
MOST_MEMBERS = 10  # of a group that have a notice of their own, of one command
NOT_FAILED = (State.COMMITTED, State.CANCELLED, State.TERMINATED)


def addresses(environment: Mapping[str, str]) -> list[str]:
    """The addresses in MOOLA_NOTIFY, which blanks or lines part."""
    return environment.get(NOTIFY, "").split()


def require_addresses(environment: Mapping[str, str] = os.environ) -> None:
    """Raises DataError where a notice could not be sent: for want of Apprise, or of an address."""
    urls = addresses(environment)
    if not urls:
        return
    if find_spec("apprise") is None:
        raise DataError(f"{NOTIFY} needs the package apprise: pip install 'moola[notify]'")

    from apprise import Apprise

    _silence()
    for number, url in enumerate(urls, start=1):
        if Apprise.instantiate(url) is None:
            raise DataError(
                f"{NOTIFY} must hold addresses of Apprise, such as mailto://... or slack://..., "
                f"parted by blanks: number {number} of {len(urls)} is none"
            )


def tell_end(store: Store, run_id: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send word of a run that has ended, unless somebody has. What fails is printed, not raised."""
    urls = addresses(environment)
    if not urls:
        return
    try:
        state = run_state(store, run_id)
        if state.attempt is not None and state.state.is_final:
            _tell(store, run_id, state, urls, environment)
    except Exception as error:  # whatever it is, the run has ended as it has
        say(f"no notice of the end of {run_id} was sent: {error}")


def _tell(
    store: Store,
    run_id: str,
    state: RunState,
    urls: list[str],
    environment: Mapping[str, str],
    group_id: str = "",
) -> bool:
    """-> whether it is this process that has told of the attempt's end."""
    require_addresses(environment)
    assert state.attempt is not None
    if not _claim(store, run_id, state.attempt):
        return False
    title = f"moola: {run_id} {state.state}"
    send(urls, title, notice_text(store, run_id, state, group_id))
    return True


class MemberNotices:
    """Word of the members of groups that have failed, of the first MOST_MEMBERS of them.

    Those that are committed or were stopped are in the notice of the group alone.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._n_sent = 0

    def tell(self, store: Store, run_id: str, group_id: str) -> None:
        """Of a member that has ended, unless somebody has. What fails is printed, not raised."""
        urls = addresses(self._environment)
        if not urls or self._n_sent >= MOST_MEMBERS:
            return
        try:
            state = run_state(store, run_id)
            if state.attempt is None or not state.state.is_final or state.state in NOT_FAILED:
                return
            self._n_sent += _tell(store, run_id, state, urls, self._environment, group_id)
        except Exception as error:  # as for any run
            say(f"no notice of the end of {run_id} was sent: {error}")


def _claim(store: Store, run_id: str, attempt_id: str) -> bool:
    key = attempt_key(run_id, attempt_id, NOTIFIED)
    return store.create(key, canonical_json({"time": now_text()}))


def send(urls: list[str], title: str, body: str) -> None:
    """Send a notice to each address; what is not taken is said."""
    from apprise import Apprise, NotifyFormat

    _silence()
    for number, url in enumerate(urls, start=1):
        service = Apprise()
        service.add(url)
        if not service.notify(body=body, title=title, body_format=NotifyFormat.TEXT):
            say(f"notice {number} of {len(urls)} was not sent: its service did not take it")


def _silence() -> None:
    """Apprise's own log, which has addresses in it."""
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)


def say(text: str) -> None:
    """On standard error."""
    print_text(text, terminal())


# --- what it says -----------------------------------------------------------------------------


def notice_text(store: Store, run_id: str, state: RunState, group_id: str = "") -> str:
    """State, reason, cost and key metrics; what is damaged is named in the place of its line.

    `group_id` is that of the group that it is told as a member of.
    """
    lines = [
        line_of(lambda: _name(store, run_id)),
        shortened(state.reason, LONGEST_REASON),
        line_of(lambda: _cost(store, run_id)),
    ]
    if state.state is State.COMMITTED and job_of(run_id) == "train":
        lines.append(line_of(lambda: _metrics(store, run_id)))
    if group_id:
        lines.append(f"a run of {group_id}")
    lines.append(f"moola status {run_id} --store {store.url}")
    return safe_text("\n".join(filter(None, lines)))


def line_of(make: Callable[[], str]) -> str:
    """A line of a notice; what is damaged is said in its place."""
    try:
        return make()
    except ArtifactError as error:
        return shortened(str(error), LONGEST_REASON)


def _name(store: Store, run_id: str) -> str:
    about = read_about(store, run_id)
    return " ".join([about.name or "", *(f"#{tag}" for tag in about.tags)]).strip()


def _cost(store: Store, run_id: str) -> str:
    return cost_text(costs_of(store, run_id))


def costs_of(store: Store, run_id: str) -> list[LaunchCost]:
    """Of the launches of a run that got a machine."""
    costs = [cost_of(store, launch) for launch in all_launches(store, run_id)]
    return [cost for cost in costs if cost["pod_id"] is not None]


def cost_text(costs: Sequence[LaunchCost]) -> str:
    """What machines cost together; "" for none."""
    if not costs:
        return ""
    return f"{sum(cost['cost'] for cost in costs):.4f} USD on {len(costs)} machines"


def metrics_of(store: Store, run_id: str) -> "Mapping[str, MetricDocument] | None":
    """By name, on test; None where they cannot be read."""
    from moola.evaluation.result_documents import MetricsDocument

    try:
        manifest = require_manifest(store, run_id)
        return read_file_record(store, manifest, "metrics.json", MetricsDocument).test.metrics
    except ArtifactError:
        return None


def _metrics(store: Store, run_id: str) -> str:
    from moola.evaluation.formats import format_value
    from moola.evaluation.metrics import HEADLINE
    from moola.evaluation.result_documents import GatesDocument, MetricsDocument

    manifest = require_manifest(store, run_id)
    measured = read_file_record(store, manifest, "metrics.json", MetricsDocument).test.metrics
    gates = read_file_record(store, manifest, "gates.json", GatesDocument).gates

    parts = [
        f"{measured[name].title} {format_value(measured[name].value, measured[name].unit)}"
        for name in HEADLINE
        if name in measured
    ]
    judged = [gate for gate in gates if gate.judged]
    n_passed = sum(gate.passed for gate in judged)
    return ", ".join([*parts, f"{n_passed} of {len(judged)} gates passed"])
