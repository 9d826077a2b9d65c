"""The Date header of an HTTP response: the server's own time."""

from datetime import UTC
from email.utils import parsedate_to_datetime


def http_date_s(text: str | None) -> float | None:
    """A Date header in Unix seconds; None without a readable one."""
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return date.timestamp()
