"""The policies of docs/pages/store-policies.md, on servers that enforce them."""

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moola.errors import AuthError, ConflictError, MoolaError
from moola.runs.attempt import Attempt
from moola.runs.group_removal import remove_group
from moola.runs.groups import group_of, put_group
from moola.runs.reading import newest_checkpoint, read_manifest
from moola.runs.removal import remove_runs
from moola.runs.submit import describe_run, submit
from moola.store import BytesSource, Store, open_store
from tests.moto_server import Moto, running_moto
from tests.runs import committed_run
from tests.seaweed import BUCKET, Seaweed
from tests.test_launch import Launcher
from tests.test_store import DATA, PART, SHA256, break_upload

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pages" / "store-policies.md"
NAMES = ("launcher", "machine", "remover", "r2", "b2")
MAY_DELETE = ("remover", "r2")


def policies() -> dict[str, str]:
    """Name -> JSON text, as the page has it."""
    return dict(re.findall(r"<!-- policy: (\w+) -->\n```json\n(.*?)```", PAGE.read_text(), re.S))


@pytest.fixture(params=["seaweed", "moto"])
def server(request: pytest.FixtureRequest) -> Iterator[Seaweed | Moto]:
    """A server that holds users to their policies."""
    if request.param == "seaweed":
        yield request.getfixturevalue("seaweed")
        return
    with running_moto() as moto:
        yield moto


class Users:
    """Opens stores as users, each of whom has one policy of the page."""

    def __init__(
        self, server: Seaweed | Moto, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.url = f"s3://{BUCKET}/{prefix}"
        self.endpoint = server.endpoint
        self._monkeypatch = monkeypatch
        iam: Any = server.aws_client("iam")
        self._keys = {}
        for name, text in policies().items():
            policy = text.replace("my-bucket", BUCKET).replace("moola/", f"{prefix}/")
            user = f"{name}-{prefix}"
            iam.create_user(UserName=user)
            created = iam.create_policy(PolicyName=user, PolicyDocument=policy)["Policy"]
            iam.attach_user_policy(UserName=user, PolicyArn=created["Arn"])
            self._keys[name] = iam.create_access_key(UserName=user)["AccessKey"]

    def environment(self, name: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self._keys[name]["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": self._keys[name]["SecretAccessKey"],
        }

    def open(self, name: str, url: str | None = None) -> Store:
        for variable, value in self.environment(name).items():
            self._monkeypatch.setenv(variable, value)
        return open_store(url or self.url)


@pytest.fixture
def users(server: Seaweed | Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Users]:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    users = Users(server, f"moola-{secrets.token_hex(4)}", monkeypatch)
    with server.enforcing() if isinstance(server, Moto) else contextlib.nullcontext():
        yield users


def test_the_page_has_the_policies() -> None:
    assert tuple(policies()) == NAMES
    for name, text in policies().items():
        assert json.loads(text)["Statement"]
        assert ("s3:DeleteObject" in text) is (name in MAY_DELETE)


def accept_profile(store: Store) -> None:
    """As `moola store check --save` does."""
    store.save_profile(store.check().usable_profile())


def is_denied(call: Callable[[], object]) -> bool:
    try:
        call()
    except AuthError:
        return True
    return False


@pytest.mark.parametrize("name", ["launcher", "r2", "b2"])
def test_a_launchers_keys_do_all_that_is_needed(users: Users, name: str, tmp_path: Path) -> None:
    store = users.open(name)
    accept_profile(store)
    assert users.open(name).profile.conditional

    store.put_once("key", b"one")
    with pytest.raises(ConflictError):
        store.put_once("key", b"two")
    assert store.get_or_none("runs/none/spec.json") is None
    break_upload(store, tmp_path / "journal")
    stored = store.upload("x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART)
    assert stored.key == "attempt-1/x"
    store.pull(stored.key, tmp_path / "x", size=len(DATA), sha256=SHA256)
    assert "key" in store.children("")
    store.begin_parts("pending", PART)
    assert store.sweep(-60) == ["pending"]
    assert is_denied(lambda: store.delete("key")) is (name != "r2")


@pytest.mark.parametrize("name", ["launcher", "machine", "b2"])
def test_keys_do_not_reach_beyond_the_prefix(users: Users, name: str) -> None:
    accept_profile(users.open("r2", f"s3://{BUCKET}/elsewhere"))
    elsewhere = users.open(name, f"s3://{BUCKET}/elsewhere")
    for call in (
        lambda: elsewhere.get("profile.json"),
        lambda: elsewhere.put("key", b"x"),
        lambda: elsewhere.delete("profile.json"),
    ):
        assert is_denied(call)


def test_a_machines_keys_do_a_run_and_write_nothing_else(users: Users, tmp_path: Path) -> None:
    launcher = users.open("launcher")
    accept_profile(launcher)
    run_id, document = describe_run("precompute", {"windows": "stored"}, {})
    submit(launcher, run_id, document)

    machine = users.open("machine")
    with Attempt(machine, run_id, work=tmp_path) as attempt:
        attempt.checkpoint(1, {"state.bin": b"state"})
        attempt.write("data.bin", DATA, "application/octet-stream")
    assert read_manifest(machine, run_id)
    step, files = newest_checkpoint(machine, run_id) or (0, {})
    assert (step, files) == (1, {"state.bin": b"state"})

    for call in (
        lambda: machine.put("inputs/x", b"x"),
        lambda: machine.put("profile.json", b"{}"),
        lambda: machine.delete(f"runs/{run_id}/spec.json"),
    ):
        assert is_denied(call)


def test_the_commands_work_with_a_launchers_keys(users: Users, tmp_path: Path) -> None:
    launch = Launcher(tmp_path, users.url, users.environment("launcher"))
    output = launch("store", "check", "--save")
    assert "s3:DeleteObject" in output
    assert "saved as profile.json" in output
    launch("list")
    launch("store", "sweep")


def keys_below(store: Store, *prefixes: str) -> list[str]:
    return [entry.key for prefix in prefixes for entry in store.list_page(prefix).entries]


@pytest.mark.parametrize("name", MAY_DELETE)
def test_runs_and_groups_are_removed_with_the_rights_of_the_page_alone(
    users: Users, name: str, tmp_path: Path
) -> None:
    launcher = users.open("launcher")
    accept_profile(launcher)
    runs = [committed_run(launcher, tmp_path, n=n) for n in range(3)]
    group = group_of("precompute", runs[:2])
    put_group(launcher, group)
    launcher.put("inputs/x", b"x")
    before = keys_below(launcher, "runs/", "groups/")

    for other in ("launcher", "machine", "b2"):
        store = users.open(other)
        assert is_denied(lambda store=store: remove_runs(store, runs[:1])), other
        assert is_denied(lambda store=store: remove_group(store, group.id)), other
    assert keys_below(launcher, "runs/", "groups/") == before

    remover = users.open(name)
    assert is_denied(lambda: remover.put("inputs/y", b"y")) is (name == "remover")
    assert is_denied(lambda: remover.delete("inputs/x")) is (name == "remover")
    launch = Launcher(tmp_path, users.url, users.environment(name))
    assert f"removed {group.id}" in launch("remove", group.id, "--yes")
    assert f"removed {runs[2]}" in launch("gc", "--keep-last", "0", "--yes")
    assert keys_below(remover, "runs/", "groups/") == []


def test_the_twin_a_user_without_rights_is_denied_all(users: Users) -> None:
    store = users.open("machine", f"s3://{BUCKET}/elsewhere")
    with pytest.raises(MoolaError, match="they lack s3:GetObject"):
        store.get_or_none("key")
