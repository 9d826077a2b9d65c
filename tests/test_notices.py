"""Word of how a run ended: once, with what matters, to a real server; no address gets out."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("apprise", reason="in the extra `notify`")

from moola.errors import DataError
from moola.launch import notices
from moola.launch.settings import read_settings_file
from moola.launch.submit import submit_and_follow
from moola.runs.about import add_about, new_about
from moola.runs.redaction import safe_text
from moola.store import Store, open_store
from tests.hook import TOKEN, Hook, running_hook
from tests.runs import committed_run, submitted_run
from tests.test_comparing import trained_run
from tests.test_listing import failed_run


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with running_hook() as server:
        monkeypatch.setenv("MOOLA_NOTIFY", server.address)
        yield server


def test_word_is_sent_once_whoever_sees_the_end(store: Store, tmp_path: Path, hook: Hook) -> None:
    run_id = failed_run(store, tmp_path)
    add_about(store, run_id, new_about("wide", ["nq"]))
    threads = [threading.Thread(target=notices.tell_end, args=(store, run_id)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notices.tell_end(store, run_id)

    (sent,) = hook.bodies
    assert sent["title"] == f"moola: {run_id} failed"
    assert "bars must be good" in sent["message"]
    assert "wide #nq" in sent["message"]


def test_a_committed_train_run_tells_its_metrics(tmp_path: Path, hook: Hook) -> None:
    store = open_store((tmp_path / "store").as_uri())
    run_id = trained_run(store, tmp_path, {"f1_macro": 0.5})
    notices.tell_end(store, run_id)
    (sent,) = hook.bodies
    assert sent["title"] == f"moola: {run_id} committed"
    assert "has no gates.json" in sent["message"]  # what is not there is named


def test_of_a_run_under_way_nothing_is_sent(tmp_path: Path, hook: Hook) -> None:
    store = open_store((tmp_path / "store").as_uri())
    notices.tell_end(store, submitted_run(store))
    assert hook.bodies == []


@pytest.mark.parametrize("failure", ["refused", "unreachable", "no store"])
def test_a_notice_that_fails_is_said_and_fails_nothing(
    tmp_path: Path,
    hook: Hook,
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = open_store((tmp_path / "store").as_uri())
    run_id = committed_run(store, tmp_path)
    if failure == "refused":
        hook.status = 500
    if failure == "unreachable":
        monkeypatch.setenv("MOOLA_NOTIFY", f"json://127.0.0.1:1/{TOKEN}")
    if failure == "no store":
        monkeypatch.setattr(store, "create", lambda *_: 1 / 0)

    notices.tell_end(store, run_id)
    said = capsys.readouterr().err
    assert "sent" in said
    assert TOKEN not in said
    assert "127.0.0.1" not in said


def test_an_address_that_is_none_is_refused_by_its_number(
    monkeypatch: pytest.MonkeyPatch, hook: Hook
) -> None:
    monkeypatch.setenv("MOOLA_NOTIFY", f"{hook.address} nonsense://{TOKEN}")
    with pytest.raises(DataError, match="number 2 of 2 is none") as refused:
        notices.require_addresses()
    assert TOKEN not in str(refused.value)


def test_without_the_library_a_run_is_refused_and_an_end_is_not(
    tmp_path: Path,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(notices, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(DataError, match=r"pip install 'moola\[notify\]'"):
        notices.require_addresses()

    store = open_store((tmp_path / "store").as_uri())
    notices.tell_end(store, committed_run(store, tmp_path))
    assert "moola[notify]" in capsys.readouterr().err
    assert hook.bodies == []


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("slack://T1A2B3C4D5/B1A2B3C4D5/abc123def456", "T1A2B3C4D5"),
        ("slack://T1A2B3C4D5/B1A2B3C4D5/abc123def456", "abc123def456"),
        ("mailto://me:correct-horse@example.com", "correct-horse"),
        ("tgram://123456789:AAF-key/987654321", "123456789"),
        ("json://host.example.com/hook?token=0123456789abcdef", "0123456789abcdef"),
        ("json://host.example.com/hook", "json://host.example.com/hook"),
    ],
)
def test_no_key_of_an_address_is_shown(
    address: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_NOTIFY", f"json://localhost/ {address}")
    text = safe_text(f"https://hooks.slack.com/services/{key} did not answer")
    assert key not in text
    assert "did not answer" in text
    assert "example.com is up" in safe_text("example.com is up")


def test_addresses_in_the_settings_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "moola.toml"
    path.write_text(f'notify = ["json://localhost/{TOKEN}"]\n')
    with pytest.raises(ValueError, match="set MOOLA_NOTIFY instead") as refused:
        read_settings_file(path)
    assert TOKEN not in str(refused.value)


def test_the_command_that_runs_a_job_tells_of_its_end(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moola.jobs.prepare import prepare_precompute
    from moola.launch import local
    from moola.launch.settings import Settings
    from moola.runs.attempt import Attempt
    from moola.specs import PrecomputeSpec

    settings = Settings(store=(tmp_path / "store").as_uri(), work=tmp_path / "work")
    run = prepare_precompute(PrecomputeSpec(), settings.work)

    def run_to_end(_: Settings, store: Store, __: str, run_id: str) -> int:
        with Attempt(store, run_id, work=tmp_path / "work"):
            pass
        return 0

    monkeypatch.setattr(local, "run_to_end", run_to_end)
    submit_and_follow(settings, run)
    (sent,) = hook.bodies
    assert sent["title"] == f"moola: {run.run_id} committed"
