"""What binds a document to its run: the fingerprint behind the id, and where its keys may lie."""

import hashlib
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from moola.errors import ArtifactError
from moola.runs.protocol import (
    MANIFEST,
    attempt_key,
    canonical_json,
    checkpoint_key,
    run_key,
)
from moola.runs.records import (
    AttemptId,
    CheckpointManifest,
    Commit,
    FileEntry,
    InputFile,
    InputRun,
    Manifest,
    RunId,
    SpecDocument,
)
from moola.text import quoted

FINGERPRINT_DIGITS = 12  # of the fingerprint, in a run's id

LOG_NAME_CHARACTERS = len("00000001.jsonl")

_RUN_ID: TypeAdapter[str] = TypeAdapter(RunId)
_ATTEMPT_ID: TypeAdapter[str] = TypeAdapter(AttemptId)


def is_run_id(name: str) -> bool:
    """Whether a name can be that of a run."""
    return _is_valid(_RUN_ID, name)


def is_attempt_id(name: str) -> bool:
    """Whether a name can be that of an attempt."""
    return _is_valid(_ATTEMPT_ID, name)


def _is_valid(kind: TypeAdapter[str], name: str) -> bool:
    try:
        kind.validate_python(name)
    except ValidationError:
        return False
    return True


def run_id_of(job: str, fingerprint: str) -> str:
    """The id of a run that was not forced; a forced one's has a further part."""
    return f"{job}-{fingerprint[:FINGERPRINT_DIGITS]}"


def job_of(run_id: str) -> str:
    """The job that an id names."""
    return run_id.partition("-")[0]


def fingerprint_of(
    job: str,
    spec: Mapping[str, object],
    inputs: Mapping[str, InputFile | InputRun],
    code_sha256: str,
) -> str:
    """The digest of all that decides a run's result. Raises ValueError for NaN and infinity."""
    deciding = {
        "job": job,
        "spec": spec,
        "inputs": {name: item.sha256 for name, item in inputs.items()},
        "code_sha256": code_sha256,
    }
    return hashlib.sha256(canonical_json(deciding)).hexdigest()


def check_spec_document(document: SpecDocument, run_id: str, place: str) -> None:
    """Raises ArtifactError unless the document is the run's, whose id its fingerprint gives."""
    try:
        fingerprint = fingerprint_of(
            document.job, document.spec, document.inputs, document.code_sha256
        )
    except ValueError as error:
        raise ArtifactError(f"{place} is damaged: {error}") from error

    if document.fingerprint != fingerprint:
        raise ArtifactError(
            f"{place} was changed after it was written: its fingerprint must be {fingerprint}, "
            f"got {document.fingerprint}"
        )
    own_id = run_id_of(document.job, fingerprint)
    if run_id != own_id and not run_id.startswith(f"{own_id}-"):
        raise ArtifactError(f"{place} belongs to run {own_id}, not to {run_id}")


def check_commit(commit: Commit, run_id: str, place: str) -> None:
    """Raises ArtifactError unless a run's commit names a manifest of that run."""
    key = attempt_key(run_id, commit.attempt, MANIFEST)
    if commit.manifest != key:
        raise ArtifactError(
            f"{place} is damaged: manifest must be {key}, got {quoted(commit.manifest)}"
        )


def check_manifest(manifest: Manifest, run_id: str, attempt_id: str, place: str) -> None:
    """Raises ArtifactError unless a manifest is the attempt's, and its keys lie in the run.

    A file may lie under an earlier attempt of the run, which began to upload it.
    """
    if (manifest.run_id, manifest.attempt_id) != (run_id, attempt_id):
        raise ArtifactError(
            f"{place} belongs to run {manifest.run_id}, attempt {manifest.attempt_id}: "
            f"it must be of {run_id}, {attempt_id}"
        )

    for entry in manifest.files:
        _check_key(entry.key, run_id, f"files/{entry.path}", place)
    for log in manifest.logs:
        _check_key(log.key, run_id, f"logs/{log.key[-LOG_NAME_CHARACTERS:]}", place)

    paths = [entry.path.casefold() for entry in manifest.entries]
    if len(set(paths)) != len(paths):
        raise ArtifactError(f"{place} is damaged: it has two files of one path")


def check_checkpoint(
    checkpoint: CheckpointManifest,
    run_id: str,
    attempt_id: str,
    step: int,
    place: str,
) -> None:
    """Raises ArtifactError unless the files of a checkpoint's manifest are its own."""
    if checkpoint.step != step:
        raise ArtifactError(f"{place} is damaged: step must be {step}, got {checkpoint.step}")
    for entry in checkpoint.files:
        key = checkpoint_key(run_id, attempt_id, step, entry.path)
        if entry.key != key:
            raise ArtifactError(f"{place} is damaged: key must be {key}, got {quoted(entry.key)}")


def _check_key(key: str, run_id: str, path: str, place: str) -> None:
    """Raises ArtifactError unless the key is that of `path` in any attempt of the run."""
    folder = run_key(run_id, "attempts") + "/"
    attempt_id, _, rest = key.removeprefix(folder).partition("/")
    if not (key.startswith(folder) and is_attempt_id(attempt_id) and rest == path):
        raise ArtifactError(
            f"{place} is damaged: a key must be {folder}ATTEMPT/{path}, got {quoted(key)}"
        )


def check_bytes(entry: FileEntry, data: bytes) -> bytes:
    """The bytes, if they are those of the entry. Raises ArtifactError."""
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry.sha256:
        raise ArtifactError(f"sha256 of {entry.key} must be {entry.sha256}, got {sha256}")
    return data
