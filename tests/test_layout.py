"""The layout is held: who imports whom, what stands at the top, that the CPU path has no torch."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports only what stands above it.
ORDER = (
    "errors",
    "text",
    "specs",
    "store",
    "runs",
    "providers",
    "features",
    "data",
    "models",
    "training",
    "evaluation",
    "jobs",
    "launch",
    "api",
    "cli",
    "__main__",
)
TOP = {
    ".ci",
    ".dockerignore",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile.cpu",
    "Dockerfile.gpu",
    "LICENSE",
    "README.md",
    "benchmarks",
    "deploy",
    "docs",
    "jobs",
    "moola",
    "pyproject.toml",
    "tests",
}
MODULES = sorted(p for p in (ROOT / "moola").rglob("*.py") if p != ROOT / "moola" / "__init__.py")
NETWORK = {"boto3", "botocore", "httpx", "ray", "requests", "socket", "urllib.request"}


def tracked_files() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


# --- imports --------------------------------------------------------------------------------------


def imported_rooms(path: Path) -> set[str]:
    """First names below `moola` that a file imports, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            rooms |= set(names) if parts[0] == "moola" else set()
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("moola.")}
    return rooms & set(ORDER)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "moola").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    room = room_of(path)
    assert room in ORDER
    below = {name for name in imported_rooms(path) if ORDER.index(name) > ORDER.index(room)}
    assert not below, f"{path.name} imports {below}, which stand below it"


def test_the_import_check_sees_an_import_from_below(tmp_path: Path) -> None:
    """The twin: both ways to import are noticed, inside a function too."""
    file = tmp_path / "bars.py"
    file.write_text(
        "from moola import evaluation\n\n"
        "def f():\n    import moola.jobs\n    from moola.data.labels import x\n"
    )
    assert imported_rooms(file) == {"evaluation", "jobs", "data"}


def test_the_cpu_path_imports_with_torch_absent() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import moola.jobs.prepare, moola.jobs.precompute, moola.cli.app\n"
        "import moola.launch.local, moola.launch.settings, moola.launch.progress\n"
        "import moola.data.labels, moola.data.verify"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_job_begins_before_it_imports_what_takes_seconds() -> None:
    """Its work folder is looked at first: numba writes into it as soon as features are imported."""
    code = (
        "import sys, moola.jobs.command\n"
        "print(sorted({'numba', 'pandas', 'torch', 'moola.features'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_no_module_but_the_store_and_the_providers_uses_the_network() -> None:
    for path in MODULES:
        if room_of(path) in ("store", "providers"):
            continue
        names = imported_modules(path)
        names |= {name.split(".")[0] for name in names}
        assert not names & NETWORK, path.name


# --- names and places -----------------------------------------------------------------------------


def test_the_top_level_holds_only_what_was_agreed() -> None:
    assert {name.split("/")[0] for name in tracked_files()} <= TOP


SOURCE = re.compile(r"\.(py|sh|ya?ml|toml)$|(^|/)Dockerfile[.\w]*$|^\.ci/\w+$")
SEARCH_PATH = re.compile(r"\bsys\.path\b|PYTHONPATH")


def source_files() -> dict[str, str]:
    """{name: text} of all that is run or configures what is run, but for this file."""
    this_file = Path(__file__).relative_to(ROOT).as_posix()
    names = [name for name in tracked_files() if SOURCE.search(name) and name != this_file]
    return {name: (ROOT / name).read_text() for name in names if (ROOT / name).is_file()}


def changes_of_the_search_path(text: str) -> list[str]:
    """Lines of a source file that change where Python looks for modules."""
    return [line.strip() for line in text.splitlines() if SEARCH_PATH.search(line)]


def test_nothing_changes_where_python_looks_for_modules() -> None:
    """moola is installed: every module is found by its name."""
    changes = {
        name: lines
        for name, text in source_files().items()
        if (lines := changes_of_the_search_path(text))
    }
    assert changes == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tests/test_x.py", "sys.path.insert(0, str(ROOT))"),
        ("tests/test_x.py", 'env["PYTHONPATH"] = "."'),
        ("Dockerfile.cpu", "ENV PYTHONPATH=/app"),
        (".ci/run", "export PYTHONPATH=."),
        (".github/workflows/ci.yml", "PYTHONPATH: ."),
        ("deploy/image/build.sh", "PYTHONPATH=. python3 -m x"),
    ],
)
def test_a_change_of_where_python_looks_is_noticed(name: str, line: str) -> None:
    assert SOURCE.search(name)
    assert changes_of_the_search_path(f"import os\n{line}\n") == [line]


def shadowed(names: set[str]) -> set[str]:
    """Those that name a package of Python's or of another installed distribution."""
    installed = {
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if set(distributions) != {"moola"}
    }
    return names & (installed | set(sys.stdlib_module_names))


def first_names() -> set[str]:
    """What `import NAME` could find in a checkout, or beside a script of it that is run."""
    names = set()
    for file in tracked_files():
        path = Path(file)
        if path.suffix == ".py" and path.parts[0] not in ("moola", "tests"):
            names.add(path.stem)
        if path.suffix == ".py" and len(path.parts) > 1:
            names.add(path.parts[0])
    return names


def test_no_module_of_ours_shadows_an_installed_package() -> None:
    names = first_names()
    assert {"moola", "tests", "benchmarks", "deploy", "launch"} <= names
    assert shadowed(names) == set()


def test_a_module_that_shadows_a_package_is_noticed() -> None:
    assert shadowed({"numpy", "queue", "launch"}) == {"numpy", "queue"}


def reaches_outside(text: str) -> bool:
    """Whether a source file names the folder beside the checkout."""
    return re.search(r"\.\./shared|[\"']shared[\"'/]", text) is not None


def test_only_one_function_reaches_outside_the_repository() -> None:
    reaching = {name for name, text in source_files().items() if reaches_outside(text)}
    assert reaching == {"tests/shared.py"}


def test_reaching_outside_is_noticed() -> None:
    assert reaches_outside('SAMPLES = ROOT.parent / "shared" / "data"')
    assert reaches_outside("tools=../shared/tools/containers")
    assert not reaches_outside('shared("data/bars.parquet")')
