"""Stores of other dialects than a complete S3's: what is found, used, refused, and said."""

import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from moola.data.loading import fetch_bars
from moola.errors import AuthError, ConflictError, DataError, ExpiredError, MoolaError
from moola.jobs.prepare import prepare_train
from moola.runs import work_limit
from moola.runs.attempt import Attempt
from moola.runs.heartbeat import BEAT_S
from moola.runs.reading import run_state
from moola.runs.records import State
from moola.runs.signals import stop_on_signals
from moola.runs.submit import describe_run, submit
from moola.specs import TrainSpec, parse_spec
from moola.store import BytesSource, Check, Store, fetch_uri, open_store
from tests import s3_proxy
from tests.moto_server import Moto, running_moto
from tests.runs import submitted_run
from tests.s3_proxy import Fault, Proxy, running_proxy, several
from tests.seaweed import BUCKET, Seaweed, running_seaweed
from tests.test_launch import Launcher
from tests.test_store import DATA, PART, SHA256, break_upload

PROFILE = "profile.json"


@pytest.fixture
def proxy(
    s3_environment: dict[str, str],
    seaweed: Seaweed,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Proxy]:
    """A proxy before SeaweedFS, that the stores opened in this test go through."""
    with running_proxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        s3_environment["AWS_ENDPOINT_URL_S3"] = proxy.url
        yield proxy


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with running_moto() as server:
        yield server


@pytest.fixture
def moto_url(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix in moto's bucket."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


def failed(check: Check) -> set[str]:
    return {probe.name for probe in check.probes if not probe.ok}


# --- what a check finds and saves -------------------------------------------------------------


@pytest.fixture
def launch(
    tmp_path: Path, bare_s3_url: str, s3_environment: dict[str, str], proxy: Proxy
) -> Launcher:
    assert s3_environment["AWS_ENDPOINT_URL_S3"] == proxy.url
    return Launcher(tmp_path, bare_s3_url, s3_environment)


def test_a_server_like_b2_is_checked_saved_and_used(
    launch: Launcher, proxy: Proxy, bare_s3_url: str, tmp_path: Path
) -> None:
    proxy.on_request = several(s3_proxy.refuses_checksum_headers, s3_proxy.refuses_conditions)
    output = launch("store", "check", exit_code=4)
    assert "limit: a key that is written once can be overwritten" in output
    assert "the store cannot do this" not in output  # the server's own words say more
    assert "InvalidArgument (400) to PutObject: Unsupported header" in output
    assert open_store(bare_s3_url).get_or_none(PROFILE) is None

    output = launch("store", "check", "--save")
    assert '"integrity":"md5","conditional":false' in output
    assert f"saved as profile.json in {bare_s3_url}" in output

    proxy.calls.clear()
    store = open_store(bare_s3_url)
    assert (store.profile.integrity, store.profile.conditional) == ("md5", False)
    store.put_once("key", b"one")
    store.upload("x", BytesSource(DATA), part_size=PART)
    store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    with pytest.raises(ConflictError):
        store.put_once("key", b"two")
    assert [call for call in proxy.calls if call.answered] == []


def test_keys_without_the_right_to_delete_do_not_decide(
    launch: Launcher, proxy: Proxy, bare_s3_url: str
) -> None:
    proxy.on_request = s3_proxy.no_deletes
    assert failed(open_store(bare_s3_url).check()) == {"delete"}
    assert '"integrity":"crc64nvme","conditional":true' in launch("store", "check", "--save")


def test_a_profile_with_which_parts_do_not_work_is_passed_over(
    proxy: Proxy, bare_s3_url: str
) -> None:
    proxy.on_request = s3_proxy.refuses_parts_with_crc64
    check = open_store(bare_s3_url).check()
    assert check.usable_profile().integrity == "md5"
    assert check.usable_profile().conditional
    assert not check.limits


def test_a_server_that_completes_nothing_is_refused_and_not_saved(
    launch: Launcher, proxy: Proxy, bare_s3_url: str
) -> None:
    proxy.on_request = s3_proxy.refuses_parts
    output = launch("store", "check", "--save", exit_code=3)
    assert "the store cannot be used: multipart" in output
    assert open_store(bare_s3_url).get_or_none(PROFILE) is None
    proxy.on_request = s3_proxy.no_fault
    assert open_store(bare_s3_url).sweep(-60) == []


def test_a_server_that_fails_for_a_while_decides_nothing(proxy: Proxy, bare_s3_url: str) -> None:
    store = open_store(bare_s3_url)

    def busy(call: s3_proxy.Call) -> None:
        if "if-none-match" in call.headers:
            call.answer(503, "SlowDown", "Please reduce your request rate.")

    proxy.on_request = busy
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    try:
        check = store.check()
    finally:
        del os.environ["AWS_MAX_ATTEMPTS"]
    with pytest.raises(MoolaError, match=r"the store failed: SlowDown"):
        check.usable_profile()


def test_settings_that_a_person_tuned_stay_in_the_profile(s3_url: str) -> None:
    open_store(s3_url).put(PROFILE, b'{"read_timeout_s": 7200, "integrity": "md5"}')
    profile = open_store(s3_url).check().usable_profile()
    assert (profile.read_timeout_s, profile.integrity) == (7200, "crc64nvme")


# --- a store without a profile ----------------------------------------------------------------


def test_the_first_write_probes_the_store_once(proxy: Proxy, bare_s3_url: str) -> None:
    store = open_store(bare_s3_url)
    store.put_once("key", b"one")
    assert store.profile.integrity == "crc64nvme"

    n_calls = len(proxy.calls)
    open_store(bare_s3_url).put_once("other", b"two")
    assert len(proxy.calls) == n_calls + 2
    assert set(store.children("")) == {PROFILE, "key", "other"}


@pytest.mark.parametrize("dialect", [s3_proxy.overwrites, s3_proxy.overwrites_in_parts])
@pytest.mark.parametrize("write", [
    lambda store: store.put("key", b"x"),
    lambda store: store.create("key", b"x"),
    lambda store: store.upload("key", BytesSource(DATA), part_size=PART),
], ids=["put", "create", "upload"])  # fmt: skip
def test_a_server_that_overwrites_is_never_used_without_a_word(
    proxy: Proxy,
    seaweed: Seaweed,
    bare_s3_url: str,
    dialect: Callable[[object], Fault],
    write: Callable[[Store], object],
) -> None:
    proxy.on_request = dialect(seaweed.client())
    with pytest.raises(DataError, match=r"overwritten by a second writer .*check --save` accepts"):
        write(open_store(bare_s3_url))
    assert open_store(bare_s3_url).get_or_none("key") is None


def test_keys_that_may_only_read_can_read(proxy: Proxy, seaweed: Seaweed, bare_s3_url: str) -> None:
    prefix = bare_s3_url.rpartition("/")[2]
    seaweed.client().put_object(Bucket=BUCKET, Key=f"{prefix}/runs/a/spec.json", Body=b"{}")
    proxy.on_request = s3_proxy.read_only
    store = open_store(bare_s3_url)
    assert store.get("runs/a/spec.json") == b"{}"
    assert store.children("runs") == ["a"]
    with pytest.raises(AuthError, match=r"they lack s3:PutObject"):
        store.put("key", b"x")


# --- keys that may not list -------------------------------------------------------------------


def test_without_the_right_to_list_all_but_lists_works(
    proxy: Proxy, bare_s3_url: str, tmp_path: Path
) -> None:
    proxy.on_request = s3_proxy.no_listing
    proxy.on_reply = s3_proxy.denies_missing
    store = open_store(bare_s3_url)
    store.put_once("key", b"one")  # probed first, as there is no profile that could be seen
    assert open_store(bare_s3_url).get_or_none("none") is None
    assert store.head("none") is None
    with pytest.raises(ConflictError):
        store.put_once("key", b"two")

    store.upload("x", BytesSource(DATA), part_size=PART, journal=tmp_path / "journal")
    store.pull("x", tmp_path / "x", size=len(DATA), sha256=SHA256)
    for lists in (lambda: store.children(""), lambda: store.sweep(0)):
        with pytest.raises(AuthError, match=r"they lack s3:ListBucket.*policies: Stores"):
            lists()


def test_an_object_that_is_denied_is_not_taken_for_missing(proxy: Proxy, s3_url: str) -> None:
    store = open_store(s3_url)
    store.put("key", b"x")

    def deny(call: s3_proxy.Call) -> None:
        if call.key.endswith("/key"):
            call.answer(403, "AccessDenied", "Access Denied")

    proxy.on_request = deny
    for read in (store.get_or_none, store.head):
        with pytest.raises(AuthError, match=r"lack s3:GetObject, or, if the object does"):
            read("key")


def test_nothing_that_can_be_read_proves_nothing(proxy: Proxy, bare_s3_url: str) -> None:
    """Keys of another bucket: all is denied, also what exists."""
    proxy.on_request = lambda call: call.answer(403, "AccessDenied", "Access Denied")
    with pytest.raises(AuthError, match=r"they lack s3:GetObject"):
        open_store(bare_s3_url).get_or_none("key")


# --- codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "kind", "message"),
    [
        (s3_proxy.other_region, DataError, "set AWS_DEFAULT_REGION=eu-central-1: Authorization"),
        (s3_proxy.token_expired, AuthError, "the session token has expired: .*moola attach RUN"),
        (s3_proxy.wrong_clock, AuthError, "the clock of this machine is wrong"),
    ],
)
def test_what_is_wrong_with_every_request_is_said_at_the_start(
    proxy: Proxy, s3_url: str, dialect: Fault, kind: type[MoolaError], message: str
) -> None:
    proxy.on_request = dialect
    with pytest.raises(kind, match=message) as caught:
        open_store(s3_url)
    assert "credentials" not in str(caught.value)


@pytest.mark.parametrize(
    ("dialect", "kind", "message"),
    [
        (s3_proxy.refuses_conditions, DataError, "`moola store check --save`.* 501"),
        (s3_proxy.refuses_checksum_headers, DataError, "`moola store check --save`.*Unsupported"),
        (s3_proxy.kms_denied, AuthError, "KMS key.*kms:GenerateDataKey"),
        (s3_proxy.token_expired, AuthError, "the session token has expired"),
    ],
)
def test_what_a_server_refuses_in_the_middle_is_named(
    proxy: Proxy, s3_url: str, dialect: Fault, kind: type[MoolaError], message: str
) -> None:
    store = open_store(s3_url)
    proxy.on_request = dialect
    n_calls = len(proxy.calls)
    with pytest.raises(kind, match=message.replace(" 501", r"NotImplemented \(501\)")):
        store.create("key", b"x")
    assert len(proxy.calls) == n_calls + 1  # it is not tried again


@pytest.mark.parametrize("dialect", [s3_proxy.other_region, s3_proxy.wrong_clock])
def test_an_answer_without_a_body_is_explained_by_a_second_question(
    proxy: Proxy, s3_url: str, dialect: Fault
) -> None:
    store = open_store(s3_url)
    proxy.on_request = dialect
    with pytest.raises(MoolaError, match=r"AWS_DEFAULT_REGION=eu-central-1|the clock"):
        store.head("key")


# --- uploads in parts -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [501, 405, 403])
def test_a_killed_upload_that_cannot_be_looked_up_begins_anew(
    proxy: Proxy, s3_url: str, tmp_path: Path, status: int
) -> None:
    def no_lookup(call: s3_proxy.Call) -> None:
        if call.lists_parts:
            call.answer(status, "AccessDenied" if status == 403 else "NotImplemented")

    store = open_store(s3_url)
    break_upload(store, tmp_path / "journal")
    proxy.on_request = no_lookup
    stored = store.upload(
        "attempt-2/x", BytesSource(DATA), journal=tmp_path / "journal", part_size=PART
    )
    assert (stored.key, stored.sha256) == ("attempt-2/x", SHA256)
    proxy.on_request = s3_proxy.no_fault
    assert store.sweep(-60) == []


def test_a_check_says_that_killed_uploads_begin_anew(proxy: Proxy, bare_s3_url: str) -> None:
    proxy.on_request = s3_proxy.no_list_parts
    check = open_store(bare_s3_url).check()
    assert failed(check) == {"list parts"}
    assert check.usable_profile().conditional


# --- plain files ------------------------------------------------------------------------------


def test_a_plain_file_is_read_and_nothing_else_of_its_bucket(
    proxy: Proxy, seaweed: Seaweed, tmp_path: Path
) -> None:
    seaweed.client().put_object(Bucket=BUCKET, Key="bars//of 2024/nq.csv", Body=b"bars")
    proxy.on_request = several(s3_proxy.no_listing, s3_proxy.read_only)
    path = fetch_uri(f"s3://{BUCKET}/bars//of 2024/nq.csv", tmp_path)
    assert path.read_bytes() == b"bars"
    assert {call.key for call in proxy.calls} == {"bars//of 2024/nq.csv"}
    assert not any(name.startswith("x-amz-checksum") for c in proxy.calls for name in c.headers)


def test_files_of_one_name_and_versions_of_one_file_do_not_meet(
    proxy: Proxy, seaweed: Seaweed, tmp_path: Path
) -> None:
    assert proxy.calls == []
    paths = []
    for key, data in [("a/bars.csv", b"a1"), ("b/bars.csv", b"b1"), ("a/bars.csv", b"a2")]:
        seaweed.client().put_object(Bucket=BUCKET, Key=key, Body=data)
        paths.append(fetch_uri(f"s3://{BUCKET}/{key}", tmp_path))
    assert [path.read_bytes() for path in paths] == [b"a1", b"b1", b"a2"]
    assert {path.name for path in paths} == {"bars.csv"}


def test_what_is_fetched_is_marked_as_used_before_a_byte_of_it_comes(
    proxy: Proxy, seaweed: Seaweed, tmp_path: Path
) -> None:
    """Bars, of one file or several, and labels: no other process may remove them meanwhile."""
    for name in ("one.csv", "two.csv"):
        seaweed.client().put_object(Bucket=BUCKET, Key=f"marked/{name}", Body=b"bars")
    work = tmp_path / "work"
    seen: list[bool] = []

    def look(call: s3_proxy.Call) -> None:
        if call.method == "GET" and call.key:
            seen.append(work in work_limit.registered)

    proxy.on_request = look
    try:
        for name in ("one.csv", "*.csv"):
            fetch_bars(f"s3://{BUCKET}/marked/{name}", work / "fetched")
            assert seen
            assert all(seen)
            seen.clear()
            work_limit.registered.discard(work)

        spec = parse_spec(
            TrainSpec, {"labels": {"source": f"s3://{BUCKET}/marked/one.csv"}}, place="test"
        )
        with pytest.raises(DataError):  # they are no labels
            prepare_train(spec, open_store(tmp_path.as_uri()), work)
        assert seen == [True]
    finally:
        work_limit.registered.discard(work)


def test_a_file_that_changes_while_it_is_fetched_is_refused(
    proxy: Proxy, seaweed: Seaweed, tmp_path: Path
) -> None:
    seaweed.client().put_object(Bucket=BUCKET, Key="c/bars.csv", Body=b"first")

    def change(call: s3_proxy.Call) -> None:
        if call.method == "GET":
            seaweed.client().put_object(Bucket=BUCKET, Key="c/bars.csv", Body=b"other")

    proxy.on_request = change
    with pytest.raises(DataError, match=r"s3://.*bars.csv could not be read: .*was changed"):
        fetch_uri(f"s3://{BUCKET}/c/bars.csv", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_who_reads_can_pay(
    proxy: Proxy, seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweed.client().put_object(Bucket=BUCKET, Key="paid/bars.csv", Body=b"bars")
    proxy.on_request = s3_proxy.requester_pays_only
    with pytest.raises(AuthError, match=r"s3:GetObject"):
        fetch_uri(f"s3://{BUCKET}/paid/bars.csv", tmp_path)
    monkeypatch.setenv("MOOLA_S3_REQUEST_PAYER", "requester")
    assert fetch_uri(f"s3://{BUCKET}/paid/bars.csv", tmp_path).read_bytes() == b"bars"
    monkeypatch.setenv("MOOLA_S3_REQUEST_PAYER", "owner")
    with pytest.raises(DataError, match=r"MOOLA_S3_REQUEST_PAYER must be requester"):
        fetch_uri(f"s3://{BUCKET}/paid/bars.csv", tmp_path)


@pytest.mark.usefixtures("s3_environment")
def test_a_private_authority_is_trusted_here_and_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moola.store.s3_access import resolve_access

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    certificate.cert_chain_pems[0].write_to_path(paths["cert"])
    certificate.private_key_pem.write_to_path(paths["key"])
    with running_seaweed(tls=(paths["cert"], paths["key"])) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(paths["ca"]))
        open_store(f"s3://{BUCKET}/tls").put("bars.csv", b"bars")
        assert fetch_uri(f"s3://{BUCKET}/tls/bars.csv", tmp_path).read_bytes() == b"bars"

        variables = resolve_access().environment()
        monkeypatch.delenv("AWS_CA_BUNDLE")
        paths["ca"].unlink()
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert fetch_uri(f"s3://{BUCKET}/tls/bars.csv", tmp_path).read_bytes() == b"bars"
        assert resolve_access().environment() == variables  # and on to a further one


# --- another server ---------------------------------------------------------------------------


def test_a_server_that_checks_no_bytes_is_not_used_without_a_word(moto_url: str) -> None:
    with pytest.raises(DataError, match=r"does not verify what it is sent.*check --save` accepts"):
        open_store(moto_url).put("key", b"x")


def test_all_of_it_runs_on_moto(tmp_path: Path, moto_url: str, moto: Moto) -> None:
    launch = Launcher(tmp_path, moto_url, moto.environment())
    assert "limit: the server does not verify" in launch("store", "check", exit_code=4)
    assert '"conditional":true' in launch("store", "check", "--save")
    launch("precompute", "--set", "synthetic.end=2025-01-17")
    (run_id,) = launch.runs()
    launch("verify", run_id)
    launch("pull", run_id, str(tmp_path / "pulled"))
    assert list(tmp_path.glob("pulled/*.npy"))

    break_upload(open_store(moto_url), tmp_path / "journal")
    assert "attempt-1/x" in launch("store", "sweep", "--older-than-hours", "0")


def test_a_server_of_virtual_hosts_is_spoken_to_as_it_wants(
    moto_url: str, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def to_loopback(host: str, *args: object, **kwargs: object) -> object:
        is_ours = isinstance(host, str) and host.endswith(".localhost")
        return look_up("127.0.0.1" if is_ours else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", to_loopback)
    with running_proxy(moto.endpoint) as proxy:
        proxy.on_request = s3_proxy.virtual_hosts_only(BUCKET)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url.replace("127.0.0.1", "localhost"))
        with pytest.raises(MoolaError, match=r"SecondLevelDomainForbidden"):
            open_store(moto_url)

        monkeypatch.setenv("MOOLA_S3_ADDRESSING", "virtual")
        store = open_store(moto_url)
        store.save_profile(store.check().usable_profile())
        store.put_once("key", b"x")
        assert open_store(moto_url).get("key") == b"x"

        monkeypatch.setenv("MOOLA_S3_ADDRESSING", "upside-down")
        with pytest.raises(DataError, match=r"MOOLA_S3_ADDRESSING .* must be virtual or path"):
            open_store(moto_url)


# --- stores that keep all versions ------------------------------------------------------------


def test_only_status_and_heartbeat_are_written_again(
    proxy: Proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The figures of docs/pages/stores.md: two objects a beat at most, two versions of status."""
    monkeypatch.setenv("MOOLA_BEAT_S", "0.1")
    store = open_store(s3_url)
    run_id, document = describe_run("precompute", {"windows": "stored"}, {})
    submit(store, run_id, document)
    proxy.calls.clear()
    with Attempt(store, run_id, work=tmp_path):
        for number in range(20):
            logging.getLogger("moola").warning("line %d", number)
            time.sleep(0.1)

    writes = Counter(call.key for call in proxy.calls if call.method == "PUT")
    n_beats = next(n for key, n in writes.items() if key.endswith("heartbeat.json"))
    n_chunks = sum("/logs/" in key for key in writes)
    several_times = {key.rpartition("/")[2] for key, n in writes.items() if n > 1}
    assert several_times == {"status.json", "heartbeat.json"}
    assert next(n for key, n in writes.items() if key.endswith("status.json")) == 2
    assert 2 <= n_beats <= 25
    assert 1 <= n_chunks <= n_beats + 2  # and twice at the end
    assert 3600 / BEAT_S == 720


# --- a token that expires in the middle -----------------------------------------------------------


def test_a_token_that_expires_in_the_middle_ends_the_attempt_as_what_it_is(
    proxy: Proxy, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is not gone on with: nothing of it could be kept."""
    monkeypatch.setenv("MOOLA_BEAT_S", "0.05")
    store = open_store(s3_url)
    run_id = submitted_run(store)

    def work() -> None:
        with stop_on_signals(), Attempt(store, run_id, work=tmp_path):
            proxy.on_request = s3_proxy.token_expired
            time.sleep(60)
            pytest.fail("the attempt went on")

    with pytest.raises(ExpiredError, match=r"the session token has expired: .*moola attach RUN"):
        work()


def test_a_token_that_is_renewed_while_the_attempt_ends_leaves_that_as_the_reason(
    proxy: Proxy, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_BEAT_S", "0.05")
    store = open_store(s3_url)
    run_id = submitted_run(store)

    def work() -> None:
        with stop_on_signals(), Attempt(store, run_id, work=tmp_path):
            proxy.on_request = s3_proxy.token_expired
            try:
                time.sleep(60)
            finally:
                proxy.on_request = s3_proxy.no_fault

    with pytest.raises(ExpiredError):
        work()
    state = run_state(store, run_id)
    assert state.state is State.FAILED
    assert state.status is not None
    assert state.status.exit_code == AuthError.exit_code
    assert "the session token has expired" in state.reason
