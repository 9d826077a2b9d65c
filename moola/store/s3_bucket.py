"""A bucket and a prefix of it: the fields of requests, and which of them are made again."""

import base64
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from botocore import exceptions as boto

from moola.errors import ArtifactError
from moola.store.base import check_key
from moola.store.checksums import crc64
from moola.store.journal import Upload
from moola.store.profile import Profile
from moola.store.s3_client import DamagedError
from moola.store.s3_errors import DAMAGED, SIMULTANEOUS, boto_errors, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
Fields = dict[str, Any]  # of a request: boto3 types each operation's on its own

# boto3 repeats errors 5xx and lost connections; we repeat damaged or truncated bodies and
# simultaneous writers, which it does not.
TRIES = 4


@dataclass(frozen=True)
class Bucket:
    """Objects under `prefix` of a bucket, as `profile` says; threads may share the client."""

    name: str
    prefix: str
    client: "S3Client"
    profile: Profile
    checks_keys: bool = True  # ours are relative paths; other people's may be anything

    @property
    def url(self) -> str:
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    @property
    def top(self) -> str:
        """What the keys of all objects begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    def object(self, key: str) -> Fields:
        """The request fields that name the object."""
        checked = check_key(key) if self.checks_keys else key
        return {"Bucket": self.name, "Key": self.top + checked}

    def upload(self, upload: Upload) -> Fields:
        """The request fields that name the upload."""
        return {**self.object(upload.key), "UploadId": upload.upload_id}

    def condition(self) -> Fields:
        """The request field by which the server refuses to replace an object."""
        return {"IfNoneMatch": "*"} if self.profile.conditional else {}

    def checksum(self, data: bytes | memoryview, crc64nvme: str | None = None) -> Fields:
        """The request field by which the server verifies `data`."""
        if self.profile.integrity == "crc64nvme":
            return {"ChecksumCRC64NVME": crc64nvme or crc64(data)}

        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {"ContentMD5": base64.b64encode(digest).decode()}

    def errors(self, key: str) -> contextlib.AbstractContextManager[None]:
        """boto3's exceptions as ours, with the object's place."""
        return boto_errors(f"{self.url}/{key}")

    def repeat(self, key: str, call: Callable[[], T]) -> T:
        """`call`, again while bytes are damaged on the way or another writer is at the key."""
        last: Exception | None = None

        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.1 * 2**attempt)

            with self.errors(key):
                try:
                    return call()
                except DamagedError as error:
                    last = error
                except boto.ClientError as error:
                    code = error_code(error)
                    may_pass = code in SIMULTANEOUS and attempt + 1 < TRIES
                    if code not in DAMAGED and not may_pass:
                        raise
                    last = error

        raise ArtifactError(
            f"{key} did not pass undamaged in {TRIES} tries: {last} ({self.url})"
        ) from last
