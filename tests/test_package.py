"""The wheel: what is in it, and that it works with the lock where there is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import moola
from tests.hook import running_hook
from tests.tools import tool

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "deploy" / "image" / "locks" / "cpu.txt"
SPECS = {"moola/jobs/precompute.yaml", "moola/jobs/train.yaml"}
UNREACHABLE = ("dns error", "error sending request", "Connection refused", "timed out")


def build_wheel(checkout: Path, folder: Path) -> Path:
    """`.ci/run wheel`; -> the one file it makes."""
    command = ["bash", str(checkout / ".ci" / "run"), "wheel", str(folder)]
    folders = [str(Path(tool("uv")).parent), os.environ["PATH"]]
    run(command, cwd=checkout, environment=os.environ | {"PATH": os.pathsep.join(folders)})
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(
    command: list[str], cwd: Path, environment: dict[str, str], exit_code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Skips the test where a package index is needed and none answers."""
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"no package index answers: {done.stderr[-300:]}")
    assert done.returncode == exit_code, f"{command} -> {done.returncode}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def wheel_without_specs(tmp_path: Path) -> Path:
    """Of a checkout whose pyproject.toml names no package data."""
    checkout = tmp_path / "checkout"
    run(["git", "clone", "--quiet", str(ROOT), str(checkout)], tmp_path, dict(os.environ))
    for name in ("pyproject.toml", ".ci/run"):
        shutil.copy(ROOT / name, checkout / name)

    text = (checkout / "pyproject.toml").read_text()
    without = text.replace('"moola.jobs" = ["*.yaml"]\n', "")
    assert without != text
    (checkout / "pyproject.toml").write_text(without)
    return build_wheel(checkout, tmp_path / "wheel")


@dataclass
class Installed:
    """A virtual environment away from the checkout, and an empty folder to work in."""

    environment: Path
    folder: Path

    def __call__(self, *command: str, exit_code: int = 0) -> str:
        """Standard output of a command of the environment."""
        variables = {"PATH": f"{self.environment / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder)}
        program = str(self.environment / "bin" / command[0])
        return run([program, *command[1:]], self.folder, variables, exit_code).stdout


def install(folder: Path, *installs: tuple[str, ...]) -> Installed:
    """A new environment with what each `uv pip install` brings; all that is required is there."""
    installed = Installed(folder / "environment", folder / "empty")
    installed.folder.mkdir()
    uv = tool("uv")
    variables = {**os.environ, "VIRTUAL_ENV": str(installed.environment)}

    run(
        [uv, "venv", "--quiet", "--python", sys.executable, str(installed.environment)],
        folder,
        variables,
    )
    for arguments in installs:
        run([uv, "pip", "install", "--quiet", *arguments], folder, variables)
    run([uv, "pip", "check"], folder, variables)
    return installed


def install_with_lock(wheel: Path, folder: Path) -> Installed:
    """The lock's packages, each by its hash, and the wheel beside them."""
    locked = ("--require-hashes", "--no-deps", "-r", str(LOCK))
    return install(folder, locked, ("--no-deps", str(wheel)))


def first_run(installed: Installed) -> None:
    """What README begins with, in an empty folder."""
    installed("moola", "precompute")
    (run_folder,) = (installed.folder / "moola-store" / "runs").iterdir()
    assert "0 failed" in installed("moola", "verify", run_folder.name)
    installed("moola", "pull", run_folder.name)
    (features,) = installed.folder.glob("*/bars_11d.npy")
    assert features.stat().st_size > 1_000_000


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_its_specs_and_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {
        "moola",
        f"moola-{moola.__version__}.dist-info",
    }
    assert names >= SPECS

    tracked = subprocess.run(
        ["git", "ls-files", "moola"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name for name in names if name.startswith("moola/")} == set(tracked.stdout.split())


def test_installed_away_from_the_checkout_the_first_run_works(wheel: Path, tmp_path: Path) -> None:
    installed = install_with_lock(wheel, tmp_path)
    where = installed("python", "-c", "import moola; print(moola.__file__)")
    assert Path(where.strip()).is_relative_to(installed.environment)

    first_run(installed)
    assert "splits" in installed("python", "-m", "moola", "spec", "precompute")
    assert "processes" in installed("python", "-m", "moola", "spec", "train")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="old packages have no newer wheels")
def test_the_lowest_versions_that_are_allowed_are_enough(wheel: Path, tmp_path: Path) -> None:
    installed = install(tmp_path, ("--resolution", "lowest-direct", f"{wheel}[notify,mlflow]"))
    first_run(installed)
    with running_hook() as hook:
        notice = (
            "import sys; from moola.launch import notices;"
            "env = {'MOOLA_NOTIFY': sys.argv[1]}; notices.require_addresses(env);"
            "notices.send([sys.argv[1]], 'title', 'body')"
        )
        installed("python", "-c", notice, hook.address)
    assert [(body["title"], body["message"]) for body in hook.bodies] == [("title", "body")]

    tracking = (
        "from moola.launch import mlflow_runs, tracking; from moola.launch.settings import *;"
        "tracking.require_tracking(TrackingConfig(mlflow='http://127.0.0.1:1'))"
    )
    installed("python", "-c", tracking)


def test_a_wheel_without_its_specs_is_noticed(wheel_without_specs: Path, tmp_path: Path) -> None:
    """The twin: neither its list of files nor its first run is right."""
    assert not contents(wheel_without_specs) & SPECS
    with pytest.raises(AssertionError, match=r"precompute\.yaml"):
        install_with_lock(wheel_without_specs, tmp_path)("moola", "precompute")
