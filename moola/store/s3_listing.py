"""Listings of a bucket: names one level down, and pages of all that is below."""

import time

from moola.store.base import Entry, Listing
from moola.store.s3_bucket import Bucket, Fields
from moola.store.s3_client import times_of

PAGE_KEYS = 1000  # S3 gives no more at a time


def children(bucket: Bucket, prefix: str) -> list[str]:
    """See `Store.children`."""
    folder = bucket.object(prefix)["Key"] + "/" if prefix else bucket.top
    names = set()

    with bucket.errors(prefix):
        pages = bucket.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket.name, Prefix=folder, Delimiter="/"):
            keys = [item["Prefix"] for item in page.get("CommonPrefixes", [])]
            keys += [item["Key"] for item in page.get("Contents", [])]
            names |= {key.removeprefix(folder).rstrip("/") for key in keys}

    names.discard("")  # some servers also list the folder itself
    return sorted(names)


def list_page(bucket: Bucket, prefix: str, more: str | None, after: str) -> Listing:
    """See `Store.list_page`."""
    fields: Fields = {
        "Bucket": bucket.name,
        "Prefix": bucket.top + prefix,
        "MaxKeys": PAGE_KEYS,
    }
    if more is not None:
        fields["ContinuationToken"] = more
    elif after:
        fields["StartAfter"] = bucket.top + after

    with bucket.errors(prefix):
        response = bucket.client.list_objects_v2(**fields)

    entries = []
    for item in response.get("Contents", []):
        key = item["Key"].removeprefix(bucket.top)
        entries.append(Entry(key, item["LastModified"].timestamp()))
    _, now_s = times_of(response)
    next_page = response.get("NextContinuationToken")
    return Listing(tuple(entries), next_page, time.time() if now_s is None else now_s)
