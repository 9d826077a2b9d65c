"""Settings of S3: what is refused at the start, and what goes along to a machine elsewhere."""

import base64
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moola.errors import AuthError, DataError, MoolaError, TryAgainError
from moola.store import fetch_uri, open_store
from moola.store.profile import Profile
from moola.store.s3_access import S3Access, resolve_access, unreachable_reason
from moola.store.s3_client import new_client
from moola.store.s3_settings import open_session
from tests.test_launch import Launcher

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECRET = "a-secret-that-is-never-shown"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Of AWS only a pair of keys, and two files that are empty."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MOOLA_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for name in ("config", "credentials"):
        (tmp_path / name).touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    yield
    for name in [name for name in os.environ if name.startswith(("AWS_", "MOOLA_S3_"))]:
        os.environ.pop(name)


# --- variables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_CA_BUNDLE",
        "AWS_MAX_ATTEMPTS",
        "AWS_RETRY_MODE",
        "AWS_CONFIG_FILE",
        "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "MOOLA_S3_ADDRESSING",
        "MOOLA_S3_REQUEST_PAYER",
        "MOOLA_S3_CA",
    ],
)
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    without = resolve_access()
    monkeypatch.setenv(name, "")
    assert resolve_access() == without


def test_all_commands_take_empty_variables_for_unset(tmp_path: Path) -> None:
    names = ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    empty = dict.fromkeys([*names, "MOOLA_ON", "MOOLA_IMAGE_CPU", "MOOLA_PODS"], "")
    launch = Launcher(tmp_path, f"file://{tmp_path}/store", empty)
    launch("list")
    launch.env["MOOLA_STORE"] = ""
    launch("list")
    launch.env |= {"MOOLA_STORE": "s3://bucket/x", "AWS_MAX_ATTEMPTS": "1"}
    launch.env |= {"AWS_ENDPOINT_URL_S3": "", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert "the store did not answer" in launch("list", exit_code=75)


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (f"{SECRET}\n", "a blank or a line end before or after"),
        (f" {SECRET}", "a blank or a line end before or after"),
        (f"{SECRET[:5]} {SECRET[5:]}", "a blank or a line end in it"),
        (f"{SECRET}\x07", "a control character"),
        (f"{SECRET}\u201d", "a control character, or one that is not ASCII"),
    ],
)
def test_a_key_with_stray_characters_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(AuthError, match=f"{name} must be the key alone, got {fault}") as caught:
        open_store("s3://bucket/x")
    assert SECRET[5:] not in str(caught.value)


def test_a_key_in_a_file_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {SECRET} x\n"
    )
    with pytest.raises(AuthError, match="the secret key from shared-credentials-file") as caught:
        open_store("s3://bucket/x")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize("scheme", ["https", "http", "ftp"])
def test_a_password_in_an_endpoint_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    monkeypatch.setenv(name, f"{scheme}://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(DataError, match=f"{name} must be .* without user and password") as caught:
        open_store("s3://bucket/x")
    assert SECRET not in str(caught.value)


def test_a_password_elsewhere_is_not_shown_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = https://me:{SECRET}@127.0.0.1:9\n")
    with pytest.raises(DataError, match=r"~/.aws/config must be .* without user") as in_file:
        open_store("s3://bucket/x")
    with pytest.raises(DataError, match="a store URL has no user and password") as in_url:
        open_store(f"s3://AKIA:{SECRET}@bucket/x")
    assert SECRET not in f"{in_file.value} {in_url.value}"

    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(TryAgainError, match="did not answer") as in_proxy:
        open_store("s3://bucket/x")
    assert SECRET not in str(in_proxy.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_MAX_ATTEMPTS", "many", "AWS_MAX_ATTEMPTS must be a whole number from 1 on"),
        ("AWS_MAX_ATTEMPTS", "0", "AWS_MAX_ATTEMPTS must be a whole number from 1 on"),
        ("AWS_PROFILE", "nobody", "settings are not valid: .*nobody"),
        ("AWS_DEFAULT_REGION", "us east", "settings are not valid: .*us east"),
        ("MOOLA_S3_ADDRESSING", "host", "MOOLA_S3_ADDRESSING .* must be virtual or path"),
        ("MOOLA_S3_CA", "no base64!", "MOOLA_S3_CA must be a PEM file in base64"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize("endpoint", ["s3.us-west-004.backblazeb2.com", "https://", "s3://bucket"])
def test_an_endpoint_that_is_no_web_address_is_refused_with_its_form(
    monkeypatch: pytest.MonkeyPatch, name: str, endpoint: str
) -> None:
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(DataError, match=rf"{name} must be http\(s\)://host.*, got '{endpoint}'"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("path", ["/bucket", "/storage/v1/s3/bucket/"])
def test_an_endpoint_with_the_bucket_in_it_is_refused_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    """So Cloudflare shows it; all would go to a second folder of the bucket's name."""
    endpoint = f"http://127.0.0.1:9{path}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    right = endpoint.rstrip("/").removesuffix("/bucket")
    for read in (open_store, lambda url: fetch_uri(url, tmp_path)):
        with pytest.raises(DataError, match=f"must not have the bucket in it.*set it to '{right}'"):
            read("s3://bucket/x")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", right)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(TryAgainError):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("url", ["s3://[x", "file://[x/y", "s3://[::1/x"])
def test_a_url_that_is_none_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(DataError, match="a store URL must be"):
        open_store(url)


# --- what goes along to a machine -------------------------------------------------------------


def test_aws_itself_needs_its_region_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_access().environment() == {"AWS_DEFAULT_REGION": "us-east-1"}
    for region in ("eu-central-1", "cn-north-1"):
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        assert resolve_access().environment() == {"AWS_DEFAULT_REGION": region}


def test_the_region_of_other_programs_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert resolve_access().region == "eu-west-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert resolve_access().region == "eu-north-1"


def test_what_the_config_file_says_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    (tmp_path / "config").write_text(
        "[profile mine]\nregion = auto\nservices = r2\nca_bundle = "
        f"{tmp_path}/ca.pem\ns3 =\n  addressing_style = virtual\n"
        "[services r2]\ns3 =\n  endpoint_url = https://account.r2.example.com\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "mine")
    variables = resolve_access().environment()
    assert variables == {
        "AWS_DEFAULT_REGION": "auto",
        "AWS_ENDPOINT_URL_S3": "https://account.r2.example.com",
        "MOOLA_S3_ADDRESSING": "virtual",
        "MOOLA_S3_CA": base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode(),
    }

    monkeypatch.delenv("AWS_PROFILE")  # the machine has none of the files
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolve_access().environment() == variables
    client = new_client(open_session(), Profile(), attempts=1)
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bars", "Key": "k"})
    assert url.startswith("https://bars.account.r2.example.com/k?")


def test_a_bundle_that_cannot_be_sent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_bytes(bytes(20_000))
    with pytest.raises(DataError, match="AWS_CA_BUNDLE must have at most 16384 B"):
        resolve_access().environment()
    access = resolve_access()
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(DataError, match="AWS_CA_BUNDLE must be a readable PEM file"):
        access.environment()


def test_who_pays_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOLA_S3_REQUEST_PAYER", "requester")
    assert resolve_access().environment()["MOOLA_S3_REQUEST_PAYER"] == "requester"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:8333",
        "http://localhost:9000",
        "http://[::1]:9000",
        "http://0.0.0.0:9000",
        "http://10.1.2.3",
        "http://192.168.1.5:9000",
        "http://172.20.0.2:9000",
        "http://169.254.1.1",
        "http://100.64.0.1",
        "http://[fd00::1]:9000",
        "http://minio:9000",
        "http://nas.local:9000",
        "https://s3.corp.internal",
    ],
)
def test_an_endpoint_of_this_network_is_refused_for_a_machine_elsewhere(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(DataError, match="a machine elsewhere cannot reach the store's endpoint"):
        resolve_access().require_reachable()


@pytest.mark.parametrize("endpoint", ["https://s3.us-west-004.backblazeb2.com", "http://8.8.8.8"])
def test_a_public_endpoint_is_not_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    resolve_access().require_reachable()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    resolve_access().require_reachable()
    assert unreachable_reason("") is None


# --- session tokens ---------------------------------------------------------------------------


def token(expires: str | None, monkeypatch: pytest.MonkeyPatch) -> S3Access:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    if expires:
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", expires)
    return resolve_access()


def test_a_token_must_outlast_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(UTC) + timedelta(hours=5)
    access = token(f"{end:%Y-%m-%dT%H:%M:%SZ}", monkeypatch)
    assert access.has_token
    assert access.expires == end.replace(microsecond=0)

    now = access.expires - timedelta(hours=3)
    assert access.token_warning(timedelta(hours=3), now) is None
    with pytest.raises(DataError, match=r"must outlast max_runtime 6h00m, it ends in 3h00m, at 20"):
        access.token_warning(timedelta(hours=6), now)


def test_a_token_of_unknown_end_gets_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_access().token_warning(timedelta(days=9), NOW) is None
    warning = token(None, monkeypatch).token_warning(timedelta(hours=1), NOW)
    assert warning
    assert "AWS_SESSION_TOKEN ends at a time that is not known" in warning


def test_a_token_that_has_ended_here_is_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore notices by itself, and raises what is no error of its own."""
    with pytest.raises(MoolaError, match=r"has expired: .*AWS_CREDENTIAL_EXPIRATION"):
        token("2020-01-01T00:00:00Z", monkeypatch)
    with pytest.raises(AuthError, match="the session token has expired"):
        open_store("s3://bucket/x")
