"""A store in a bucket: `s3://bucket/prefix`, through boto3.

Every write carries an explicit checksum that the server verifies (CRC64NVME, or MD5 where the
profile says so), as a plain header: some servers refuse the trailer boto3 would send by default.

What the server can do stands in the store's profile. Without one the store can be read; before the
first write it is probed, and only a server that keeps all promises is used without a word.
"""

import contextlib
import secrets
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Self

from botocore import exceptions as boto

from moola.errors import ArtifactError, AuthError, DataError, MoolaError, TryAgainError
from moola.store import s3_listing, s3_parts
from moola.store.base import (
    MAX_DOCUMENT_BYTES,
    Dated,
    Head,
    Listing,
    Store,
    TooLargeError,
)
from moola.store.check import ContractCheck
from moola.store.journal import Part, Upload
from moola.store.profile import (
    PROFILE_KEY,
    Check,
    Integrity,
    Profile,
    parse_profile,
    profile_json,
    run_probe,
)
from moola.store.s3_bucket import Bucket
from moola.store.s3_checksums import probe_checksum
from moola.store.s3_client import (
    OPENING_ATTEMPTS,
    Connect,
    DamagedError,
    connector,
    new_client,
    read_body,
    times_of,
)
from moola.store.s3_errors import (
    CHANGED,
    EXISTS,
    LIST_RIGHT,
    boto_errors,
    error_code,
    error_message,
    error_status,
    is_denied,
    is_missing,
    require_fields,
)
from moola.store.s3_settings import open_session, require_no_bucket

READING = Profile(integrity="md5")  # sends and asks for no checksums that a server may not know
INTEGRITIES: tuple[Integrity, ...] = ("crc64nvme", "md5")


class S3Store(Store):
    """Objects under a prefix of a bucket. `is_probed` is whether its profile is known to fit."""

    def __init__(self, bucket: Bucket, connect: Connect, *, is_probed: bool) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._connect = connect
        self._is_probed = is_probed
        self._probe_lock = threading.RLock()  # a probe's result is itself written

        self._has_read = False
        self._hides_missing: bool | None = None

    @property
    def profile(self) -> Profile:
        return self._bucket.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._bucket = replace(self._bucket, profile=profile, client=self._connect(profile))

    @classmethod
    def open(cls, name: str, prefix: str) -> Self:
        """Read the profile with few attempts, so that a wrong address fails soon; then use many."""
        with boto_errors(f"s3://{name}/{prefix}".rstrip("/")):
            session = open_session()
            connect = connector(session)
            client = new_client(session, READING, OPENING_ATTEMPTS)
            require_no_bucket(name, client.meta.endpoint_url)
            bucket = Bucket(name, prefix, client, READING)
            store = cls(bucket, connect, is_probed=False)
            data = store._read_profile()

            store._is_probed = data is not None
            store.profile = READING if data is None else parse_profile(data, store.url)
            return store

    @classmethod
    def open_to_read(cls, name: str) -> Self:
        """A bucket of somebody else's objects: keys are whatever they are, nothing is written."""
        with boto_errors(f"s3://{name}"):
            connect = connector(open_session())
            client = connect(READING)
            require_no_bucket(name, client.meta.endpoint_url)
            bucket = Bucket(name, "", client, READING, checks_keys=False)
            return cls(bucket, connect, is_probed=False)

    def _read_profile(self) -> bytes | None:
        """None if there is none, or if these keys cannot tell."""
        try:
            return self.get_or_none(PROFILE_KEY)
        except AuthError as error:
            cause = error.__cause__
            if isinstance(cause, boto.ClientError) and is_denied(cause):
                return None
            raise

    # -- small objects --

    def get_or_none(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes | None:
        dated = self.get_dated(key, max_bytes)
        return None if dated is None else dated.data

    def get_dated(self, key: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Dated | None:
        def get() -> Dated | None:
            try:
                response = self._bucket.client.get_object(**self._bucket.object(key))
            except boto.ClientError as error:
                if self._is_missing(key, error):
                    return None
                raise

            require_fields(response, "ETag", "ContentLength")
            self._has_read = True
            size = response["ContentLength"]
            if size > max_bytes:
                response["Body"].close()
                raise TooLargeError(f"{key} in {self.url}", size, max_bytes)
            data = read_body(response["Body"])
            return Dated(data, response["ETag"], *times_of(response))

        return self._bucket.repeat(key, get)

    def head(self, key: str) -> Head | None:
        fields = self._bucket.object(key)
        if self.profile.integrity == "crc64nvme":
            fields["ChecksumMode"] = "ENABLED"

        with self._bucket.errors(key):
            try:
                response = self._bucket.client.head_object(**fields)
            except boto.ClientError as error:
                explained = self._explained(key, error)
                if self._is_missing(key, explained):
                    return None
                raise explained from error

            require_fields(response, "ETag", "ContentLength")

        self._has_read = True
        crc = response.get("ChecksumCRC64NVME")
        return Head(response["ContentLength"], response["ETag"], crc)

    def put(self, key: str, data: bytes) -> None:
        self._require_probed()
        fields = {**self._bucket.object(key), **self._bucket.checksum(data)}
        self._bucket.repeat(key, lambda: self._bucket.client.put_object(Body=data, **fields))

    def create(self, key: str, data: bytes) -> bool:
        self._require_probed()
        if self._is_taken(key):
            return False
        bucket = self._bucket
        fields = {**bucket.object(key), **bucket.checksum(data), **bucket.condition()}

        def create() -> bool:
            try:
                bucket.client.put_object(Body=data, **fields)
            except boto.ClientError as error:
                if error_code(error) in EXISTS:
                    return False
                raise
            return True

        return bucket.repeat(key, create)

    def children(self, prefix: str) -> list[str]:
        return s3_listing.children(self._bucket, prefix)

    def list_page(self, prefix: str, more: str | None = None, after: str = "") -> Listing:
        return s3_listing.list_page(self._bucket, prefix, more, after)

    def delete(self, key: str) -> None:
        with self._bucket.errors(key):
            self._bucket.client.delete_object(**self._bucket.object(key))

    def read_range(
        self,
        key: str,
        offset: int,
        length: int,
        etag: str,
    ) -> bytes:
        span = f"bytes={offset}-{offset + length - 1}"
        fields = self._bucket.object(key)

        def read() -> bytes:
            try:
                response = self._bucket.client.get_object(**fields, Range=span, IfMatch=etag)
                data = read_body(response["Body"])
            except boto.ClientError as error:
                if error_code(error) in CHANGED:
                    raise ArtifactError(
                        f"{key} was changed or removed while it was read ({self.url})"
                    ) from error
                raise

            if len(data) != length:
                raise DamagedError(f"{span} is {length} B, got {len(data)} B")
            return data

        return self._bucket.repeat(key, read)

    # -- uploads in parts --

    def begin_parts(self, key: str, size: int) -> str:  # noqa: ARG002
        self._require_probed()
        return s3_parts.begin_parts(self._bucket, key)

    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        return s3_parts.kept_parts(self._bucket, upload)

    def send_part(
        self,
        upload: Upload,
        number: int,
        data: memoryview,
        crc64nvme: str,
    ) -> str:
        return s3_parts.send_part(self._bucket, upload, number, data, crc64nvme)

    def finish_parts(
        self,
        upload: Upload,
        parts: list[Part],
        crc64nvme: str,
    ) -> str | None:
        self._require_probed()
        if self._is_taken(upload.key):
            return None

        try:
            s3_parts.complete_parts(self._bucket, upload, parts, crc64nvme)
        except (ArtifactError, TryAgainError):
            # Another writer was first, or a response was lost: the object itself can tell.
            if not self.exists(upload.key):
                raise
            with contextlib.suppress(MoolaError):
                self.drop_parts(upload)
            return None

        head = self._wait_until_visible(upload.key)
        size_is_right = head.size == sum(part.size for part in parts)
        crc_is_right = head.crc64nvme in (None, crc64nvme)
        return head.etag if size_is_right and crc_is_right else None

    def drop_parts(self, upload: Upload) -> None:
        s3_parts.drop_parts(self._bucket, upload)

    def sweep(self, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        uploads = s3_parts.pending_uploads(self._bucket, older_than_s)
        for upload in [] if dry_run else uploads:
            self.drop_parts(upload)
        return sorted(upload.key for upload in uploads)

    def _is_taken(self, key: str) -> bool:
        """Where the server knows no condition: whether the key exists."""
        return not self.profile.conditional and self.exists(key)

    def _wait_until_visible(self, key: str) -> Head:
        """HEAD of an object just completed; a provider may acknowledge before, or without, it."""
        for delay_s in (0, 1, 2, 4):
            time.sleep(delay_s)
            head = self.head(key)
            if head:
                return head

        raise ArtifactError(
            f"{key} was acknowledged as complete, and is not in the store ({self.url})"
        )

    # -- what is missing, and what is denied --

    def _is_missing(self, key: str, error: boto.ClientError) -> bool:
        """Whether an error means that there is no object; S3 denies it to keys that may not list.

        It is believed where something could be read with these keys, and where an object that
        cannot exist is denied as well.
        """
        if is_missing(error):
            return True
        if not is_denied(error):
            return False
        return LIST_RIGHT in error_message(error) or (self._has_read and self._denies_absent(key))

    def _denies_absent(self, key: str) -> bool:
        if self._hides_missing is None:
            folder = key.rpartition("/")[0]
            name = f"absent-{secrets.token_hex(8)}"
            absent = f"{folder}/{name}" if folder else name
            try:
                self._bucket.client.get_object(**self._bucket.object(absent))
            except boto.ClientError as error:
                self._hides_missing = is_denied(error)
        return bool(self._hides_missing)

    def _explained(self, key: str, error: boto.ClientError) -> boto.ClientError:
        """The error to a GET of the same object: one to a HEAD has no body, hence no words."""
        if is_missing(error):
            return error
        try:
            self._bucket.client.get_object(**self._bucket.object(key), Range="bytes=0-0")
        except boto.ClientError as explained:
            if error_status(explained) == error_status(error):
                return explained
        return error

    # -- the profile --

    def check(self) -> Check:
        """First which checksums the server verifies, then the contract with the best of them."""
        variants = {name: self._variant(integrity=name) for name in INTEGRITIES}
        probes = [
            run_probe(name, partial(probe_checksum, store._bucket))
            for name, store in variants.items()
        ]
        verified = [name for name, probe in zip(INTEGRITIES, probes, strict=True) if probe.ok]
        unverified = [name for name in reversed(INTEGRITIES) if name not in verified]

        candidates = [
            variants[name]._variant(conditional=conditional)
            for conditional in (True, False)
            for name in [*verified, *unverified]
        ]
        return ContractCheck(probes).run(candidates, unverified)

    def save_profile(self, profile: Profile) -> None:
        self._adopt(profile)
        super().save_profile(profile)

    def _variant(self, **changes: object) -> "S3Store":
        """This store with another profile, and a client that is made from it."""
        profile = self.profile.model_copy(update=changes)
        bucket = replace(self._bucket, profile=profile, client=self._connect(profile))
        return S3Store(bucket, self._connect, is_probed=True)

    def _require_probed(self) -> None:
        """Before the first write to a store without a profile: probe it once, and keep the result.

        Raises DataError for a server that does not keep every promise: somebody has to accept that.
        """
        with self._probe_lock:
            if self._is_probed:
                return

            check = self.check()
            profile = check.usable_profile()
            if check.limits:
                limits = "; ".join(check.limits)
                raise DataError(
                    "the store has no profile and does not keep every promise: "
                    f"{limits}. `moola store check --save` accepts that ({self.url})"
                )
            self._adopt(profile)
            if not self.create(PROFILE_KEY, profile_json(profile)):  # another process was first
                self._adopt(parse_profile(self.get_or_none(PROFILE_KEY), self.url))

    def _adopt(self, profile: Profile) -> None:
        self.profile = profile
        self._is_probed = True
        self._has_read = True  # the probes did
