"""The documents of the run protocol, as they are read: typed, bounded, bound to their run.

Whoever can write to the store's prefix can write any of these, so each is read as input is. A
field that decides something has a strict type; a field that a later version adds is passed over.
A document that breaks a rule is an ArtifactError that names its key.
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from moola.errors import ArtifactError
from moola.runs.protocol import canonical_json
from moola.store import MAX_DOCUMENT_BYTES, Store
from moola.text import quoted

T = TypeVar("T")

MAX_FILES = 100_000  # of a run
MAX_TEXT = 100_000  # characters, of a reason or a line of a log
LONGEST_S = 1e9  # that a stage may still take, some 30 years; more is no estimate
MAX_USAGE_POINTS = 120  # of what a heartbeat tells of the time before it

# Names that Windows gives to devices, with any extension: a file of this name is none.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)
# Separators, a drive's colon, control characters, and those that turn the direction of writing.
_FORBIDDEN = re.compile(r"[/\\:\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]")


def plain_component(name: str) -> str:
    """A name that can be one part of a path everywhere. Raises ValueError."""
    if not name or len(name.encode()) > 255 or name in (".", ".."):
        raise ValueError("must be a name of 1 to 255 bytes, and neither . nor ..")
    if _FORBIDDEN.search(name) or name != name.strip() or name.endswith("."):
        raise ValueError("must be one plain name: no separator, colon or control character")
    if _DEVICES.fullmatch(name):
        raise ValueError("must not be the name of a device")
    return name


def plain_path(path: str) -> str:
    """A relative path of plain components. Raises ValueError."""
    for part in path.split("/"):
        plain_component(part)
    return path


Component = Annotated[str, AfterValidator(plain_component)]
RelativePath = Annotated[str, StringConstraints(max_length=1024), AfterValidator(plain_path)]
RunId = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}-[0-9a-f]{12}(-[0-9a-f]{4,16})?$")
]
AttemptId = Annotated[str, StringConstraints(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{8}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, StringConstraints(max_length=1024)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Time = Annotated[AwareDatetime, PlainSerializer(lambda time: iso_text(time), return_type=str)]
Bytes = Annotated[int, Field(ge=0, le=1 << 44)]  # 16 TiB
Count = Annotated[int, Field(ge=0, le=1 << 53)]
UnixTime = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]  # to 9999
Usd = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Megabytes = Annotated[float, Field(ge=0, le=2e12, allow_inf_nan=False)]
Cores = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


def iso_text(time: datetime) -> str:
    """ISO 8601 to the millisecond."""
    return time.isoformat(timespec="milliseconds")


Provenance = dict[str, JsonValue]  # where a run's files come from; for people


class State(StrEnum):
    """Where an attempt is, or how it ended."""

    SUBMITTED = "submitted"
    WAITING = "waiting"  # its launcher looks for a machine
    RUNNING = "running"
    COMMITTED = "committed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    TIMED_OUT = "timed_out"
    INFRA_LOST = "infra_lost"
    STALLED = "stalled"
    CRASH_LOOP = "crash_loop"
    NO_CAPACITY = "no_capacity"
    LAUNCH_FAILED = "launch_failed"

    @property
    def is_final(self) -> bool:
        """Does the attempt stay so?"""
        return self not in (State.SUBMITTED, State.WAITING, State.RUNNING)


class Record(BaseModel):
    """Base of all documents in the store. Fields that a later version adds are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    def fields(self) -> dict[str, Any]:
        """The fields that were set, ready for JSON."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_json(self) -> bytes:
        """As it is stored."""
        return canonical_json(self.fields())


class InputFile(Record):
    """A file that a run reads, content-addressed in the store."""

    key: Key
    name: Component
    sha256: Sha256
    size: Bytes

    def model_post_init(self, _context: object) -> None:
        """The key follows from the digest and the name."""
        if self.key != f"inputs/{self.sha256}/{self.name}":
            raise ValueError(f"key must be inputs/<sha256>/<name>, got {quoted(self.key)}")


class InputRun(Record):
    """A committed run that another one reads; `sha256` is that of its manifest."""

    run: RunId
    sha256: Sha256


class SpecDocument(Record):
    """spec.json: what decides a run's result, and the fingerprint of exactly that."""

    job: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    spec: dict[str, JsonValue]
    inputs: dict[Component, InputFile | InputRun]
    code_sha256: Sha256
    fingerprint: Sha256
    moola: Annotated[str, StringConstraints(max_length=100)]


class Status(Record):
    """status.json of an attempt."""

    state: State
    time: Time
    reason: Text = ""
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    pid: Count | None = None
    last_log_sequence: Count = 0
    # It ended before there was a machine: the next launch is no further attempt.
    orphan: bool = False


class GpuUsage(Record):
    """How a GPU is used: a fraction of the time, and its memory."""

    use: Fraction
    memory_mb: Megabytes


class Usage(Record):
    """What a machine's cores, memory and GPUs are used for; what is not known is None.

    cpu_cores  cores at work, on average since the heartbeat before
    """

    cpu_cores: Cores | None = None
    memory_mb: Megabytes | None = None
    memory_limit_mb: Megabytes | None = None
    gpus: tuple[GpuUsage, ...] = Field((), max_length=64)


Points = Annotated[tuple[T | None, ...], Field(max_length=MAX_USAGE_POINTS)]


class UsageHistory(Record):
    """Use over the time that a run has been at work, in points of `every_s` seconds each.

    What is not known of a point is None. Cores and the use of GPUs are means over a point (of all
    GPUs), memory is the most in it (of all GPUs together). `starts` are the points at which an
    attempt began: those of attempts before it come first.
    """

    every_s: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
    cpu_cores: Points[Cores] = ()
    memory_mb: Points[Megabytes] = ()
    gpu: Points[Fraction] = ()
    gpu_memory_mb: Points[Megabytes] = ()
    starts: Annotated[tuple[Count, ...], Field(max_length=MAX_USAGE_POINTS)] = ()

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        columns = (self.cpu_cores, self.memory_mb, self.gpu, self.gpu_memory_mb)
        if len({len(column) for column in columns}) > 1:
            raise ValueError("all columns must have the same number of points")
        if list(self.starts) != sorted(set(self.starts)) or max(self.starts, default=-1) >= len(
            self
        ):
            raise ValueError("starts must be points, in order, each once")
        return self

    def __len__(self) -> int:
        return len(self.cpu_cores)


class Heartbeat(Record):
    """heartbeat.json of an attempt: the stage, and how far it is in `unit`.

    rate     of the stage, per second; None where it is not known
    history  of use, up to now
    """

    time: Time
    last_log_sequence: Count = 0
    stage: Text = ""
    done: Count = 0
    total: Count = 0
    unit: Text = ""
    note: Text = ""
    rate: Rate | None = None
    usage: Usage = Field(default_factory=Usage)
    history: UsageHistory | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds that the stage still takes at its rate; None where that is not known."""
        if not self.rate or self.total <= self.done:
            return None
        left_s = (self.total - self.done) / self.rate
        return left_s if left_s <= LONGEST_S else None


class NpyFormat(Record):
    """dtype and shape of a .npy file."""

    dtype: Annotated[str, StringConstraints(max_length=32)]
    shape: tuple[Count, ...] = Field(max_length=8)


class PathEntry(Record):
    """A file of a run, at a relative path, with its digest."""

    path: RelativePath
    size: Bytes
    sha256: Sha256


class FileEntry(PathEntry):
    """A file of a manifest that is stored."""

    key: Key
    media_type: Annotated[str, StringConstraints(max_length=200)] = "application/octet-stream"
    npy: NpyFormat | None = None


class DerivedEntry(PathEntry):
    """A file that is not stored: `rule` rebuilds it, to exactly this sha256."""

    npy: NpyFormat
    rule: Text


class LogEntry(Record):
    """A chunk of the log."""

    key: Key
    size: Bytes
    sha256: Sha256


class Manifest(Record):
    """manifest.json of an attempt: what it made, and where that comes from."""

    run_id: RunId
    attempt_id: AttemptId
    created: Time
    state: State
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    reason: Text = ""
    provenance: Provenance = Field(default_factory=dict)
    files: tuple[FileEntry, ...] = Field((), max_length=MAX_FILES)
    derived: tuple[DerivedEntry, ...] = Field((), max_length=MAX_FILES)
    logs: tuple[LogEntry, ...] = Field((), max_length=MAX_FILES)

    @property
    def entries(self) -> tuple[PathEntry, ...]:
        """All files, also those that pull rebuilds."""
        return (*self.files, *self.derived)


class CheckpointManifest(Record):
    """manifest.json of a checkpoint."""

    step: Count
    files: tuple[FileEntry, ...] = Field(max_length=1000)


class Commit(Record):
    """COMMIT.json: the one attempt whose files are the run's result."""

    attempt: AttemptId
    manifest: Key
    manifest_sha256: Sha256


class LogLine(Record):
    """A line of a log chunk."""

    seq: Count
    time: UnixTime
    level: Annotated[str, StringConstraints(max_length=20)]
    message: Text


RecordType = TypeVar("RecordType", bound=BaseModel)


def cut(text: str, most: int = MAX_TEXT) -> str:
    """A text of at most so many characters, the last one an ellipsis if it was longer."""
    return text if len(text) <= most else text[: most - 1] + "…"


def parse_record(kind: type[RecordType], data: bytes, place: str) -> RecordType:
    """A document from its JSON. Raises ArtifactError that names the place and the broken rule."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ArtifactError(
            f"{place} must have at most {MAX_DOCUMENT_BYTES:,} bytes, it has {len(data):,}"
        )
    try:
        return kind.model_validate_json(data, strict=True)  # at most 200 levels deep
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the document"
        raise ArtifactError(
            f"{place} is damaged: {quoted(field)}: {fault['msg']}, got {quoted(fault['input'])}"
        ) from error


def read_record(store: Store, key: str, kind: type[RecordType]) -> RecordType:
    """The document at a key. Raises ArtifactError if it is missing, too large or breaks a rule."""
    record = read_record_or_none(store, key, kind)
    if record is None:
        raise ArtifactError(f"{key} is missing in {store.url}")
    return record


def read_record_or_none(store: Store, key: str, kind: type[RecordType]) -> RecordType | None:
    """The document at a key, None if it is missing. Raises ArtifactError if it is damaged."""
    data = store.get_or_none(key)
    return None if data is None else parse_record(kind, data, f"{key} in {store.url}")
