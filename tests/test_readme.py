"""README's commands are ones that the command line takes, and its files are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from deploy.launch import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"(?:\.venv/bin/)?python (deploy|benchmarks)/(\w+)\.py([^\n|`)]*)")


def parse(arguments: list[str]) -> None:
    """Parse as the command line would, without doing anything. Raises click's UsageError."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("launch.py", arguments)


def launches() -> list[str]:
    found = {
        line.split("#")[0].split("&&")[0].strip() for folder, name, line in PYTHON.findall(README) if name == "launch"
    }
    return sorted(found - {""})


@pytest.mark.parametrize("command", launches())
def test_every_launch_command_in_readme_is_one_that_is_taken(command: str) -> None:
    parse(shlex.split(command))


def test_a_command_that_is_not_taken_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["precompute", "--on-the-moon"])
    with pytest.raises(KeyError):
        parse(["launch-a-rocket"])


def test_readme_has_more_than_a_few_commands() -> None:
    assert len(launches()) > 15


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:moola|jobs|deploy|tests|benchmarks|\.github)/[\w./-]+)`", README)))
)
def test_every_file_that_readme_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()
