"""One way out: what is printed, logged or stored holds no control character and no secret."""

import ast
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from moola.cli.tables import RunRow, findings_table, probes_table, runs_table
from moola.errors import AuthError, TryAgainError
from moola.launch.console import SafeConsole, print_error, print_json, print_table, print_text
from moola.launch.doctor import Finding
from moola.runs.attempt import outcome_of
from moola.runs.logs import LogChunks
from moola.runs.redaction import RedactingFilter, redacted, require_clean_keys, safe_output
from moola.store import Probe, open_store
from moola.text import printable, quoted, shortened

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = (
    "[/INST]\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\"
    "\x9b2J\x08\x7f\u202eabc\u2066\r\x00"
)
FORBIDDEN = "\x1b\x9b\x08\x7f\u202e\u2066\r\x00\x07"
SECRET = "sEcret/Key+with=sign"


def assert_clean(text: str) -> None:
    assert not set(FORBIDDEN) & set(text), ascii(text)


# --- control characters and markup ----------------------------------------------------------------


def test_text_loses_control_characters_and_keeps_all_else() -> None:
    assert printable(HOSTILE) == "[/INST]redlinkabc"
    assert printable("a\tb\nc ± 日本 é") == "a\tb\nc ± 日本 é"
    assert printable("file-\udcff") == "file-\ufffd"


@pytest.mark.parametrize("text", ["\x1b]0;no end of a title", "\x1b", "\x1b[", "\x1b\x1b[31m[31m"])
def test_a_sequence_that_is_not_ended_hides_nothing_behind_it(text: str) -> None:
    assert_clean(printable(text + "\nshown"))
    assert printable(text + "\nshown").endswith("\nshown")


def test_a_quoted_value_is_one_line_of_200_characters() -> None:
    for value in ("x" * 10_000, "a\nb" * 500, ["[red]"] * 900, 10**5000, HOSTILE, {"a": 10**5000}):
        assert len(quoted(value)) <= 200
        assert "\n" not in quoted(value)
        assert_clean(quoted(value))
    assert quoted("NQ") == "'NQ'"
    assert shortened("a\nb") == "a b"


def test_whatever_is_printed_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    print_table(table)
    print_text(HOSTILE)
    print_error(HOSTILE)
    print_json({HOSTILE: HOSTILE})
    printed = capsys.readouterr()
    assert "[/INST]" in printed.out
    assert_clean(printed.out + printed.err)


def test_a_console_with_colours_styles_nothing_that_a_text_asks_for() -> None:
    stream = io.StringIO()
    console = SafeConsole(stream)
    console._force_terminal = True
    print_text("[red]x[/red] " + HOSTILE, console)
    assert stream.getvalue() == "[red]x[/red] [/INST]redlinkabc\n"


def test_a_label_that_looks_like_markup_ends_no_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(runs_table([RunRow("20261122T231500Z-9f86d081", "train-1", "failed", HOSTILE)]))
    print_table(probes_table("s3://[/x]", [Probe("[/p]", True, "[/INST]")]))
    print_table(findings_table([Finding("[/f]", False, "[/INST]")]))
    printed = capsys.readouterr().out
    assert printed.count("[/INST]") == 3
    assert_clean(printed)


def test_at_80_columns_ids_and_states_are_whole_whatever_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        RunRow("20261122T231500Z-9f86d081", "precompute-0123456789ab-abcd", "committed", ""),
        RunRow("20261122T231500Z-9f86d082", "train-0123456789ab", "silent for 9999 s", "x" * 999),
        RunRow("-", "train-ffffffffffff", "damaged", "many lines\n" * 99),
    ]
    print_table(runs_table(rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    for row in rows:
        assert any(row.run_id in line and row.state in line for line in lines)
    assert len(lines) <= 4 + len(rows) + 2  # a row is one line


def ways_out(path: Path) -> set[str]:
    """Calls of a file that print past the console."""
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    methods = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
    past = {"print", "Console"} & names
    return past | {
        name for name in methods if re.search(r"echo$|secho$|console\.print$|std\w+\.write$", name)
    }


def test_there_is_one_way_out_of_the_launcher() -> None:
    for room in ("launch", "cli"):
        for path in (ROOT / "moola" / room).rglob("*.py"):
            if path.name != "console.py":
                assert ways_out(path) == set(), path


def test_a_second_way_out_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("print(1)\ntyper.echo(2)\nself.console.print(3)\nConsole()\nprint_text(4)\n")
    assert ways_out(path) == {"print", "Console", "typer.echo", "self.console.print"}


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "RUNPOD_API_KEY",
        "RUNPOD_TERMINATE_API_KEY",
        "MOOLA_SIGNING_KEY",
    ],
)
@pytest.mark.parametrize("stray", ["", "\r", "\n", "\r\n", " "])
def test_the_value_of_a_secret_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, stray: str
) -> None:
    monkeypatch.setenv(name, stray + SECRET + stray)
    for text in (
        SECRET,
        SECRET + stray,
        repr(SECRET + stray),
        "sEcret%2FKey%2Bwith%3Dsign",
        "sEcret/Key%2Bwith%3Dsign",
        f"HTTP header {(SECRET + stray).encode()!r}",
        "sEcret\x1b[0m/Key+with=sign",
    ):
        assert "Key" not in redacted(printable(text)), text
    assert redacted("nothing secret") == "nothing secret"


def test_a_secret_that_a_line_break_cuts_is_hidden_in_both_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "firsthalf\r\nsecondhalf")
    assert redacted("x firsthalf y\nz secondhalf") == "x *** y\nz ***"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_password_of_an_endpoint_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "https://user:pass%2Fword@s3.example.com")
    for text in ("pass/word", "pass%2Fword", "could not connect to https://user:pass%2Fword@s3"):
        assert "word" not in redacted(text)


def test_no_url_shows_a_password() -> None:
    text = "https://u:p@h/x and git@github.com, s3://bucket/a:b@c"
    assert redacted(text) == "https://***@h/x and git@github.com, s3://bucket/a:b@c"


def test_whatever_python_prints_is_safe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", SECRET)
    before = sys.stdout
    with safe_output():
        print(HOSTILE, SECRET)
        print(HOSTILE, SECRET, file=sys.stderr)
    assert sys.stdout is before
    printed = capsys.readouterr()
    assert "[/INST]redlinkabc ***" in printed.out
    assert SECRET not in printed.out + printed.err
    assert_clean(printed.out + printed.err)


def test_a_log_record_is_made_safe_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    logger = logging.Logger("some library")
    logger.addHandler(handler)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logger.exception("signing with %s %s", SECRET, HOSTILE)
    assert "signing with *** [/INST]" in stream.getvalue()
    assert "ValueError: ***" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_neither_log_chunks_nor_a_stored_reason_hold_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\r")
    store = open_store(f"file://{tmp_path}")
    chunks = LogChunks(store, "train-1", "a")
    logger = logging.Logger("moola")
    logger.addHandler(chunks)
    logger.error("the store refused %r", f"{SECRET}\r")
    chunks.write()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert b"the store refused" in written
    assert SECRET.encode() not in written
    for error in (TryAgainError(f"token {SECRET}"), KeyError(SECRET)):
        assert SECRET not in outcome_of(error).reason


@pytest.mark.parametrize(
    "name", ["RUNPOD_API_KEY", "RUNPOD_TERMINATE_API_KEY", "MOOLA_SIGNING_KEY"]
)
@pytest.mark.parametrize("value", ["two words", "a\tb", "rpa_\x1b[0m", "k\u00e9y", "a\r\nb"])
def test_a_key_with_a_blank_or_a_control_character_is_refused_by_name(
    name: str, value: str
) -> None:
    with pytest.raises(AuthError, match=name) as refusal:
        require_clean_keys({name: value})
    assert value not in str(refusal.value)
    require_clean_keys({name: " rpa_0123456789\n"})


def test_a_command_refuses_such_a_key_at_its_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moola", "list", "--store", f"file://{tmp_path}/store"],
        env={**os.environ, "RUNPOD_TERMINATE_API_KEY": "key with blanks"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6
    assert done.stderr.startswith("error: RUNPOD_TERMINATE_API_KEY has a blank")
    assert "key with" not in done.stderr


def test_a_usage_error_prints_no_control_character(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moola", "spec", "train", "--set", "\x1b[31mx\x1b]0;t\x07"],
        env={**os.environ, "FORCE_COLOR": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert_clean(done.stdout + done.stderr)
