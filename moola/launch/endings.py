"""Word of runs that have ended, to all who are to have it: by notices, and in MLflow."""

import os
from collections.abc import Mapping

from moola.errors import MoolaError
from moola.launch.group_notices import tell_group_end
from moola.launch.notices import MemberNotices, addresses, require_addresses, tell_end
from moola.launch.settings import Settings
from moola.launch.tracking import Tracking, require_tracking
from moola.runs.groups import Member
from moola.runs.launches import newest_attempt, newest_launch
from moola.store import Store


def require_told(settings: Settings) -> None:
    """Raises DataError where word of a run's end could not be sent. Nothing is sent."""
    require_addresses()
    require_tracking(settings.tracking)


class Endings:
    """Sends word of runs that have ended, once. What fails is printed, not raised.

    A run that is rented for as a member of a group is told of as one: once all are told of, call
    `tell_groups`.
    """

    def __init__(self, settings: Settings) -> None:
        self._tracking = Tracking(settings.tracking)
        self._members = MemberNotices()
        self._groups: dict[str, None] = {}

    def tell(self, store: Store, run_id: str) -> None:
        """Of a run that has ended, unless somebody has."""
        group_id = _group_of(store, run_id)
        if group_id:
            self._groups[group_id] = None
            self._members.tell(store, run_id, group_id)
        else:
            tell_end(store, run_id)
        self._tracking.tell_end(store, run_id)

    def tell_groups(self, store: Store) -> None:
        """Of the groups that the runs told of are in, where all runs of one have ended."""
        for group_id in self._groups:
            tell_group_end(store, group_id)


def _group_of(store: Store, run_id: str) -> str:
    """The group that the newest attempt's machine is paid for by; "" where there is none."""
    if not addresses(os.environ):
        return ""
    try:
        launch = newest_launch(store, run_id)
        if launch is None or launch.budget is None:
            return ""
        return launch.budget.group if launch.attempt == newest_attempt(store, run_id) else ""
    except MoolaError:  # a run of none; what is wrong is said with its notice
        return ""


class MemberEndings:
    """Sends word of the members of a sweep as they end; what fails is printed, not raised.

    `sweep` is what brings them together, for people: the id of their group, or a search's name.
    `titles` tell them apart: run id -> text.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sweep: str,
        titles: Mapping[str, str],
    ) -> None:
        self._tracking = Tracking(settings.tracking)
        self._members = MemberNotices()
        self._store = store
        self._sweep = sweep
        self._titles = titles

    def tell(self, run_id: str) -> None:
        """Of a member that has ended, unless somebody has."""
        self._members.tell(self._store, run_id, self._sweep)
        member = Member(self._sweep, self._titles[run_id])
        self._tracking.tell_end(self._store, run_id, member)
