"""Submitting a run: its inputs go into the store, then its spec. A run exists once spec.json does.

A run's id follows from what decides its result: spec, input digests and code. So the same work has
the same id, and whether it was done is one look-up.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

from pydantic import JsonValue, ValidationError

import moola
from moola.errors import ArtifactError, ConflictError, DataError
from moola.runs.binding import check_spec_document, fingerprint_of, run_id_of
from moola.runs.protocol import REMOVED, SPEC, run_key
from moola.runs.provenance import code_sha256
from moola.runs.records import InputFile, InputRun, SpecDocument, read_record
from moola.runs.work_limit import mark_used
from moola.runs.workdir import fetching_into
from moola.store import FileSource, Folder, Store
from moola.text import quoted

NAME_SEPARATOR = "-"  # between the kind of an input and its name, where there are several
Inputs = Mapping[str, InputFile | InputRun]


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_input(path: Path) -> InputFile:
    """A local file that a run reads. Raises DataError for a name that could not be one anywhere."""
    sha256 = sha256_file(path)
    try:
        return InputFile(
            key=f"inputs/{sha256}/{path.name}",
            name=path.name,
            sha256=sha256,
            size=path.stat().st_size,
        )
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(
            f"an input's name {message}, got {quoted(path.name)}: rename the file"
        ) from error


def put_input(
    store: Store,
    path: Path,
    item: InputFile,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Upload an input described by `describe_input`, unless it is there."""
    head = store.head(item.key)
    if head is None or head.size != item.size:
        store.upload(item.key, FileSource(path), on_progress=on_progress)


def pull_input(store: Store, item: InputFile, work: Path) -> Path:
    """A local, verified copy of an input. An earlier copy that still has its digest is used again.

    Raises ArtifactError if the store does not have the input's bytes.
    """
    folder = Folder(work / "inputs" / item.sha256)
    path = folder.root / item.name
    mark_used(folder.root)

    with fetching_into(folder.root):
        if is_pulled(folder, item.name, item.size, item.sha256):
            return path
        try:
            store.pull_into(
                folder,
                item.name,
                item.key,
                size=item.size,
                sha256=item.sha256,
            )
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}; delete it from the store, and the same command stores it again"
            ) from error
    return path


def is_pulled(folder: Folder, path: str, size: int, sha256: str) -> bool:
    """Whether a file is there with this size and digest."""
    stream = folder.open_to_read(path)
    if stream is None:
        return False
    with stream:
        return _size(stream) == size and _sha256(stream) == sha256


def _size(stream: FileIO) -> int:
    size = stream.seek(0, 2)
    stream.seek(0)
    return size


def _sha256(stream: FileIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def input_file(document: SpecDocument, name: str) -> InputFile | None:
    """A file that a run reads; None if it reads none of that name. Raises ArtifactError."""
    item = document.inputs.get(name)
    if isinstance(item, InputRun):
        raise ArtifactError(f"the spec's input {name} must be a file, got run {item.run}")
    return item


def input_run(document: SpecDocument, name: str) -> InputRun:
    """A run that another one reads. Raises ArtifactError if it reads none of that name."""
    item = document.inputs.get(name)
    if not isinstance(item, InputRun):
        raise ArtifactError(f"the spec's input {name} must be a run, got {quoted(item)}")
    return item


def several_inputs(document: SpecDocument, kind: str) -> dict[str, InputFile | InputRun]:
    """The inputs KIND-NAME of a run that reads several of a kind, by their names, in order."""
    start = f"{kind}{NAME_SEPARATOR}"
    names = sorted(name for name in document.inputs if name.startswith(start))
    return {name.removeprefix(start): document.inputs[name] for name in names}


def input_name(kind: str, name: str) -> str:
    """What one of several inputs of a kind is called."""
    return f"{kind}{NAME_SEPARATOR}{name}"


def describe_run(
    job: str,
    spec: dict[str, JsonValue],
    inputs: Inputs,
    *,
    force: bool = False,
) -> tuple[str, SpecDocument]:
    """(run id, spec.json) of a job. Nothing is sent.

    The same work has the same id; `force` gives it a further one.
    """
    code = code_sha256()
    fingerprint = fingerprint_of(job, spec, inputs, code)
    document = SpecDocument(
        job=job,
        spec=spec,
        inputs=dict(inputs),
        code_sha256=code,
        fingerprint=fingerprint,
        moola=moola.__version__,
    )

    run_id = run_id_of(job, fingerprint)
    if force:
        run_id += f"-{secrets.token_hex(2)}"
    return run_id, document


def submit(store: Store, run_id: str, document: SpecDocument) -> None:
    """Write spec.json: from now on the run exists.

    Raises ArtifactError where something else stands there already, or where the run, or one that it
    reads, is being removed.
    """
    require_kept(store, run_id)
    try:
        store.put_once(run_key(run_id, SPEC), document.to_json())
    except ConflictError:
        # The same input bytes under another file name: the first spec stands.
        read_spec_document(store, run_id)

    # After the spec: who removes a run looks for its readers after the mark is written.
    for item in document.inputs.values():
        if isinstance(item, InputRun):
            require_kept(store, item.run)


def require_kept(store: Store, run_id: str) -> None:
    """Raises ArtifactError for a run that is being removed."""
    if store.exists(run_key(run_id, REMOVED)):
        raise ArtifactError(
            f"{run_id} is half removed from {store.url}: moola remove {run_id} finishes that"
        )


def read_spec_document(store: Store, run_id: str) -> SpecDocument:
    """spec.json of a run, its fingerprint worked out again. Raises ArtifactError."""
    key = run_key(run_id, SPEC)
    document = read_record(store, key, SpecDocument)
    check_spec_document(document, run_id, f"{key} in {store.url}")
    return document
