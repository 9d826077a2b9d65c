"""What may leave the process: text without control characters, and without our secrets' values.

Known are the values of the variables below, in the forms in which a message may hold them, the
password of any URL, and what a command was told that is a secret.
"""

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO, cast
from urllib.parse import quote, quote_plus, unquote

from moola.errors import AuthError
from moola.text import printable

NOTIFY = "MOOLA_NOTIFY"  # addresses for notices, with keys in them
TRACKING = "MOOLA_TRACKING__MLFLOW"  # an address, perhaps with a password in it
STUDY_STORAGE = "MOOLA_STUDY_STORAGE"  # likewise, of a database
SECRET_VARIABLES = (
    NOTIFY,
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "RUNPOD_API_KEY",
    "RUNPOD_TERMINATE_API_KEY",
    "MOOLA_SIGNING_KEY",
)
ENDPOINT_VARIABLES = (
    TRACKING,
    STUDY_STORAGE,
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
)
CHECKED_VARIABLES = ("RUNPOD_API_KEY", "RUNPOD_TERMINATE_API_KEY", "MOOLA_SIGNING_KEY")

SHORTEST_SECRET = 6  # characters; a shorter value is a word that any text may hold
REDACTED = "***"
SHORTEST_KEY = 8  # characters of a part of an address that counts as a key: with a digit in it
ADDRESS_PARTS = re.compile(r"[/?&=:@,;]+")
URL_PASSWORD = re.compile(r"(?<=://)[^\s/]*:[^\s/]*(?=@)")  # user:password
KEY_CHARACTERS = re.compile(r"[!-~]+")

_kept: set[str] = set()  # secrets of this process that no variable holds


def require_clean_keys(environment: Mapping[str, str]) -> None:
    """Raises AuthError for a key with a blank or a control character in it, by the key's name."""
    for name in CHECKED_VARIABLES:
        value = environment.get(name, "").strip()
        if value and not KEY_CHARACTERS.fullmatch(value):
            raise AuthError(f"{name} has a blank or a character that is not ASCII in it")


def keep_secret(value: str) -> None:
    """From now on this value is not shown."""
    _kept.add(value)


def safe_text(text: str) -> str:
    """The text as it may be shown, logged or stored."""
    return redacted(printable(redacted(text)))


def redacted(text: str) -> str:
    """The text with *** in the place of secrets."""
    text = URL_PASSWORD.sub(REDACTED, text) if "@" in text else text
    values = (*_values(os.environ, SECRET_VARIABLES), *sorted(_kept))
    pattern = _pattern_of(values, _passwords(os.environ))
    return pattern.sub(REDACTED, text) if pattern else text


def _values(environment: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(value for name in names if (value := environment.get(name)))


def _passwords(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Those in the URLs of endpoints and in the addresses for notices."""
    passwords = []
    for url in _values(environment, ENDPOINT_VARIABLES):
        authority = url.partition("://")[2].split("/")[0]
        user_and_password = authority.rpartition("@")[0]
        passwords.append(user_and_password.partition(":")[2])
    for address in environment.get(NOTIFY, "").split():
        passwords += _keys_of(address)
    return tuple(filter(None, passwords))


def _keys_of(address: str) -> list[str]:
    """The password in an address for notices, and what may be keys: services have them anywhere."""
    authority, _, path = address.partition("://")[2].partition("/")
    user, _, host = authority.rpartition("@")
    places = [user, path] if "." in host else [user, host, path]
    parts = [part for place in places for part in ADDRESS_PARTS.split(place)]
    keys = [part for part in parts if len(part) >= SHORTEST_KEY and re.search(r"\d", part)]
    return [user.partition(":")[2], *keys]


@functools.lru_cache(maxsize=8)
def _pattern_of(values: tuple[str, ...], passwords: tuple[str, ...]) -> re.Pattern[str] | None:
    """What any of the values looks like in a text; None without a value."""
    secrets = {*values, *passwords, *map(unquote, passwords)}
    pieces = {piece for secret in secrets for piece in _pieces(secret)}
    forms = {form for piece in pieces for form in _forms(piece)}
    long_enough = [form for form in forms if len(form) >= SHORTEST_SECRET]
    if not long_enough:
        return None
    longest_first = sorted(long_enough, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _pieces(secret: str) -> set[str]:
    """A secret, and what a stray blank or line break may leave of it."""
    return {secret, secret.strip(), printable(secret), *secret.split()}


def _forms(value: str) -> set[str]:
    """A value as it is, in a URL, in JSON and in a repr."""
    in_urls = {quote(value, safe=""), quote(value), quote_plus(value)}
    lower_case = {re.sub("%..", lambda code: code[0].lower(), form) for form in in_urls}
    return {value, *in_urls, *lower_case, json.dumps(value)[1:-1], repr(value)[1:-1]}


class RedactingFilter(logging.Filter):
    """For a handler: makes records safe that it is to write."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = safe_text(record.getMessage())
        record.args = None
        if record.exc_info:
            formatter = logging.Formatter()
            record.exc_text = safe_text(formatter.formatException(record.exc_info))
        return True


class SafeStream:
    """A text stream in the place of another one: what is written to it is made safe."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream  # for what is safe already, such as the colours of a console

    def write(self, text: str) -> int:
        self.stream.write(safe_text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Whatever is printed while the block runs is made safe: by us, a library or Python itself."""
    streams = (sys.stdout, sys.stderr)
    sys.stdout = cast(TextIO, SafeStream(streams[0]))
    sys.stderr = cast(TextIO, SafeStream(streams[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def inner_stream(stream: TextIO) -> TextIO:
    """The stream behind a safe one."""
    return stream.stream if isinstance(stream, SafeStream) else stream
