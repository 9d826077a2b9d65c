"""The probes of `moola store check`: what a store can do, tried on objects of its own.

Each probe decides one thing. A store is used with the first profile that it keeps the contract
with; what is missing of the rights to tidy up decides nothing.
"""

import contextlib
import copy
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from moola.errors import AuthError, DataError, MoolaError, TryAgainError
from moola.store.checksums import combine_crc64, crc64
from moola.store.journal import Part, Upload
from moola.store.profile import Check, Integrity, Probe, require, run_probe

if TYPE_CHECKING:
    from moola.store.base import Store

PART_SIZE = 5 << 20  # bytes; the smallest part that S3 takes
DATA = bytes(range(256)) * (PART_SIZE // 256) + b"the last part may be shorter"

PUT = "put and get"
CONDITIONAL_PUT = "conditional put"
CONDITIONAL_PARTS = "conditional multipart"
PARTS = "multipart"

NOT_CONDITIONAL = (
    "a key that is written once can be overwritten by a second writer of the same moment: "
    "let one command at a time work at a run"
)
NOT_VERIFIED = (
    "the server does not verify what it is sent: bytes damaged on the way up are found by a pull "
    "only"
)


class ContractCheck:
    """Tries profiles in turn; `probes` are those that the backend has run before."""

    def __init__(self, probes: Sequence[Probe] = ()) -> None:
        self._prefix = f"check-{secrets.token_hex(8)}"
        self._probes = {probe.name: probe for probe in probes}
        self._leftovers: list[str] = []

    def new_key(self, name: str) -> str:
        """A key for a probe's object, which is removed in the end."""
        key = f"{self._prefix}-{name.replace(' ', '-')}-{len(self._leftovers)}"
        self._leftovers.append(key)
        return key

    def run(
        self,
        candidates: Sequence["Store"],
        unverified: Collection[Integrity] = (),
    ) -> Check:
        """Use the first candidate that keeps the contract with its own profile.

        They are of one place and differ in their profiles. `unverified` are the checksums that the
        server does not look at.
        """
        failed = None
        for store in candidates:
            failed = self._failed_probe(store)
            if failed is None:
                return self._chosen(store, unverified)
            if isinstance(failed.error, TryAgainError | AuthError):
                break  # it says nothing about the profile

        refusal = _refusal(failed, candidates[0].url)
        if failed is not None and failed.name == PUT:  # nothing was written
            return Check([*self._probes.values()], None, refusal=refusal)
        return Check(self._tidied(candidates[0]), None, refusal=refusal)

    def _chosen(self, store: "Store", unverified: Collection[Integrity]) -> Check:
        self._run("list parts", _list_parts, store)
        self._run("abort", _abort, store)

        limits = []
        if not store.profile.conditional:
            limits.append(NOT_CONDITIONAL)
        if store.profile.integrity in unverified:
            limits.append(NOT_VERIFIED)
        return Check(self._tidied(store), store.profile, limits)

    def _failed_probe(self, store: "Store") -> Probe | None:
        """The first probe that the store does not pass with its profile."""
        probes = {PUT: _put_and_get, CONDITIONAL_PUT: _conditional_put, PARTS: _multipart}
        if store.profile.conditional:
            probes[CONDITIONAL_PARTS] = _conditional_multipart
        else:
            del probes[CONDITIONAL_PUT]

        for name, probe in probes.items():
            result = self._run(name, probe, store)
            if not result.ok:
                return result
        return None

    def _run(self, name: str, probe: Callable[["Store", str], str], store: "Store") -> Probe:
        key = self.new_key(name)
        result = run_probe(name, lambda: probe(store, key))
        self._probes[name] = result
        return result

    def _tidied(self, store: "Store") -> list[Probe]:
        """All probes, the last of which removes what the others left."""
        delete = run_probe("delete", lambda: _delete(store, self._leftovers))
        return [*self._probes.values(), delete]


def check_contract(store: "Store") -> Check:
    """Try a store whose profile can differ only in whether writes are conditional."""
    unconditional = copy.copy(store)
    unconditional.profile = store.profile.model_copy(update={"conditional": False})
    return ContractCheck().run([store, unconditional])


def _refusal(failed: Probe | None, url: str) -> MoolaError:
    """Why a store cannot be used, by the probe that it failed last."""
    if failed is None:
        return DataError(f"the store has no profile to be tried with ({url})")
    if failed.error is not None and isinstance(failed.error, TryAgainError | AuthError):
        return failed.error
    return DataError(
        f"the store cannot be used: {failed.name}: {failed.detail}; take another one ({url})"
    )


def _put_and_get(store: "Store", key: str) -> str:
    store.put(key, b"first")
    store.put(key, b"second")
    require(store.get(key) == b"second", "the bytes read are those written last")
    return "an object is replaced as a whole"


def _conditional_put(store: "Store", key: str) -> str:
    require(store.create(key, b"first"), "a new key can be created")
    require(not store.create(key, b"second"), "a second write to the same key is refused")
    require(store.get(key) == b"first", "the first write stands")
    return "the second of two writers is refused"


def _multipart(store: "Store", key: str) -> str:
    etag = _send_in_parts(store, key, DATA)
    require(etag, "the object is there as a whole")
    require(_read(store, key, 0, PART_SIZE, etag) == DATA[:PART_SIZE], "the first part reads back")

    size = len(DATA) - PART_SIZE
    rest = _read(store, key, PART_SIZE, size, etag)
    require(rest == DATA[PART_SIZE:], "the second part reads back as a range")
    return "two parts, one object; a range reads back"


def _conditional_multipart(store: "Store", key: str) -> str:
    require(store.create(key, b"first"), "a new key can be created")
    etag = _send_in_parts(store, key, b"second")
    require(etag is None, "a second write in parts to the same key is refused")
    require(store.get(key) == b"first", "the first write stands")
    return "the second of two writers in parts is refused"


def _send_in_parts(store: "Store", key: str, data: bytes) -> str | None:
    """The etag, None if the key was taken. An upload that fails is given up."""
    upload = Upload(key, store.begin_parts(key, len(data)), PART_SIZE)
    try:
        parts = []
        for number, start in enumerate(range(0, len(data), PART_SIZE), 1):
            chunk = data[start : start + PART_SIZE]
            crc = crc64(chunk)
            etag = store.send_part(upload, number, memoryview(chunk), crc)
            parts.append(Part(number, len(chunk), crc, etag))
        return store.finish_parts(upload, parts, combine_crc64(parts))
    except MoolaError:
        with contextlib.suppress(MoolaError):
            store.drop_parts(upload)
        raise


def _read(store: "Store", key: str, offset: int, length: int, etag: str | None) -> bytes:
    return store.read_range(key, offset, length, etag or "")


def _list_parts(store: "Store", key: str) -> str:
    upload = Upload(key, store.begin_parts(key, PART_SIZE), PART_SIZE)
    kept = store.kept_parts(upload)
    with contextlib.suppress(MoolaError):
        store.drop_parts(upload)
    require(kept == {}, "an upload in parts can be looked up: a killed one begins anew")
    return "a killed upload can go on"


def _abort(store: "Store", key: str) -> str:
    upload = Upload(key, store.begin_parts(key, PART_SIZE), PART_SIZE)
    store.drop_parts(upload)
    require(not store.kept_parts(upload), "an upload in parts can be given up")
    return "an unfinished upload leaves nothing"


def _delete(store: "Store", keys: Sequence[str]) -> str:
    for key in keys:
        store.delete(key)
    require(not any(map(store.exists, keys)), "a deleted object is gone")
    return "a deleted object is gone"
