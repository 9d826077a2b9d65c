"""moto as a server of S3 and IAM: a second server of its own kind, beside SeaweedFS.

It keeps everything in memory, honours conditions, checks no checksums, and no signatures unless
policies are enforced. It ends with the test process: see tests/watchdog.py.
"""

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3

from tests.ports import free_ports
from tests.seaweed import BUCKET

START_TIMEOUT_S = 120.0
KEY = "testing"  # any will do while policies are not enforced


@dataclass(frozen=True)
class Moto:
    """A running server."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        """The variables by which boto3 finds it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def aws_client(self, service: str) -> Any:
        """boto3's client of s3 or iam."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
        )

    @contextlib.contextmanager
    def enforcing(self) -> Iterator[None]:
        """Policies and signatures hold inside the block."""
        self._set_free_actions("0")
        try:
            yield
        finally:
            self._set_free_actions("inf")

    def _set_free_actions(self, count: str) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/reset-auth",
            data=count.encode(),
            headers={"Content-Type": "text/plain"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def running_moto() -> Iterator[Moto]:
    """Start a server with one bucket."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        moto = Moto(f"http://127.0.0.1:{port}")
        _wait(process, moto)
        moto.aws_client("s3").create_bucket(Bucket=BUCKET)
        yield moto
    finally:
        process.kill()
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", moto: Moto) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"{moto.endpoint}/moto-api/data.json", timeout=10).close()
            return
        except OSError:
            assert process.poll() is None, "moto did not start: is moto[s3] in this environment?"
            assert time.monotonic() < deadline
            time.sleep(0.1)
