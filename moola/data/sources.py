"""A local file of bars, whatever its kind, as a source of blocks."""

from pathlib import Path

from moola.data.blocks import Source, readable
from moola.data.containers import open_container
from moola.data.text_source import open_text
from moola.data.typed_source import open_typed
from moola.specs import LayoutConfig


def open_source(path: Path, config: LayoutConfig, timezone: str | None) -> Source:
    """A local file of bars. Raises DataError for what is no such file, with the way out."""
    container = open_container(path)

    with readable(path):
        if container.kind == "text":
            return open_text(container, config, timezone)
        return open_typed(container, config, timezone)
