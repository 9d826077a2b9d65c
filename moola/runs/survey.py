"""All runs of a store at a glance: which are the newest, and how each stands, in few requests.

A listing shows every object with the time at which the store wrote it, a thousand at a time. That
orders the runs, and tells which are committed, without reading any of them; what is then read, at
most two documents a run, is only for the runs that are shown.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from moola.errors import ArtifactError
from moola.runs.about import NO_ABOUT, About, read_about
from moola.runs.binding import is_attempt_id, is_run_id, job_of
from moola.runs.launches import Launch
from moola.runs.protocol import ABOUT, COMMIT, HEARTBEAT, REMOVED, SPEC, STATUS, run_key
from moola.runs.reading import SILENT_S, read_commit, read_manifest, read_status
from moola.runs.records import State, Status
from moola.runs.submit import read_spec_document
from moola.store import Entry, Store
from moola.store.background import map_in_background

log = logging.getLogger("moola")

READERS = 12  # requests under way at a time
RUNS_PER_LISTING = 250  # of about 15 objects each: four pages
MAX_PAGES_PER_RUN = 20  # of a listing; what lies behind is nothing that decides a state
LAUNCH_NAME = re.compile(r"launches/[0-9]{8}\.json")
DAMAGED = "damaged"  # what is shown for a state that is not known
HALF_REMOVED = "half_removed"
AFTER_SLASH = "0"  # the character after it: keys sort before NAME0 that begin with NAME/


@dataclass
class RunKeys:
    """What a listing shows of a run. Times are the store's, in Unix seconds.

    attempts   attempt -> when its status or heartbeat was last written
    launches   the numbers of its launches
    """

    run_id: str
    has_spec: bool = False
    has_about: bool = False
    is_half_removed: bool = False
    committed: float | None = None
    changed: float = 0.0  # when one of the documents that decide its state was last written
    attempts: dict[str, float] = field(default_factory=dict)
    launches: set[int] = field(default_factory=set)

    @property
    def newest_attempt(self) -> str:
        """The attempt with the highest id; "" if there is none."""
        return max(self.attempts, default="")

    def add(self, entry: Entry, path: str) -> None:
        """Note an object of the run; `path` is its key below the run."""
        parts = path.split("/")
        if parts == [SPEC]:
            self.has_spec = True
        elif parts == [COMMIT]:
            self.committed = entry.modified
        elif parts == [REMOVED]:
            self.is_half_removed = True
        elif parts == [ABOUT]:
            self.has_about = True
            return  # a new name is no change of the run
        elif len(parts) == 2 and LAUNCH_NAME.fullmatch(path):
            self.launches.add(int(parts[1].removesuffix(".json")))
        elif len(parts) >= 3 and parts[0] == "attempts" and is_attempt_id(parts[1]):
            seen = self.attempts.setdefault(parts[1], 0.0)
            if parts[2:] not in ([STATUS], [HEARTBEAT]):
                return
            self.attempts[parts[1]] = max(seen, entry.modified)
        else:
            return
        self.changed = max(self.changed, entry.modified)


@dataclass(frozen=True)
class RunSummary:
    """How a run stands. `fault` is what is damaged; then its state is not known.

    Times are the store's, in Unix seconds; `changed` is that of the last change, 0 if unknown.
    """

    run_id: str
    state: State | None
    attempt: str | None = None
    status: Status | None = None
    silent_s: float | None = None
    fault: str = ""
    is_half_removed: bool = False
    about: About = NO_ABOUT
    committed: float | None = None
    changed: float = 0.0

    @property
    def reason(self) -> str:
        """Why it ended so, or what is damaged; "" where there is nothing to say."""
        if self.fault or self.status is None:
            return self.fault
        return self.status.reason

    @property
    def shown_state(self) -> str:
        """The state in one word, also of a run that is half removed or damaged."""
        if self.is_half_removed:
            return HALF_REMOVED
        return DAMAGED if self.state is None else self.state

    @property
    def is_silent(self) -> bool:
        """Whether a running attempt gives no sign of life any more."""
        return self.silent_s is not None and self.silent_s > SILENT_S


@dataclass(frozen=True)
class Survey:
    """The runs of a store, the one that changed last first, and names that are no run's."""

    runs: tuple[RunKeys, ...]
    strangers: tuple[str, ...]
    now: float  # by the store's clock


def survey_runs(store: Store, job: str | None = None) -> Survey:
    """All runs of a store, or those of a job."""
    names = store.children("runs")
    run_ids = [name for name in names if is_run_id(name)]
    if job is not None:
        run_ids = [run_id for run_id in run_ids if job_of(run_id) == job]
    strangers = tuple(name for name in names if not is_run_id(name))
    return _survey(store, run_ids, strangers)


def survey_run(store: Store, run_id: str) -> Survey:
    """One run; none where it has no object in the store."""
    return _survey(store, [run_id], ())


def _survey(store: Store, run_ids: Sequence[str], strangers: tuple[str, ...]) -> Survey:
    wanted = frozenset(run_ids)
    listers = [_Lister(store, prefix, wanted) for prefix in _prefixes(sorted(run_ids))]
    keys: dict[str, RunKeys] = {}  # without the folders that some servers keep of what was removed
    now = 0.0
    for lister in map_in_background(_Lister.list, listers, READERS):
        keys |= lister.runs
        now = max(now, lister.now)

    runs = list(keys.values())
    runs.sort(key=lambda run: (run.changed, run.newest_attempt, run.run_id), reverse=True)
    return Survey(tuple(runs), strangers, now)


def _prefixes(run_ids: Sequence[str], length: int = 0) -> Iterator[str]:
    """What the keys of a few runs each begin with; no key begins with two of them."""
    if len(run_ids) <= 1:
        yield from (f"{run_id}/" for run_id in run_ids)
        return
    if len(run_ids) <= RUNS_PER_LISTING:
        yield _common_start(run_ids[0], run_ids[-1])
        return

    groups: dict[str, list[str]] = {}
    for run_id in run_ids:
        groups.setdefault(run_id[: length + 1], []).append(run_id)
    for group in groups.values():
        yield from _prefixes(group, length + 1)


def _common_start(first: str, last: str) -> str:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(pair[0] for pair in pairs)


class _Lister:
    """Lists the objects of the runs whose keys begin with a prefix, without those of long logs."""

    def __init__(self, store: Store, prefix: str, run_ids: Collection[str]) -> None:
        self.runs: dict[str, RunKeys] = {}
        self.now = 0.0
        self._store = store
        self._prefix = run_key(prefix)
        self._run_ids = run_ids
        self._pages: Counter[str] = Counter()  # that held nothing but objects of this run
        self._can_skip = True

    def list(self) -> "_Lister":
        more: str | None = None
        after = ""
        while True:
            page = self._store.list_page(self._prefix, more, after)
            self.now = max(self.now, page.now)
            if after and page.entries and page.entries[0].key <= after:
                self._can_skip = False  # the server begins where it likes

            for entry in page.entries:
                self._note(entry)
            if page.more is None:
                return self

            after = self._behind(page.entries) if self._can_skip else ""
            more = None if after else page.more

    def _note(self, entry: Entry) -> None:
        run_id, _, path = entry.key.removeprefix(run_key("")).partition("/")
        if run_id in self._run_ids:
            self.runs.setdefault(run_id, RunKeys(run_id)).add(entry, path)

    def _behind(self, entries: Sequence[Entry]) -> str:
        """A key from which to go on, behind what need not be listed; "" where all of it is."""
        first = entries[0].key.split("/")
        last = entries[-1].key.split("/")
        if first[:2] != last[:2]:
            return ""

        run_id = last[1]
        self._pages[run_id] += 1
        if self._pages[run_id] > MAX_PAGES_PER_RUN:
            return f"runs/{run_id}{AFTER_SLASH}"
        if len(last) > 4 and last[2] == "attempts" and first[:4] == last[:4]:
            return "/".join(last[:4]) + AFTER_SLASH
        return ""


@dataclass(frozen=True)
class RunQuery:
    """Which runs are looked for; what is empty asks for nothing.

    states   one of these words, as `RunSummary.shown_state` has them
    tags     all of these
    name     a pattern of the shell: * and ? stand for any text and any character
    """

    states: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    name: str = ""

    @property
    def asks_nothing(self) -> bool:
        return not (self.states or self.tags or self.name)

    def may_match(self, run: RunKeys) -> bool:
        """Whether the run has to be read to know; without a document it has no name and no tag."""
        return run.has_about or not (self.tags or self.name)

    def candidates(self, survey: Survey, last: int) -> Sequence[RunKeys]:
        """The runs that have to be read to find the newest `last`."""
        runs = [run for run in survey.runs if self.may_match(run)]
        return runs[:last] if self.asks_nothing else runs

    def matches(self, run: RunSummary) -> bool:
        if self.states and run.shown_state not in self.states:
            return False
        if self.name and not fnmatchcase(run.about.name or "", self.name):
            return False
        return self.tags <= set(run.about.tags)


EVERY_RUN = RunQuery()


def summarize_runs(
    store: Store,
    survey: Survey,
    last: int,
    query: RunQuery = EVERY_RUN,
) -> list[RunSummary]:
    """How the newest runs of a survey stand, or the newest that a query asks for.

    What is damaged is told of its run alone.
    """

    def summarize(run: RunKeys) -> RunSummary:
        return summarize_run(store, run, survey.now)

    summaries = map_in_background(summarize, query.candidates(survey, last), READERS)
    return list(itertools.islice(filter(query.matches, summaries), last))


def summarize_run(store: Store, run: RunKeys, now: float) -> RunSummary:
    """How a run of a survey stands; what is damaged is its fault. `now` is that of the survey."""
    try:
        summary = _summarize(store, run, now)
        about = read_about(store, run.run_id) if run.has_about else NO_ABOUT
        summary = replace(summary, about=about)
    except ArtifactError as error:
        summary = RunSummary(run.run_id, None, run.newest_attempt, fault=str(error))
    return replace(
        summary,
        is_half_removed=run.is_half_removed,
        committed=run.committed,
        changed=run.changed,
    )


def _summarize(store: Store, run: RunKeys, now: float) -> RunSummary:
    """Raises ArtifactError where a document that decides is damaged."""
    if not run.has_spec:
        raise ArtifactError(f"{run_key(run.run_id, SPEC)} is missing in {store.url}")

    commit = read_commit(store, run.run_id) if run.committed is not None else None
    attempt = commit.attempt if commit is not None else _newest_attempt(store, run)
    if attempt is None:
        return RunSummary(run.run_id, State.SUBMITTED)

    status = read_status(store, run.run_id, attempt)
    if commit is not None:
        return RunSummary(run.run_id, State.COMMITTED, attempt, status)

    state = status.state if status is not None else State.SUBMITTED
    silent_s = None
    if state is State.RUNNING:
        silent_s = max(now - run.attempts.get(attempt, now), 0.0)
    return RunSummary(run.run_id, state, attempt, status, silent_s)


def _newest_attempt(store: Store, run: RunKeys) -> str | None:
    """The newest launch's attempt, unless one that no launch has was heard of later."""
    heard_last = max(run.attempts, key=lambda name: (run.attempts[name], name), default=None)
    n_launches = 0
    while n_launches + 1 in run.launches:
        n_launches += 1
    if n_launches == 0:
        return heard_last

    launch = Launch.read(store, run.run_id, n_launches)
    if launch is None or (heard_last is not None and len(run.attempts) > n_launches):
        return heard_last
    return launch.attempt


def newest_run(store: Store, job: str) -> str | None:
    """The run of a job that was committed last, by the store's clock; None if there is none.

    One that is damaged is passed over.
    """
    committed = [
        run
        for run in survey_runs(store, job).runs
        if run.committed is not None and not run.is_half_removed
    ]
    committed.sort(key=lambda run: (run.committed, run.newest_attempt), reverse=True)
    for run in committed:
        try:
            read_spec_document(store, run.run_id)
            if read_manifest(store, run.run_id) is not None:
                return run.run_id
        except ArtifactError as error:
            log.warning("passed over: %s", error)
    return None
