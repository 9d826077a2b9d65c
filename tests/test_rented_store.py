"""The store as a rented machine reaches it: what travels, what ends, what is private."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moola.errors import DataError
from moola.launch.rented.request import pod_environment
from moola.launch.rented.store_access import require_reachable, store_warnings, token_travels
from moola.launch.settings import Settings
from moola.providers.runpod.rest import RestPods
from moola.runs.launches import new_launch
from moola.specs import PrecomputeMachine
from moola.store import s3_access
from moola.store.s3_access import resolve_access

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA-example", "AWS_SECRET_ACCESS_KEY": "the-secret-value"}
TOKEN = {"AWS_SESSION_TOKEN": "the-token"}
STORE = "s3://bucket/moola"
HERE = "http://127.0.0.1:1"
ELSEWHERE = "https://api.example.com"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No settings of AWS but keys; -> where ~/.aws/config would be."""
    for name in (
        "AWS_SESSION_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_MAX_ATTEMPTS",
        "AWS_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    return config


def environment(machine: PrecomputeMachine, **variables: str) -> dict[str, str]:
    document = machine.model_dump(mode="json")
    image = "img@sha256:" + "0" * 64
    launch = new_launch(STORE, "precompute-0123456789ab", 1, "precompute", image, document)
    return pod_environment(Settings(store=STORE), launch, machine, 0.0, {**KEYS, **variables})


def test_what_the_config_file_says_of_the_store_reaches_the_machine(
    plain_environment: Path,
) -> None:
    plain_environment.write_text(
        "[default]\nregion = eu-central-003\n"
        "endpoint_url = https://s3.eu-central-003.backblazeb2.com\n"
        "s3 =\n    addressing_style = path\n"
    )
    variables = environment(PrecomputeMachine())
    assert variables["AWS_ENDPOINT_URL_S3"] == "https://s3.eu-central-003.backblazeb2.com"
    assert variables["AWS_DEFAULT_REGION"] == "eu-central-003"
    assert variables["MOOLA_S3_ADDRESSING"] == "path"


def test_an_empty_variable_is_not_sent() -> None:
    variables = environment(PrecomputeMachine(), AWS_SESSION_TOKEN="", AWS_MAX_ATTEMPTS=" ")
    assert {"AWS_SESSION_TOKEN", "AWS_MAX_ATTEMPTS"}.isdisjoint(variables)


def test_a_token_goes_with_the_key_it_belongs_to_alone() -> None:
    assert environment(PrecomputeMachine(), **TOKEN)["AWS_SESSION_TOKEN"] == "the-token"
    of_the_provider = PrecomputeMachine(
        secrets={"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    )
    assert "AWS_SESSION_TOKEN" not in environment(of_the_provider, **TOKEN)
    assert not token_travels(of_the_provider, TOKEN)


def test_a_private_authority_is_sent_and_the_system_s_own_bundle_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where all programs are pointed to the system's bundle, it is no private authority."""
    monkeypatch.setattr(s3_access, "SYSTEM_BUNDLES", (str(tmp_path / "system.crt"),))
    for name, is_sent in (("system.crt", False), ("private.pem", True)):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / name))
        assert ("MOOLA_S3_CA" in environment(PrecomputeMachine())) == is_sent


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9000", "http://minio:9000", "https://192.168.1.7", "http://[::1]:1"],
)
def test_an_endpoint_that_only_this_network_reaches_is_refused_for_a_machine_elsewhere(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(DataError, match=r"cannot reach the store's endpoint .*--on local"):
        require_reachable(RestPods("key", base_url=ELSEWHERE))
    assert require_reachable(RestPods("key", base_url=HERE)).endpoint == endpoint


def test_a_public_endpoint_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://account.r2.cloudflarestorage.com")
    assert require_reachable(RestPods("key", base_url=ELSEWHERE)).endpoint
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert require_reachable(RestPods("key", base_url=ELSEWHERE)).endpoint is None


def test_a_token_is_compared_with_the_longest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PrecomputeMachine(max_runtime=timedelta(hours=2))
    assert store_warnings(resolve_access(), machine, KEYS) == ()

    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
    (warning,) = store_warnings(resolve_access(), machine, TOKEN)
    assert "not known" in warning

    for hours, is_enough in ((1, False), (3, True)):
        end = datetime.now(UTC) + timedelta(hours=hours)
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", end.isoformat())
        if is_enough:
            assert store_warnings(resolve_access(), machine, TOKEN) == ()
        else:
            with pytest.raises(DataError, match=r"must outlast max_runtime 2h"):
                store_warnings(resolve_access(), machine, TOKEN)


def test_of_a_token_that_is_the_provider_s_secret_nobody_knows_the_end() -> None:
    machine = PrecomputeMachine(secrets={"AWS_SESSION_TOKEN": "token"})
    (warning,) = store_warnings(resolve_access(), machine, KEYS)
    assert "not known" in warning
