"""--json: each command that shows prints one document, whose fields are on the page, and no more.

The page is the oracle: its sections are the commands, its tables their fields.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moola.cli import app as command_line
from moola.runs.about import add_about, new_about
from moola.store import open_store
from tests.feature_set import random_bars

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pages" / "json.md"
FIELD = re.compile(r"^\| `([\w.\[\]]+)` \|", re.MULTILINE)

Show = Callable[..., str]


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Show]:
    """Runs a command with a store that holds a committed precompute run -> standard output."""
    folder = tmp_path_factory.mktemp("json")
    random_bars().to_parquet(folder / "bars.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MOOLA_STORE", f"file://{folder}/store")
        patch.setenv("MOOLA_WORK", str(folder / "work"))

        def run(*arguments: str) -> str:
            import contextlib
            import io

            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                ended = command_line.run(arguments)
            assert ended == 0, arguments
            return out.getvalue()

        run("precompute", "--bars", "bars.parquet", "--windows", "virtual")
        store = open_store(f"file://{folder}/store")
        (run_id,) = store.children("runs")
        add_about(store, run_id, new_about("a name", ["tag"]))
        yield run


def run_id_of(show: Show) -> str:
    return str(json.loads(show("list", "--json"))["runs"][0]["run"])


def fields_on_page(command: str) -> set[str]:
    sections = PAGE.read_text().split("\n## ")[1:]
    section = next(text for text in sections if text.startswith(f"`moola {command}"))
    return set(FIELD.findall(section))


def fields_of(document: object, prefix: str = "", depth: int = 2) -> set[str]:
    """The names of a document's fields, to this depth; of a list those of its items."""
    if isinstance(document, list):
        return set().union(*(fields_of(item, f"{prefix}[]", depth) for item in document))
    if not isinstance(document, dict) or depth == 0:
        return set()
    names = set()
    for name, value in document.items():
        full = f"{prefix}.{name}" if prefix else name
        names |= {full} | (fields_of(value, full, depth - 1) if isinstance(value, list) else set())
    return names


COMMANDS = {
    "list": ["list", "--json"],
    "status": ["status", "RUN", "--json"],
    "doctor": ["doctor", "--json"],
    "spec": ["spec", "train", "--json"],
    "verify": ["verify", "RUN", "--json"],
    "bars": ["bars", "bars.parquet", "--json"],
    "store check": ["store", "check", "--json"],
    "store sweep": ["store", "sweep", "--json"],
    "gc": ["gc", "--keep-last", "1", "--dry-run", "--json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_document_is_all_that_is_printed_and_its_fields_are_on_the_page(
    show: Show, command: str
) -> None:
    run_id = run_id_of(show)
    words = [run_id if word == "RUN" else word for word in COMMANDS[command]]
    document = json.loads(show(*words))  # one document, and nothing after it
    assert isinstance(document, dict)
    undocumented = fields_of(document) - fields_on_page(command)
    if command != "bars":  # whose page of its own has what layouts add
        assert undocumented == set()
    assert fields_on_page(command) & fields_of(document)


def test_each_line_of_a_log_is_a_document(show: Show) -> None:
    lines = show("logs", run_id_of(show), "--json").splitlines()
    assert len(lines) > 3
    for line in lines:
        assert set(json.loads(line)) == {"seq", "time", "level", "message"}
    assert fields_on_page("logs") == {"seq", "time", "level", "message"}


def test_a_field_that_the_page_lacks_is_noticed() -> None:
    document = {"run": "x", "runs": [{"a": 1, "b": {"c": 2}}]}
    assert fields_of(document) == {"run", "runs", "runs[].a", "runs[].b"}
