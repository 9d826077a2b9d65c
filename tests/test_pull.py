"""Where a run is pulled to: its files may have any name."""

from pathlib import Path

import pytest

from moola.cli.app import run
from moola.errors import EXIT_DONE, DataError
from moola.runs.attempt import Attempt
from moola.store import open_store
from tests.runs import submitted_run


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that holds settings for the next command: another image, another store."""
    store = open_store((tmp_path / "store").as_uri())
    run_id = submitted_run(store)
    with Attempt(store, run_id, work=tmp_path / "work") as attempt:
        attempt.write("moola.toml", b'image_cpu = "evil"\n', "text/plain")

    here = tmp_path / "home" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MOOLA_STORE", store.url)
    return run_id


@pytest.mark.parametrize("dest", [".", "..", "../..", "/", "../here", "link"])
def test_a_run_is_not_pulled_to_where_programs_look_for_their_settings(
    run_id: str, dest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to(Path.cwd())
    assert run(["pull", run_id, dest]) == DataError.exit_code
    assert "a folder of its own" in capsys.readouterr().err
    assert not Path("moola.toml").exists()


def test_nor_into_the_home_from_elsewhere(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "store")
    assert run(["pull", run_id, str(tmp_path / "home")]) == DataError.exit_code
    assert not (tmp_path / "home" / "moola.toml").exists()


@pytest.mark.parametrize("dest", [None, "out", "../out"])
def test_any_other_folder_is_taken(run_id: str, dest: str | None) -> None:
    arguments = ["pull", run_id] if dest is None else ["pull", run_id, dest]
    assert run(arguments) == EXIT_DONE
    assert Path(dest or run_id, "moola.toml").exists()
