"""README, CONTRIBUTING and the pages of docs/: commands are taken, files and links exist.

Each check is a function that lists the faults of a text, so that its twin can hand it a wrong one.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import typer
import yaml
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from moola import errors
from moola.cli.app import app
from moola.cli.options import one_or_all, spec_overrides
from moola.data.bars import read_bars
from moola.data.synthetic import make_market
from moola.errors import DataError, MoolaError
from moola.jobs.prepare import shipped_spec
from moola.runs.protocol import FINAL_STATES
from moola.specs import JOBS, LayoutName, MarketConfig, read_spec
from tests.vendor_files import VENDORS, Vendor, market

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "docs" / "mkdocs.yml"
PAGES = CONFIG.parent / "pages"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(PAGES.rglob("*.md"))]
MAX_README_LINES = 150

BASH_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#[^)\s]*)?\)")
FOLDERS = r"moola|jobs|deploy|tests|benchmarks|docs|\.github|\.ci"
REPOSITORY_PATH = re.compile(
    rf"(?:{FOLDERS})/[\w./-]*|\.ci/\w+|\w+\.md|Dockerfile\.\w+|pyproject\.toml"
)
MODULE = re.compile(r"moola(?:\.\w+)+")
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=.*")

Command = TyperCommand | TyperGroup
UsageError = typer.BadParameter.__bases__[0]  # typer brings a click of its own

MOOLA = (("moola",), ("python", "-m", "moola"), ("python", "deploy/launch.py"))
PYTHONS = ("python", "python3")
# Programs that are not ours: only the files that their arguments name are checked.
OTHER_PROGRAMS = ("b2", "docker", "export", "mypy", "pip", "pre-commit", "pytest", "ruff")
OTHER_MODULES = ("pytest", "venv")
SCRIPTS_WITH_PARTS = ("deploy/image/build.sh", ".ci/run")
# Options in the text that are neither moola's nor a benchmark's.
OTHER_OPTIONS = ("--ahead", "--help")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def command_tree() -> Command:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


# --- commands -------------------------------------------------------------------------------------


def commands_in(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line, without comments and leading variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    lexer.commenters = "#"

    words: list[str] = []
    for token in [*lexer, ";"]:
        if token.strip("&|;"):
            words.append(token)
            continue
        while words and ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        if words:
            yield words
        words = []


def bash_commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks of a page."""
    blocks = [block.replace("\\\n", " ") for block in BASH_BLOCK.findall(text)]
    lines = [line for block in blocks for line in block.splitlines()]
    return [words for line in lines for words in commands_in(line)]


def inline_codes(text: str) -> list[str]:
    return INLINE_CODE.findall(ANY_BLOCK.sub("", text))


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a command; None if it would be taken."""
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    arguments = arguments_of_moola(words)
    if arguments is not None:
        return fault_of_moola(arguments)

    if words[0] in PYTHONS and words[1] == "-m":
        return fault_of_module(words[2], words[3:])
    if words[0] == "bash":
        return fault_of_script(words[1], words[2:])
    if words[0] == "zensical":
        missing = [word for word in words if word.endswith(".yml") and not (ROOT / word).exists()]
        return f"there is no {missing[0]}" if missing else None
    if words[0] not in OTHER_PROGRAMS:
        return f"nobody knows the program {words[0]}"
    return fault_of_paths(words[1:])


def arguments_of_moola(words: list[str]) -> list[str] | None:
    """What follows `moola`, or one of its other names; None for another program."""
    for start in MOOLA:
        if tuple(words[: len(start)]) == start:
            return words[len(start) :]
    return None


def fault_of_moola(arguments: list[str]) -> str | None:
    """Parse as the command line would, without doing anything."""
    command, rest = named_command(arguments)
    if isinstance(command, TyperGroup):
        asks_for_help = rest and rest[0] in own_options(command) | {"--help"}
        return None if asks_for_help else f"moola has no command {' '.join(rest[:1])}"

    try:
        context = command.make_context("moola", list(rest))
    except UsageError as error:
        return str(error.format_message())
    labels = one_or_all(context.params.get("labels"))  # a rule reads it with the fields
    flags: dict[str, object] = {"labels.source": labels}
    return fault_of_fields(command.name, context.params.get("set_"), flags)


def named_command(arguments: list[str]) -> tuple[Command, list[str]]:
    """The innermost command, or group of commands, that is named, and what follows."""
    command = command_tree()
    rest = list(arguments)
    while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    return command, rest


def fault_of_fields(
    job: str | None, assignments: list[str] | None, flags: dict[str, object]
) -> str | None:
    """Fields given with --set must be fields of the job's spec."""
    if job not in JOBS or not assignments:
        return None

    try:
        read_spec(JOBS[job], shipped_spec(job), spec_overrides(assignments, flags))
    except (DataError, UsageError) as error:
        return str(error)
    return None


def fault_of_module(module: str, arguments: list[str]) -> str | None:
    if module in OTHER_MODULES:
        return fault_of_paths(arguments)

    path = ROOT / module.replace(".", "/")
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
    if not source.exists():
        return f"there is no module {module}"
    text = source.read_text()
    options = [word for word in arguments if word.startswith("--")]
    unknown = [option for option in options if f'"{option}"' not in text]
    return f"{module} has no option {unknown[0]}" if unknown else None


def fault_of_script(script: str, arguments: list[str]) -> str | None:
    """A script of the repository exists, and has the word that comes first as one of its parts."""
    if not (ROOT / script).exists():
        return f"there is no {script}"
    if not arguments or script not in SCRIPTS_WITH_PARTS:
        return None
    is_known = re.search(rf"\b{re.escape(arguments[0])}\b", (ROOT / script).read_text())
    return None if is_known else f"{script} knows no {arguments[0]}"


def fault_of_paths(words: list[str]) -> str | None:
    paths = [word for word in words if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+", word)]
    missing = [path for path in paths if not (ROOT / path).exists()]
    return f"there is no {missing[0]}" if missing else None


def command_faults(text: str) -> list[str]:
    """Commands of the bash blocks, and of `moola ...` in the prose, that would not be taken."""
    inline = [words for code in inline_codes(text) for words in inline_command(code)]
    commands = [*bash_commands(text), *inline]
    found = [(words, fault_of(words)) for words in commands]
    return [f"{' '.join(words)}: {fault}" for words, fault in found if fault is not None]


def inline_command(code: str) -> Iterator[list[str]]:
    """The words of `code` if it is a command of ours; a bare name (`moola predict`) is none."""
    starts = (*(" ".join(start) + " " for start in MOOLA), "python -m ", "bash ", "zensical ")
    if not code.startswith(starts) or "..." in code:
        return

    for words in commands_in(code):
        arguments = arguments_of_moola(words)
        is_name = arguments is not None and named_command(arguments)[1] == []
        if not is_name:
            yield words


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_is_one_that_is_taken(path: Path) -> None:
    assert command_faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("moola precompute --on-the-moon", "No such option"),
        ("moola precompute --bars", "requires an argument"),
        ("moola predict RUN", "Missing option"),
        ("moola launch-a-rocket", "no command launch-a-rocket"),
        ("moola store chekc", "no command chekc"),
        ("moola train --set training.epochs=40", "training.epochs"),
        ("moola train --set training.full_epochs=many", "training.full_epochs"),
        ("moola list && moola pul RUN", "no command pul"),
        ("MOOLA_ON=docker .venv/bin/moola traim", "no command traim"),
        ("python deploy/launch.py precompute --bar x", "No such option"),
        ("python -m benchmarks.speed", "no module benchmarks.speed"),
        ("python -m benchmarks.quality --judges NQ_1m.parquet", "no option --judges"),
        ("python -m pytest tests/test_nothing.py", "no tests/test_nothing.py"),
        ("bash deploy/image/bild.sh build cpu", "no deploy/image/bild.sh"),
        ("bash deploy/image/build.sh biuld cpu", "knows no biuld"),
        ("bash .ci/run lnit", "knows no lnit"),
        ("pip install -r deploy/image/locks/gpu.txt", "no deploy/image/locks/gpu.txt"),
        ("zensical build -f docs/mkdoc.yml", "no docs/mkdoc.yml"),
        ("rocket launch", "nobody knows the program rocket"),
    ],
)
def test_a_command_that_is_not_taken_is_noticed(command: str, fault: str) -> None:
    page = f"Text.\n\n```bash\nmoola list   # fine\n{command}\n```\n"
    (found,) = command_faults(page)
    assert fault in found


def test_a_wrong_command_in_the_prose_is_noticed() -> None:
    (found,) = command_faults("Then `moola verify RUN --quick` says so; `moola verify RUN` does.")
    assert "No such option" in found


def test_lines_that_go_on_are_read_as_one() -> None:
    lines = [
        "```bash",
        "moola precompute \\",
        "  --on-bad-bars drop \\",
        "  && moola list  # all",
        "```",
    ]
    page = "\n".join([*lines, ""])
    assert bash_commands(page) == [
        ["moola", "precompute", "--on-bad-bars", "drop"],
        ["moola", "list"],
    ]


def test_the_pages_have_more_than_a_few_commands() -> None:
    commands = [words for path in DOCUMENTS for words in bash_commands(path.read_text())]
    assert len([words for words in commands if words[0].endswith("moola")]) > 40


# --- options, files, links ------------------------------------------------------------------------


def own_options(command: Command) -> set[str]:
    return {name for option in command.params for name in option.opts}


def all_options(command: Command) -> set[str]:
    options = own_options(command)
    if isinstance(command, TyperGroup):
        return options.union(*(all_options(part) for part in command.commands.values()))
    return options


def option_faults(text: str) -> list[str]:
    """Options named in the prose that no command has."""
    known = all_options(command_tree()).union(OTHER_OPTIONS)
    codes = [code for code in inline_codes(text) if code.startswith(("--", "moola "))]
    named = {word for code in codes for word in re.findall(r"(?:^|\s)(--[\w-]+)", code)}
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    return sorted(option for option in named - known if f'"{option}"' not in sources)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_option_named_in_the_prose_is_one(path: Path) -> None:
    assert option_faults(path.read_text()) == []


def test_an_option_that_no_command_has_is_noticed() -> None:
    assert option_faults("With `--on-bad-bar drop`, or `--force`.") == ["--on-bad-bar"]


def file_faults(text: str) -> list[str]:
    """Files and modules in backticks that do not exist."""
    codes = set(inline_codes(text))
    paths = {code for code in codes if REPOSITORY_PATH.fullmatch(code)}
    modules = {code for code in codes if MODULE.fullmatch(code) and code != "moola.toml"}

    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [module for module in modules if not module_exists(module)]
    return sorted(missing)


def module_exists(dotted: str) -> bool:
    """Is it a module, or a name in one?"""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    parent = path.parent.with_suffix(".py")
    return parent.exists() and path.name in parent.read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    assert file_faults(path.read_text()) == []


def test_a_file_that_does_not_exist_is_noticed() -> None:
    right = "See `moola/data/`, `moola.models.jade_core` and `README.md`."
    wrong = "See `moola/date/`, `moola.models.ruby` and `LICENCE.md`."
    assert file_faults(right) == []
    assert file_faults(wrong) == ["LICENCE.md", "moola.models.ruby", "moola/date/"]


def link_faults(text: str, folder: Path) -> list[str]:
    """Relative links and pictures that lead nowhere."""
    targets = [target for target in LINK.findall(ANY_BLOCK.sub("", text)) if target]
    local = [target for target in targets if "://" not in target]
    return [target for target in local if not (folder / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(path: Path) -> None:
    assert link_faults(path.read_text(), path.parent) == []


def test_a_broken_link_is_noticed() -> None:
    text = "[a](README.md) [b](docs/pages/nothing.md#there) ![c](https://example.org/c.png)"
    assert link_faults(text, ROOT) == ["docs/pages/nothing.md"]


# --- what the pages promise -----------------------------------------------------------------------


def test_readme_is_short_and_has_the_blocks_that_ci_runs() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= MAX_README_LINES

    markers = [line for line in lines if line.startswith("<!-- ci: ")]
    assert sorted(markers) == ["<!-- ci: lint -->", "<!-- ci: main -->", "<!-- ci: tests -->"]
    for marker in markers:
        assert lines[lines.index(marker) + 1] == "```bash"


def test_pictures_are_small() -> None:
    pictures = list((PAGES / "images").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 200_000] == []


def subclasses(kind: type[MoolaError]) -> set[type[MoolaError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def first_column(text: str) -> set[str]:
    return {match.strip(" `") for match in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)}


def test_the_table_of_exit_codes_has_each_of_them() -> None:
    codes = {kind.exit_code for kind in subclasses(MoolaError)}
    codes |= {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = first_column((PAGES / "errors" / "index.md").read_text())
    assert {int(cell) for cell in table if cell.isdigit()} == codes


def test_the_table_of_endings_has_each_of_them() -> None:
    section = (PAGES / "runpod.md").read_text().split("## How a run ends")[1].split("\n## ")[0]
    assert first_column(section) - {"state", "---"} == set(FINAL_STATES)


def one_bad_bar(bars: pd.DataFrame) -> pd.DataFrame:
    bars.iloc[417, bars.columns.get_loc("high")] = bars["low"].iloc[417] - 1
    return bars


def every_fiftieth_is_zero(bars: pd.DataFrame) -> pd.DataFrame:
    bars.loc[bars.index[::50], "close"] = 0.0
    return bars


def without_zone(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.set_index(bars.index.tz_convert("America/New_York").tz_localize(None))


BAD_FILES = {
    "bad-bars.md": [
        ("bad.parquet", one_bad_bar, {}),
        ("very_bad.parquet", every_fiftieth_is_zero, {"on_bad_bars": "drop"}),
    ],
    "bars-refused.md": [
        ("no_close.parquet", lambda bars: bars.drop(columns="close"), {}),
        ("short.parquet", lambda bars: bars.head(50), {}),
    ],
    "naive-times.md": [
        ("naive.csv", without_zone, {}),
        ("naive.csv", without_zone, {"timezone": "New_York"}),
        ("good.parquet", lambda bars: bars, {"timezone": "America/New_York"}),
    ],
}


@pytest.mark.parametrize("page", BAD_FILES)
def test_messages_on_the_pages_of_errors_are_those_of_the_code(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the pages are made again, and the message is quoted to the letter."""
    monkeypatch.chdir(tmp_path)
    text = (PAGES / "errors" / page).read_text()
    bars = make_market(MarketConfig.model_validate({"end": "2025-01-10"})).bars

    for name, spoil, options in BAD_FILES[page]:
        path = Path(name)
        spoiled = spoil(bars.copy())
        spoiled.to_csv(path) if path.suffix == ".csv" else spoiled.to_parquet(path)
        with pytest.raises(DataError) as refused:
            read_bars(path, called=name, **options)
        assert f"error: {refused.value}\n" in text


TABLE_COMMAND = re.compile(r"^\| [^|]+ \| `(\w+)` \| `moola bars FILE ?([^`]*)` \|", re.MULTILINE)


def test_the_table_of_layouts_has_each_of_them() -> None:
    names = [name for name, _ in TABLE_COMMAND.findall((PAGES / "bars.md").read_text())]
    assert sorted(names) == sorted(get_args(LayoutName))


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.layout)
def test_the_command_in_the_table_of_layouts_reads_the_vendors_file(
    vendor: Vendor, tmp_path: Path
) -> None:
    table = dict(TABLE_COMMAND.findall((PAGES / "bars.md").read_text()))
    path = vendor.write(market(), tmp_path)
    words = ["bars", str(path), "--json", *table[vendor.layout].split()]

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["layout"] == vendor.layout
    assert document["n_bars"] == len(market())
    assert document["first"] == market().index[0].isoformat()


# --- the site -------------------------------------------------------------------------------------


def pages_of(nav: object) -> set[str]:
    """Every page that a navigation names, at any depth."""
    if isinstance(nav, str):
        return {nav}
    items = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(items, Iterable)
    return set().union(*(pages_of(item) for item in items))


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load(CONFIG.read_text())["nav"]
    assert pages_of(nav) == {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}


def build_site(docs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file"]
    return subprocess.run(
        [*command, str(docs / CONFIG.name)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of docs/ that a site can be built in."""
    if find_spec("zensical") is None:
        pytest.skip("zensical is not installed (it is in the dev extra)")
    ignored = shutil.ignore_patterns("site", ".cache")
    return Path(shutil.copytree(CONFIG.parent, tmp_path / "docs", ignore=ignored))


def test_the_site_builds_and_its_pages_fetch_nothing(docs: Path) -> None:
    built = build_site(docs)
    assert built.returncode == 0, built.stdout + built.stderr

    fetched = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?https?://""")
    pages = list((docs / "site").rglob("*.html"))
    assert len(pages) > len(list(PAGES.rglob("*.md")))  # and one for what is not found
    assert [page.name for page in pages if fetched.search(page.read_text())] == []


@pytest.mark.parametrize("link", ["nothing.md", "stores.md#nowhere"])
def test_a_broken_link_fails_the_build(docs: Path, link: str) -> None:
    page = docs / "pages" / "images.md"
    page.write_text(f"{page.read_text()}\n[gone]({link})\n")
    assert build_site(docs).returncode != 0
