"""The command line with rented machines: the fake provider, a real S3 server, real jobs."""

import importlib.util
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from moola.runs.launches import newest_launch
from moola.runs.reading import log_records, read_manifest, run_state
from moola.runs.records import Manifest
from moola.store import open_store
from tests.fake_runpod import FakeRunpod
from tests.registry import Registry
from tests.rented import WATCH, wait_for
from tests.seaweed import BUCKET, Seaweed
from tests.test_launch import Launcher

WATCHED = WATCH | {"poll_s": 0.2, "pod_poll_s": 0.5, "beat_s": 0.5, "grace_s": 20.0}
DAYS = ("--windows", "virtual", "--set", "synthetic.end=2025-02-14")
SHORT = ("--windows", "virtual", "--set", "synthetic.end=2025-01-10")
YES = ("--on", "runpod", "--yes")
SHORT_GRACE = {"MOOLA_WATCH__GRACE_S": "2"}
SECRET = ("--set", "machine.secrets.AWS_SECRET_ACCESS_KEY=bucket_secret")


@dataclass
class Account:
    """The provider, the bucket, and computers with launchers; all that was printed is kept."""

    fake: FakeRunpod
    seaweed: Seaweed
    images: dict[str, str]
    folder: Path
    name: str
    printed: list[str] = field(default_factory=list)

    @property
    def store(self) -> str:
        return f"s3://{BUCKET}/{self.name}"

    def computer(self, name: str = "laptop", **change: str) -> Launcher:
        """A working directory with the settings a person would export; "" takes one away."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        watch = {f"MOOLA_WATCH__{key.upper()}": str(value) for key, value in WATCHED.items()}
        keys = {
            "RUNPOD_API_KEY": self.fake.api_key,
            "RUNPOD_TERMINATE_API_KEY": self.fake.restricted_key,
        }
        provider = {"RUNPOD_API_BASE_URL": self.fake.url, "PYTHONWARNINGS": ""}
        names = {**self.seaweed.environment(), **watch, **keys, **provider, **self.images}
        names |= change
        launcher = Launcher(folder, change.get("MOOLA_STORE", self.store), names)
        launcher.env = {key: value for key, value in launcher.env.items() if names.get(key) != ""}
        return launcher

    def say(self, launcher: Launcher, *args: str, exit_code: int = 0) -> str:
        """Run a command to its end, and keep what it printed."""
        self.printed.append(launcher(*args, exit_code=exit_code))
        return self.printed[-1]

    def end(self, process: "subprocess.Popen[str]", exit_code: int = 0) -> str:
        """Wait for a command that was started, and keep what it printed."""
        out, err = process.communicate(timeout=300)
        assert process.returncode == exit_code, f"exit {process.returncode}\n{out}\n{err}"
        self.printed.append(out + err)
        return out + err

    def objects(self) -> dict[str, bytes]:
        """Everything there is below the store's prefix."""
        names = self.seaweed.environment()
        s3 = boto3.client(
            "s3",
            endpoint_url=names["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=names["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=names["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.name}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


@pytest.fixture(scope="module")
def environment(seaweed: Seaweed) -> Iterator[None]:
    """This process, too, finds the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment().items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "RUNPOD_API_KEY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def fake(environment: None) -> Iterator[FakeRunpod]:  # noqa: ARG001
    with FakeRunpod(per_minute=6000, restart_s=0.1) as running:
        yield running


@pytest.fixture(scope="module")
def images(registry: Registry) -> dict[str, str]:
    """The variables that name both images."""
    return {
        f"MOOLA_IMAGE_{kind}": registry.add("someone/moola", tag=kind, text=kind)
        for kind in ("CPU", "GPU")
    }


@pytest.fixture
def account(fake: FakeRunpod, seaweed: Seaweed, images: dict[str, str], tmp_path: Path) -> Account:
    """A store of its own, in an account whose switches are off."""
    fake.clear()
    fake.on_line, fake.pull_s = lambda *_: None, 0.05
    return Account(fake, seaweed, images, tmp_path, tmp_path.name)


@dataclass
class Done:
    """A precompute run that was launched, attached to and followed from three computers."""

    account: Account
    run_id: str
    launched: str
    attached: str
    followed: str

    @property
    def manifest(self) -> Manifest:
        manifest = read_manifest(open_store(self.account.store), self.run_id)
        assert manifest is not None
        return manifest


@pytest.fixture(scope="module")
def done(
    fake: FakeRunpod,
    seaweed: Seaweed,
    images: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    """Its machine may not end itself at first, with either key: the launchers have to end it."""
    fake.fail(403, on="delete", times=2)
    account = Account(fake, seaweed, images, tmp_path_factory.mktemp("rented"), "rented")
    fake.secrets["bucket_secret"] = seaweed.environment()["AWS_SECRET_ACCESS_KEY"]
    launched = account.computer(**SHORT_GRACE).start("precompute", *YES, *DAYS, *SECRET)
    store = open_store(account.store)
    run_id = wait_for(lambda: store.children("runs"), "the run")[0]
    wait_for(lambda: newest_launch(store, run_id), "the claim")
    bare = {"MOOLA_STORE": "", "RUNPOD_TERMINATE_API_KEY": "", **dict.fromkeys(images, "")}
    bare |= SHORT_GRACE
    attached = account.computer("elsewhere", **bare).start(
        "attach", run_id, "--store", account.store
    )
    wait_for(lambda: run_state(store, run_id).state in ("running", "committed"), "the job")
    followed = account.computer("third").start("logs", run_id, "--follow")
    return Done(account, run_id, *(account.end(one) for one in (launched, attached, followed)))


def test_precompute_runs_to_commit_and_its_machine_is_gone(done: Done) -> None:
    assert f"committed {done.run_id}" in done.launched
    assert "the most this run can cost" in done.launched
    fake = done.account.fake
    assert fake.alive() == []
    (pod,) = [pod for pod in fake.pods.values() if pod.run == done.run_id]
    deletes = [call for call in fake.calls if call.operation == "delete" and call.status == 204]
    assert {call.key for call in deletes if pod.id in call.path} == {"account"}
    assert fake.most_alive[done.run_id] == 1


def test_the_log_is_shown_where_it_was_launched_and_where_it_was_attached(done: Done) -> None:
    chunks = log_records(open_store(done.account.store), done.run_id, done.manifest.attempt_id)
    messages = [f" {record.message}\n" for _, chunk in chunks for record in chunk]
    assert len(messages) > 5
    for said in (done.launched, done.attached, done.followed):
        places = [said.find(message) for message in messages]
        assert -1 not in places, messages[places.index(-1)]
        assert places == sorted(places)
    assert "machine: start container" in done.launched


def test_what_was_committed_is_pulled_and_verified(done: Done) -> None:
    computer = done.account.computer("elsewhere")
    assert "every sha256 as in the manifest" in done.account.say(
        computer, "pull", done.run_id, "pulled"
    )
    assert "0 failed" in done.account.say(computer, "verify", "pulled")


def test_the_manifest_says_what_made_it_and_what_it_cost(done: Done) -> None:
    provenance: dict[str, Any] = done.manifest.provenance
    assert provenance["image_digest"] == done.account.images["MOOLA_IMAGE_CPU"].partition("@")[2]
    assert len(provenance["git_sha"]) == 40
    assert len(provenance["spec_sha256"]) == 64
    assert provenance["inputs"] == {}
    rented = provenance["rented"]
    assert (rented["type_id"], rented["cloud"], rented["count"]) == ("cpu5c", "SECURE", 4)
    assert rented["data_center"]
    assert rented["price_per_hour"] == pytest.approx(0.144)
    assert [row["n"] for row in provenance["attempts"]] == [1]
    assert 0 < provenance["cost"] < 0.144


def test_status_list_and_cost_tell_of_a_finished_run(done: Done) -> None:
    computer = done.account.computer()
    status = json.loads(done.account.say(computer, "status", done.run_id))
    assert (status["state"], len(status["launches"])) == ("committed", 1)
    assert "committed" in done.account.say(computer, "list")
    cost = done.account.say(computer, "cost", done.run_id)
    assert "no billing records yet" in cost
    assert "cpu5c" in cost
    done.account.fake.billing_lag_s, before = 0.0, done.account.fake.billing_lag_s
    assert "no billing records yet" not in done.account.say(computer, "cost", done.run_id)
    done.account.fake.billing_lag_s = before
    assert "0 ended" in done.account.say(computer, "reap")


def test_the_same_command_again_rents_nothing(done: Done) -> None:
    n_pods = len(done.account.fake.pods)
    assert "already committed" in done.account.say(
        done.account.computer(), "precompute", *YES, *DAYS, *SECRET
    )
    assert len(done.account.fake.pods) == n_pods


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="training needs the extra `train`"
)
def test_train_runs_to_commit_on_a_rented_gpu(done: Done) -> None:
    from tests.test_train import SMALL

    account, computer = done.account, done.account.computer()
    said = account.say(
        computer, "train", *YES, *SMALL, "--set", "device=cpu", "--features", done.run_id
    )
    assert "F1, macro" in said
    run_id = next(run for run in computer.runs() if run.startswith("train-"))
    manifest = read_manifest(open_store(account.store), run_id)
    assert manifest
    provenance: dict[str, Any] = manifest.provenance
    assert provenance["image_digest"] == account.images["MOOLA_IMAGE_GPU"].partition("@")[2]
    assert provenance["rented"]["type_id"] == "NVIDIA RTX A5000"
    assert provenance["inputs"]["features"]["run"] == done.run_id
    assert "every sha256 as in the manifest" in account.say(computer, "pull", run_id, "model")
    assert account.fake.alive() == []


def test_no_secret_is_in_the_store_on_a_screen_or_in_a_request_outside_env(done: Done) -> None:
    """After all that this module did: precompute with a named secret, train with a plain one."""
    account = done.account
    secrets = {
        "AWS_SECRET_ACCESS_KEY": account.seaweed.environment()["AWS_SECRET_ACCESS_KEY"],
        "RUNPOD_API_KEY": account.fake.api_key,
        "RUNPOD_TERMINATE_API_KEY": account.fake.restricted_key,
        **{f"key of pod {pod.id}": pod.api_key for pod in account.fake.pods.values()},
    }
    calls = account.fake.calls
    creates = [
        json.loads(call.body)
        for call in calls
        if (call.operation, call.path) == ("create", "/v2/pods")
    ]
    bodies = [json.dumps({**body, "env": None}) for body in creates]
    others = [call.body for call in calls if call.operation != "create"]
    logs = [line for pod in account.fake.pods.values() for line in pod.log.texts()]
    places = {
        **account.objects(),
        "printed": "\n".join(account.printed).encode(),
        "logs": "\n".join(logs).encode(),
    }
    places["requests"] = "\n".join(bodies + others).encode()
    assert len(places) > 20
    found = [
        (name, place)
        for name, secret in secrets.items()
        for place, data in places.items()
        if secret.encode() in data
    ]
    assert found == []
    named = [body["env"] for body in creates if "precompute" in body["name"]]
    assert named[0]["AWS_SECRET_ACCESS_KEY"] == "{{ RUNPOD_SECRET_bucket_secret }}"
    assert named[0]["RUNPOD_TERMINATE_API_KEY"] == secrets["RUNPOD_TERMINATE_API_KEY"], (
        "the search finds what is there"
    )


# -- before the money --


def test_a_dry_run_prints_the_request_and_sends_nothing(account: Account) -> None:
    n_calls, n_pods = len(account.fake.calls), len(account.fake.pods)
    said = account.say(account.computer(), "precompute", "--on", "runpod", "--dry-run", *SHORT)
    shown = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert shown["request"]["cpu"] == {"id": "cpu5c", "vcpuCount": 4}
    assert shown["request"]["image"] == account.images["MOOLA_IMAGE_CPU"]
    assert shown["request"]["env"]["AWS_SECRET_ACCESS_KEY"] == "***"
    assert {call.method for call in account.fake.calls[n_calls:]} == {"GET"}
    assert len(account.fake.pods) == n_pods
    assert account.objects() == {}


@pytest.mark.parametrize(
    ("change", "args", "exit_code", "why"),
    [
        ({}, (), 3, "--yes"),
        ({"MOOLA_STORE": "file:///tmp/nowhere-at-all"}, ("--yes",), 3, "s3://bucket/prefix"),
        ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, ("--yes",), 6, "credentials"),
        (
            {"MOOLA_IMAGE_CPU": "127.0.0.1:1/someone/moola:1"},
            ("--yes",),
            3,
            "docker buildx imagetools inspect",
        ),
        ({"MOOLA_IMAGE_CPU": "{host}/someone/closed"}, ("--dry-run",), 3, "machine.registry=ID"),
        ({}, ("--yes", "--set", "machine.max_price_per_hour=0.01"), 6, "max_price_per_hour 0.01"),
        ({"RUNPOD_API_KEY": "rpa_wrong"}, ("--yes",), 6, "401"),
        ({"RUNPOD_API_KEY": ""}, ("--yes",), 6, "set RUNPOD_API_KEY"),
    ],
    ids=[
        "nobody answers",
        "a folder",
        "no keys",
        "a tag",
        "private",
        "a price cap",
        "a wrong key",
        "no key",
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    account: Account,
    registry: Registry,
    change: dict[str, str],
    args: tuple[str, ...],
    exit_code: int,
    why: str,
) -> None:
    n_pods = len(account.fake.pods)
    registry.private.add("someone/closed")
    change = {name: value.format(host=registry.host) for name, value in change.items()}
    assert why in account.say(
        account.computer(**change),
        "precompute",
        "--on",
        "runpod",
        *SHORT,
        *args,
        exit_code=exit_code,
    )
    assert len(account.fake.pods) == n_pods
    assert account.objects() == {}


# -- on the way --


def test_cancel_ends_a_run_and_its_machine(account: Account) -> None:
    launcher, store, running = account.computer(), open_store(account.store), threading.Event()
    fake = account.fake
    fake.on_line = lambda pod, text: (
        [fake.freeze(pod), running.set()] if text.startswith("#1 ") else None
    )
    process = launcher.start("precompute", *YES, *SHORT)
    assert running.wait(120)
    (run_id,) = store.children("runs")
    assert json.loads(account.say(launcher, "status", run_id))["state"] in ("running", "waiting")
    other = account.computer("elsewhere", MOOLA_WATCH__GRACE_S="1")
    assert f"{run_id}: cancelled" in account.say(other, "cancel", run_id)
    account.end(process, exit_code=130)
    assert fake.alive() == []
    assert "cancelled" in account.say(launcher, "list")


def test_reap_from_the_command_line_ends_what_a_killed_launcher_left(account: Account) -> None:
    launcher, fake = account.computer(), account.fake
    fake.fail("pull_hangs")
    process = launcher.start("precompute", *YES, *SHORT)
    wait_for(fake.alive, "the machine")
    process.kill()
    process.communicate()
    assert "at work until" in account.say(launcher, "reap")
    later = account.computer("cron", MOOLA_WATCH__START_TIMEOUT_S="0.1")
    said = account.say(later, "reap")
    assert "did not start within" in said
    assert "1 machines found, 1 ended" in said
    assert fake.alive() == []


@pytest.mark.large  # the package's client itself is in tests/test_runpod.py, always
def test_the_package_s_api_runs_a_job_on_a_gpu_and_refuses_cpus(account: Account) -> None:
    pytest.importorskip("runpod", reason="the extra `runpod` is not installed")
    computer = account.computer(MOOLA_PODS="sdk")
    assert "CPU" in account.say(computer, "precompute", *YES, *SHORT, exit_code=6)
    gpu = ("--set", "machine.cpu=null", "--set", "machine.gpu.min_cuda=null")
    assert "committed" in account.say(computer, "precompute", *YES, *SHORT, *gpu)
    (run_id,) = computer.runs()
    assert "every sha256 as in the manifest" in account.say(computer, "pull", run_id, "pulled")
    assert "no billing records" in account.say(computer, "cost", run_id)
    assert account.fake.alive() == []
    posts = {
        call.path
        for call in account.fake.calls
        if call.method == "POST" and call.operation == "create"
    }
    assert "/graphql" in posts
