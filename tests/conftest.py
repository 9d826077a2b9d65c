"""Stores for the tests: a folder, and one SeaweedFS per session; each test has its own prefix."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

# GNU OpenMP's threads wait by spinning; two test processes on two cores would wait for each other.
# Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from moola.store import PROFILE_KEY, Store, open_store
from tests import watchdog
from tests.registry import Registry
from tests.runs import submitted_run
from tests.seaweed import BUCKET, Seaweed, running_seaweed

LONGEST = {"test_train.py", "test_sweep.py", "test_package.py"}


def pytest_configure() -> None:
    """Whatever a test starts ends with this process, also if it is killed."""
    watchdog.watch()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` starts: half as many again as there are cores, as many tests wait."""
    return max(2, 3 * (os.cpu_count() or 1) // 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: at the end no worker is left alone with them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """A real S3 server, started when the first test asks for it."""
    with running_seaweed() as server:
        yield server


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A registry of images on loopback."""
    with Registry() as running:
        yield running


@pytest.fixture
def s3_environment(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables by which a process finds the server; set in this one too.

    Other variables that boto3 reads are taken out.
    """
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed.environment()


@pytest.fixture
def bare_s3_url(s3_environment: dict[str, str]) -> str:  # noqa: ARG001
    """A fresh prefix in the server's bucket, with nothing in it."""
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def s3_url(bare_s3_url: str, seaweed: Seaweed) -> str:
    """A fresh prefix in the server's bucket that was found to be complete: it has its profile."""
    prefix = bare_s3_url.rpartition("/")[2]
    seaweed.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{PROFILE_KEY}", Body=b"{}")
    return bare_s3_url


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of either kind: one contract, one test suite."""
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    return str(request.getfixturevalue("s3_url"))


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture
def run_id(store: Store) -> str:
    """A submitted precompute run without an attempt."""
    return submitted_run(store)
