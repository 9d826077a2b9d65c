"""The command line itself: choices, completion in three shells, and what goes to the terminal."""

import errno
import gc
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from rich.table import Table

from moola.cli import app as command_line
from moola.cli.jobs import BadBars, WindowStorage
from moola.cli.options import LayoutName, spec_overrides
from moola.cli.setup import Job
from moola.errors import AuthError
from moola.launch import Backend
from moola.launch.console import print_table, print_text
from moola.launch.settings import Settings
from moola.specs import JOBS, LayoutConfig, PrecomputeSpec, parse_spec, with_overrides
from tests.test_launch import Launcher

BIN = Path(sys.executable).parent

# Each installs completion as a person would, and then asks for what `moola pre<TAB>` offers. Where
# the real completion functions need a terminal, a stand-in prints what it is given.
COMPLETE = {
    "bash": """
        moola --install-completion
        source ~/.bashrc
        COMP_WORDS=(moola pre)
        COMP_CWORD=1
        _moola_completion moola
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        moola --install-completion
        source ~/.zshrc
        _arguments() { print -r -- "$@" }
        words=(moola pre)
        CURRENT=2
        _moola  # zsh loads the function at the first TAB and calls it from the second on
        $_comps[moola]
    """,
    "fish": """
        moola --install-completion
        source ~/.config/fish/completions/moola.fish
        complete -C "moola pre"
    """,
}


@pytest.mark.parametrize("shell", COMPLETE)
def test_completion_as_installed_completes_a_command(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    assert (BIN / "moola").exists(), "moola is not installed beside this Python: pip install -e ."
    script = tmp_path / "complete"
    script.write_text(COMPLETE[shell])
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "TERM": "dumb",
    }
    completed = subprocess.run(
        [shell, str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert f"{shell} completion installed" in completed.stdout, completed
    offered = completed.stdout.splitlines()[2:]
    assert "precompute" in " ".join(offered), completed
    assert "predict" in " ".join(offered)
    assert "train" not in " ".join(offered).replace("trained", "")


def test_the_choices_of_the_options_are_those_of_the_specs_and_settings() -> None:
    """They stand twice: the specs take too long to import for --help."""
    fields = PrecomputeSpec.model_fields
    assert BadBars == fields["on_bad_bars"].annotation
    assert WindowStorage == fields["windows"].annotation
    assert LayoutName == LayoutConfig.model_fields["name"].annotation
    assert Backend == Settings.model_fields["on"].annotation
    assert typing.get_args(Job) == tuple(JOBS)


def test_help_shows_the_choices(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    precompute = launch("precompute", "--help")
    assert "Usage: moola precompute" in precompute  # not launch.py, by whose path it was run
    assert "--on <local|docker|ray|runpod>" in precompute
    assert "--windows <stored|virtual>" in precompute
    assert "--on-bad-bars <fail|drop>" in precompute
    assert "<precompute|train>" in launch("spec", "--help")


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A path may look like an emoji's name or like markup, and is not broken into lines."""
    text = "bars.csv:100:3 [red] " + "x" * 200
    print_text(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_no_cell_of_a_table_turns_into_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("place")
    table.add_row("bars.csv:100:3")
    print_table(table)
    assert "bars.csv:100:3" in capsys.readouterr().out


def test_a_flag_wins_over_the_same_field_by_set() -> None:
    pairs = ["windows=stored", "features.zigzag_k=1.5", "encoder=null"]
    overrides = spec_overrides(pairs, {"windows": "virtual", "bars": None})
    expected = {"windows": "virtual", "features.zigzag_k": 1.5, "encoder": None}
    assert overrides == expected


def test_a_time_format_is_taken_as_it_is() -> None:
    """YAML has no plain value that begins with %, and messages give commands with such a value."""
    pairs = ["labels.time_format=%m/%d/%Y %H:%M"]
    assert spec_overrides(pairs, {}) == {"labels.time_format": "%m/%d/%Y %H:%M"}


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("time_format", "%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M"),
        ("time_format", "'%m/%d/%Y %H:%M'", "%m/%d/%Y %H:%M"),
        ("decimal", ",", ","),
        ("separator", "|", "|"),
        ("separator", "tab", "\t"),
        ("open", "2", "2"),
        ("time", "Date+Time", "Date+Time"),
        ("volume", "no", "no"),
        ("header", "false", False),
        ("price_scale", "1e9", 1e9),
        ("symbol", "null", None),
    ],
)
def test_the_fields_of_a_layout_are_set_as_they_are_written(
    field: str, text: str, value: object
) -> None:
    overrides = spec_overrides([f"layout.{field}={text}"], {})
    spec = parse_spec(PrecomputeSpec, with_overrides({}, overrides), place="here")
    assert getattr(spec.layout, field) == value


def test_a_time_format_of_labels_is_set_as_it_is_written() -> None:
    overrides = spec_overrides(["labels.time_format=%m/%d/%Y %H:%M"], {})
    assert overrides == {"labels.time_format": "%m/%d/%Y %H:%M"}


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (OSError(errno.EACCES, "not yours"), 3),
        (AuthError("key refused"), 6),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    exit_code: int,
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(SystemExit) as ending:
        command_line.main()
    assert ending.value.code == exit_code
    assert capsys.readouterr().err == f"error: {error}\n"
