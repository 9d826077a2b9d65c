"""The command that would read a file, for the end of a message."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from moola.specs import LayoutConfig


@dataclass(frozen=True)
class Given:
    """What the user has said already: `where` the bars are, and how they are to be read."""

    where: str
    layout: LayoutConfig
    timezone: str | None


_GIVEN: ContextVar[Given | None] = ContextVar("given", default=None)


@contextmanager
def given(where: str, layout: LayoutConfig, timezone: str | None) -> Iterator[None]:
    """While bars are read: `command` repeats these, and names the bars as the user does."""
    token = _GIVEN.set(Given(where, layout, timezone))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def command(
    path: Path | str,
    *,
    layout: str | None = None,
    symbol: str | None = None,
    timezone: str | None = None,
    **settings: object,
) -> str:
    """`moola precompute --bars FILE ...`, with what was given and with these on top; `settings` are
    fields of the spec's group `layout`.
    """
    said = _GIVEN.get()

    if said is not None:
        stated = said.layout.model_dump(exclude_defaults=True)
        layout = layout or stated.pop("name", None)
        symbol = symbol or stated.pop("instrument", None)
        timezone = timezone or said.timezone
        path = said.where
        settings = {**stated, **settings}
    return _words(path, layout, symbol, timezone, settings)


def _words(
    path: Path | str,
    layout: str | None,
    symbol: str | None,
    timezone: str | None,
    settings: dict[str, object],
) -> str:
    words = ["moola", "precompute", "--bars", str(path)]

    if layout is not None:
        words += ["--layout", layout]
    if symbol is not None:
        words += ["--symbol", symbol]
    if timezone is not None:
        words += ["--timezone", timezone]

    for field, value in settings.items():
        if field not in ("name", "instrument"):
            words += ["--set", f"layout.{field}={_yaml(value)}"]

    return " ".join(shlex.quote(word) for word in words)


def _yaml(value: object) -> object:
    """As --set reads it."""
    return str(value).lower() if isinstance(value, bool) else value
