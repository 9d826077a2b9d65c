"""S3's uploads in parts: begin, send, complete, look up and give up."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore import exceptions as boto

from moola.errors import MoolaError
from moola.store.journal import Part, Upload
from moola.store.s3_bucket import Bucket
from moola.store.s3_errors import (
    NO_UPLOAD,
    boto_errors,
    error_code,
    is_denied,
    is_unsupported,
    require_fields,
)

FULL_OBJECT = "FULL_OBJECT"  # a checksum over the whole object, not over those of its parts


def begin_parts(bucket: Bucket, key: str) -> str:
    """Open an upload; its id."""
    fields = bucket.object(key)
    if bucket.profile.integrity == "crc64nvme":
        fields |= {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": FULL_OBJECT}

    with bucket.errors(key):
        response = bucket.client.create_multipart_upload(**fields)
        require_fields(response, "UploadId")
        return response["UploadId"]


def kept_parts(bucket: Bucket, upload: Upload) -> dict[int, Part] | None:
    """Those of `upload.parts` that the store still has; None if the upload cannot be continued.

    So it is where the store does not know it, or does not tell: that one is given up.
    """
    listed: dict[int, tuple[int, str]] = {}

    with bucket.errors(upload.key):
        try:
            pages = bucket.client.get_paginator("list_parts")
            for page in pages.paginate(**bucket.upload(upload)):
                for item in page.get("Parts", []):
                    listed[item["PartNumber"]] = (item["Size"], item["ETag"])
        except boto.ClientError as error:
            if is_unsupported(error) or is_denied(error):
                with contextlib.suppress(MoolaError):
                    drop_parts(bucket, upload)
                return None
            if error_code(error) in NO_UPLOAD:
                return None
            raise

    return {
        number: part
        for number, part in upload.parts.items()
        if listed.get(number) == (part.size, part.etag)
    }


def send_part(
    bucket: Bucket,
    upload: Upload,
    number: int,
    data: memoryview,
    crc64nvme: str,
) -> str:
    """Send one part; its etag."""
    # boto3 takes no memoryview; the buffer behind it will do where the part fills it.
    fills_buffer = data.nbytes == memoryview(data.obj).nbytes
    body: Any = data.obj if fills_buffer else bytes(data)
    fields = {**bucket.upload(upload), **bucket.checksum(data, crc64nvme)}

    response = bucket.repeat(
        upload.key,
        lambda: bucket.client.upload_part(PartNumber=number, Body=body, **fields),
    )
    require_fields(response, "ETag")
    return response["ETag"]


def complete_parts(
    bucket: Bucket,
    upload: Upload,
    parts: list[Part],
    crc64nvme: str,
) -> None:
    """Make the object visible unless the key exists, where the server knows conditions."""
    fields = {**bucket.upload(upload), **bucket.condition()}
    items: list[Any] = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]

    if bucket.profile.integrity == "crc64nvme":
        fields |= {
            "ChecksumCRC64NVME": crc64nvme,
            "ChecksumType": FULL_OBJECT,
            "MpuObjectSize": sum(part.size for part in parts),
        }
        for item, part in zip(items, parts, strict=True):
            item["ChecksumCRC64NVME"] = part.crc64nvme

    def complete() -> None:
        bucket.client.complete_multipart_upload(MultipartUpload={"Parts": items}, **fields)

    bucket.repeat(upload.key, complete)


def drop_parts(bucket: Bucket, upload: Upload) -> None:
    """Give up an upload."""
    with bucket.errors(upload.key):
        bucket.client.abort_multipart_upload(**bucket.upload(upload))


def pending_uploads(bucket: Bucket, older_than_s: float) -> list[Upload]:
    """Unfinished uploads begun longer ago than this."""
    newest = datetime.now(UTC) - timedelta(seconds=older_than_s)
    uploads = []

    with boto_errors(bucket.url):
        pages = bucket.client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=bucket.name, Prefix=bucket.top):
            for item in page.get("Uploads", []):
                if item["Initiated"] <= newest:
                    key = item["Key"].removeprefix(bucket.top)
                    uploads.append(Upload(key, item["UploadId"], part_size=0))
    return uploads
