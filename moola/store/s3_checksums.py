"""Whether a server verifies the checksum that is sent with a body."""

import contextlib
import secrets

from botocore import exceptions as boto

from moola.store.profile import require
from moola.store.s3_bucket import Bucket
from moola.store.s3_errors import error_status


def probe_checksum(bucket: Bucket) -> str:
    """Send a right and a wrong checksum of the profile's kind; what holds. Raises MoolaError."""
    key = f"check-{secrets.token_hex(8)}"
    fields = bucket.object(key)
    data = b"these bytes"

    with bucket.errors(key):
        bucket.client.put_object(**fields, Body=data, **bucket.checksum(data))
        try:
            bucket.client.put_object(**fields, Body=data, **bucket.checksum(b"other bytes"))
            is_refused = False
        except boto.ClientError as error:
            is_refused = error_status(error) == 400
        with contextlib.suppress(boto.ClientError):
            bucket.client.delete_object(**fields)

    require(is_refused, f"a body that does not have its {bucket.profile.integrity} is refused")
    return "a body with a wrong checksum is refused"
