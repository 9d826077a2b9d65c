"""A store in a bucket: `s3://bucket/prefix`, through boto3.

Every write carries an explicit checksum that the server verifies (CRC64NVME, or MD5 where the profile says so), as a
plain header: some servers refuse the trailer boto3 would send of its own accord.
"""

import base64
import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from urllib3.exceptions import HTTPError

from moola.errors import ArtifactError, AuthError, DataError, MoolaError, TryAgainError
from moola.store.base import PROFILE_KEY, Head, Probe, Profile, Store, check_key, parse_profile, probe, require
from moola.store.upload import Part, Upload, crc64

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

TRIES = 4  # of what boto3 does not repeat itself: a damaged body, a body cut short, two writers at once
ATTEMPTS = 10  # of what it does repeat: errors 5xx and lost connections
EXISTS = ("PreconditionFailed", "412")
MISSING = ("NoSuchKey", "NotFound", "404")
NO_UPLOAD = ("NoSuchUpload",)
DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
AT_ONCE = ("ConditionalRequestConflict", "OperationAborted")


class _DamagedError(Exception):
    """Bytes that arrived here do not have the checksum the server sent with them, or did not all arrive."""


class S3Store(Store):
    """Objects under `prefix` of a bucket. `client` is boto3's and is shared by the threads."""

    def __init__(self, bucket: str, prefix: str, client: "S3Client", profile: Profile) -> None:
        self.bucket, self.prefix, self.profile, self._client = bucket, prefix, profile, client
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    @classmethod
    def open(cls, bucket: str, prefix: str) -> Self:
        """Read the profile with few attempts, so that a wrong address shows soon; then a client that is patient."""
        url = f"s3://{bucket}/{prefix}".rstrip("/")
        with _boto_errors(url):
            session = boto3.session.Session()
            first = cls(bucket, prefix, _client(session, Profile(integrity="md5"), attempts=2), Profile())
            profile = parse_profile(first.get_or_none(PROFILE_KEY), url)
            return cls(bucket, prefix, _client(session, profile, attempts=ATTEMPTS), profile)

    def _name(self, key: str) -> dict[str, Any]:
        """The request fields that name the object."""
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{check_key(key)}".lstrip("/")}

    # -- small objects --

    def get_or_none(self, key: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                return _body(self._client.get_object(**self._name(key)))
            except boto.ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise

        return self._repeat(key, get)

    def head(self, key: str) -> Head | None:
        mode: dict[str, Any] = {"ChecksumMode": "ENABLED"} if self.profile.integrity == "crc64nvme" else {}
        with _boto_errors(f"{self.url}/{key}"):
            try:
                reply = self._client.head_object(**self._name(key), **mode)
            except boto.ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        return Head(reply["ContentLength"], reply["ETag"], reply.get("ChecksumCRC64NVME"))

    def put(self, key: str, data: bytes) -> None:
        self._repeat(key, lambda: self._client.put_object(**self._name(key), Body=data, **self._checksum(data)))

    def create(self, key: str, data: bytes) -> bool:
        if not self.profile.conditional and self.exists(key):
            return False
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if self.profile.conditional else {}
        fields = {**self._name(key), **self._checksum(data), **condition}

        def create() -> bool:
            try:
                self._client.put_object(Body=data, **fields)
            except boto.ClientError as error:
                if _code(error) in EXISTS:
                    return False
                raise
            return True

        return self._repeat(key, create)

    def children(self, prefix: str) -> list[str]:
        start = self._name(prefix)["Key"] + "/" if prefix else f"{self.prefix}/".lstrip("/")
        names = []
        with _boto_errors(f"{self.url}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start, Delimiter="/"):
                names += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
                names += [item["Key"] for item in page.get("Contents", [])]
        names = [name.removeprefix(start).rstrip("/") for name in names]
        return sorted(name for name in names if name)  # some servers also list the folder itself

    def delete(self, key: str) -> None:
        with _boto_errors(f"{self.url}/{key}"):
            self._client.delete_object(**self._name(key))

    def read_range(self, key: str, offset: int, length: int, etag: str) -> bytes:
        def read() -> bytes:
            span = f"bytes={offset}-{offset + length - 1}"
            try:
                data = _body(self._client.get_object(**self._name(key), Range=span, IfMatch=etag))
            except boto.ClientError as error:
                if _code(error) in (*MISSING, *EXISTS, "InvalidRange"):
                    raise ArtifactError(f"{key} was changed or removed while it was read ({self.url})") from error
                raise
            if len(data) != length:
                raise _DamagedError(f"{span} is {length} B, got {len(data)} B")
            return data

        return self._repeat(key, read)

    # -- uploads in parts --

    def begin_parts(self, key: str, size: int) -> str:  # noqa: ARG002
        fields: dict[str, Any] = {}
        if self.profile.integrity == "crc64nvme":
            fields = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        with _boto_errors(f"{self.url}/{key}"):
            return self._client.create_multipart_upload(**self._name(key), **fields)["UploadId"]

    def kept_parts(self, upload: Upload) -> dict[int, Part] | None:
        listed: dict[int, tuple[int, str]] = {}
        with _boto_errors(f"{self.url}/{upload.key}"):
            try:
                pages = self._client.get_paginator("list_parts")
                for page in pages.paginate(**self._name(upload.key), UploadId=upload.upload_id):
                    listed |= {item["PartNumber"]: (item["Size"], item["ETag"]) for item in page.get("Parts", [])}
            except boto.ClientError as error:
                if _code(error) in (*NO_UPLOAD, *MISSING):
                    return None
                raise
        return {n: part for n, part in upload.parts.items() if listed.get(n) == (part.size, part.etag)}

    def send_part(self, upload: Upload, number: int, data: memoryview, crc64nvme: str) -> str:
        # boto3 takes no memoryview; the buffer behind it is as good where the part fills it
        body: Any = data.obj if data.nbytes == memoryview(data.obj).nbytes else bytes(data)
        fields = {**self._name(upload.key), **self._checksum(data, crc64nvme)}
        return self._repeat(
            upload.key,
            lambda: self._client.upload_part(UploadId=upload.upload_id, PartNumber=number, Body=body, **fields)["ETag"],
        )

    def finish_parts(self, upload: Upload, parts: list[Part], crc64nvme: str) -> str | None:
        if not self.profile.conditional and self.exists(upload.key):
            return None
        try:
            self._repeat(upload.key, lambda: self._complete(upload, parts, crc64nvme))
        except (ArtifactError, TryAgainError):  # another writer was first, or a reply was lost: the object knows
            if not self.exists(upload.key):
                raise
            with contextlib.suppress(MoolaError):
                self.drop_parts(upload)
            return None
        head = self._appeared(upload.key)
        right = head.size == sum(part.size for part in parts) and head.crc64nvme in (None, crc64nvme)
        return head.etag if right else None

    def _appeared(self, key: str) -> Head:
        """HEAD of an object that was just completed; one provider is known to acknowledge before, or without, it."""
        for delay_s in (0, 1, 2, 4):
            time.sleep(delay_s)
            head = self.head(key)
            if head:
                return head
        raise ArtifactError(f"{key} was acknowledged as complete, and is not in the store ({self.url})")

    def _complete(self, upload: Upload, parts: list[Part], crc64nvme: str) -> None:
        fields: dict[str, Any] = {"IfNoneMatch": "*"} if self.profile.conditional else {}
        names: list[Any] = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        if self.profile.integrity == "crc64nvme":
            size = sum(part.size for part in parts)
            fields |= {"ChecksumCRC64NVME": crc64nvme, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}
            for name, part in zip(names, parts, strict=True):
                name["ChecksumCRC64NVME"] = part.crc64nvme
        self._client.complete_multipart_upload(
            **self._name(upload.key), UploadId=upload.upload_id, MultipartUpload={"Parts": names}, **fields
        )

    def drop_parts(self, upload: Upload) -> None:
        with _boto_errors(f"{self.url}/{upload.key}"):
            self._client.abort_multipart_upload(**self._name(upload.key), UploadId=upload.upload_id)

    def sweep(self, older_than_s: float) -> list[str]:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        start = f"{self.prefix}/".lstrip("/")
        swept = []
        with _boto_errors(self.url):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=start)
            old = [item for page in pages for item in page.get("Uploads", []) if item["Initiated"] <= before]
        for item in old:
            key = item["Key"].removeprefix(start)
            self.drop_parts(Upload(key, item["UploadId"], 0))
            swept.append(key)
        return sorted(swept)

    # -- check --

    def check(self) -> list[Probe]:
        """First which checksums the server verifies; the rest then uses the best of them."""
        integrity = [
            probe("crc64nvme", lambda: self._probe_checksum("crc64nvme")),
            probe("md5", lambda: self._probe_checksum("md5")),
        ]
        profile = self.profile.model_copy(update={"integrity": "crc64nvme" if integrity[0].ok else "md5"})
        return integrity + super(S3Store, S3Store(self.bucket, self.prefix, self._client, profile)).check()

    def _probe_checksum(self, integrity: str) -> str:
        profile = self.profile.model_copy(update={"integrity": integrity})
        store = S3Store(self.bucket, self.prefix, self._client, profile)
        key, data = f"check-{secrets.token_hex(8)}", b"these bytes"
        with _boto_errors(f"{self.url}/{key}"):
            self._client.put_object(**self._name(key), Body=data, **store._checksum(data))
            try:
                self._client.put_object(**self._name(key), Body=data, **store._checksum(b"other bytes"))
                refused = False
            except boto.ClientError as error:
                refused = _status(error) == 400
            self._client.delete_object(**self._name(key))
        require(refused, f"a body that does not have its {integrity} is refused")
        return "a body with a wrong checksum is refused"

    # -- requests --

    def _checksum(self, data: bytes | memoryview, crc64nvme: str | None = None) -> dict[str, Any]:
        """The request field by which the server verifies `data`."""
        if self.profile.integrity == "crc64nvme":
            return {"ChecksumCRC64NVME": crc64nvme or crc64(data)}
        return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

    def _repeat(self, key: str, call: Callable[[], T]) -> T:
        """`call`, again while its bytes arrive damaged on either side or another writer is at the key."""
        for attempt in range(TRIES):
            time.sleep(attempt and 0.1 * 2**attempt)
            with _boto_errors(f"{self.url}/{key}"):
                try:
                    return call()
                except _DamagedError as error:
                    last: Exception = error
                except boto.ClientError as error:
                    if _code(error) not in DAMAGED + AT_ONCE:
                        raise
                    last = error
        raise ArtifactError(f"{key} did not pass undamaged in {TRIES} tries: {last} ({self.url})") from last


def _client(session: boto3.session.Session, profile: Profile, attempts: int) -> "S3Client":
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")  # else missing credentials cost a slow look-up
    config = Config(
        connect_timeout=10,
        read_timeout=profile.read_timeout_s,
        max_pool_connections=profile.workers + 4,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", attempts))},
        request_checksum_calculation="when_required",  # ours are explicit
        response_checksum_validation="when_supported" if profile.integrity == "crc64nvme" else "when_required",
    )
    return session.client("s3", config=config)


def _body(reply: Any) -> bytes:
    try:
        data: bytes = reply["Body"].read()
    except (boto.BotoCoreError, HTTPError, OSError) as error:
        raise _DamagedError(str(error)) from error
    return data


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def _boto_errors(place: str) -> Iterator[None]:
    """boto3's exceptions as ours. Messages carry codes and places, never what was signed."""
    try:
        yield
    except boto.ClientError as error:
        raise _from_reply(error, place) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise AuthError(f"the store needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: {error} ({place})") from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise TryAgainError(f"the store did not answer: {error} ({place})") from error
    except (boto.BotoCoreError, ValueError) as error:
        raise DataError(f"the store's address or settings are not valid: {error} ({place})") from error


def _from_reply(error: boto.ClientError, place: str) -> MoolaError:
    code, status = _code(error), _status(error)
    message = error.response.get("Error", {}).get("Message", "")
    said = f"{code} ({status}) to {error.operation_name}: {message} ({place})"
    if code == "NoSuchBucket":
        return DataError(f"the bucket must exist: {said}")
    if status in (401, 403):
        return AuthError(f"the store refused the credentials: {said}")
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return TryAgainError(f"the store failed: {said}")
    return ArtifactError(f"the store refused: {said}")
