"""The layout is held: who may import whom, what stands at the top, and that the CPU path needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports only what stands above it.
ORDER = (
    "errors",
    "specs",
    "store",
    "protocol",
    "signals",
    "machine",
    "launches",
    "runs",
    "supervisor",
    "bars",
    "synthetic",
    "features",
    "windows",
    "verify",
    "precompute",
    "labels",
    "models",
    "training",
    "metrics",
    "predict",
    "report",
    "train",
)
TOP = {"pyproject.toml", "Dockerfile.cpu", "Dockerfile.gpu", "jobs", "moola", "deploy", "tests", ".github"}
TOP |= {"README.md", "CHANGELOG.md", "LICENSE", "benchmarks", ".ci", ".gitignore", ".pre-commit-config.yaml"}
TOP |= {".dockerignore"}


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


MODULES = sorted(p for p in (ROOT / "moola").rglob("*.py") if p != ROOT / "moola" / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    room = room_of(path)
    assert room in ORDER
    below = {name for name in imported_rooms(path) if ORDER.index(name) > ORDER.index(room)}
    assert not below, f"{path.name} imports {below}, which stand below it"


def test_the_import_check_sees_an_import_from_below(tmp_path: Path) -> None:
    """The twin: both ways to import are noticed, inside a function too."""
    file = tmp_path / "bars.py"
    file.write_text("from moola import verify\n\ndef f():\n    import moola.report\n    from moola.labels import x\n")
    assert imported_rooms(file) == {"verify", "report", "labels"}


def test_the_top_level_holds_only_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked.stdout.splitlines()} <= TOP


def test_the_cpu_path_imports_with_torch_absent() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, '.')\n"
        "import jobs.precompute, moola.precompute, deploy.launch, deploy.local, deploy.settings\n"
        "import deploy.tail, moola.labels, moola.verify"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_module_but_the_store_uses_the_network() -> None:
    network = {"boto3", "botocore", "httpx", "requests", "socket", "urllib.request"}
    for path in MODULES:
        if room_of(path) == "store":
            continue
        tree = ast.walk(ast.parse(path.read_text()))
        names = {a.name for n in tree if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        assert not {name for name in names if name in network or name.split(".")[0] in network}, path.name
