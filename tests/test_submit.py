"""Submitting a run: nothing is sent before all is checked and a person has agreed to pay."""

from collections.abc import Iterator

import pytest
import typer

from moola.errors import DataError
from moola.jobs.prepare import PreparedRun, prepare_precompute
from moola.launch import submit
from moola.launch.settings import Settings
from moola.specs import PrecomputeSpec
from moola.store import open_store
from tests.fake_runpod import FakeRunpod
from tests.registry import Registry


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    with FakeRunpod() as fake:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", fake.url)
        monkeypatch.setenv("RUNPOD_API_KEY", fake.api_key)
        yield fake


@pytest.fixture
def settings(s3_url: str, registry: Registry) -> Settings:
    return Settings(store=s3_url, on="runpod", image_cpu=registry.add("me/moola"))


@pytest.fixture
def run(settings: Settings) -> PreparedRun:
    return prepare_precompute(PrecomputeSpec(), settings.work)


def requests_that_change_something(provider: FakeRunpod) -> list[str]:
    return [call.operation for call in provider.calls if call.method != "GET"]


def test_a_store_on_loopback_is_refused_for_machines_elsewhere(
    settings: Settings, run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_any")
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "https://api.example.com")
    with pytest.raises(DataError, match=r"cannot reach the store's endpoint http://127\.0\.0\.1"):
        submit.submit_and_follow(settings, run, dry_run=True)


@pytest.mark.parametrize("agreed", [False, True])
def test_a_machine_is_rented_only_after_a_yes(
    provider: FakeRunpod,
    settings: Settings,
    run: PreparedRun,
    monkeypatch: pytest.MonkeyPatch,
    agreed: bool,
) -> None:
    """At a no nothing is sent or stored, and the command ends with exit code 0."""
    questions: list[str] = []

    def answer(question: str) -> bool:
        questions.append(question)
        return agreed

    class Launched(Exception):  # noqa: N818
        """The run is handed on to the launcher of rented machines."""

    def hand_on(*_: object) -> int:
        raise Launched

    monkeypatch.setattr(submit, "confirm", answer)
    monkeypatch.setattr("moola.launch.rented.session.Session.run", hand_on)
    with pytest.raises(Launched if agreed else typer.Exit) as ending:
        submit.submit_and_follow(settings, run)
    if not agreed:
        assert ending.value.exit_code == 0
    assert len(questions) == 1
    assert "USD?" in questions[0]
    assert open_store(settings.store).exists(f"runs/{run.run_id}/spec.json") is agreed
    assert requests_that_change_something(provider) == []


def test_a_dry_run_shows_the_request_and_neither_asks_nor_sends(
    provider: FakeRunpod,
    settings: Settings,
    run: PreparedRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "confirm", lambda _: pytest.fail("asked in a dry run"))
    submit.submit_and_follow(settings, run, dry_run=True)
    assert '"request"' in capsys.readouterr().out
    assert open_store(settings.store).children("runs") == []
    assert requests_that_change_something(provider) == []
