"""A real MLflow server on SQLite, in an environment of its own: MLflow takes no pyarrow 26."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ports import free_ports
from tests.tools import tool

PACKAGE = "mlflow==3.17.2"  # whose server is told below where its database is
PATIENCE_S = 300


@contextlib.contextmanager
def running_mlflow(folder: Path) -> Iterator[str]:
    """The address of a server that answers until the block ends.

    Skips the test where no index of packages answers.
    """
    python = _installed(folder / "environment")
    (port,) = free_ports(1)
    # What `mlflow server` runs and sets, without the seconds that it takes itself.
    variables = {
        **os.environ,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [python, "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--port", str(port)]
    log = folder / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(server, address, log)
        yield address
    finally:
        server.terminate()
        server.wait()


def _installed(environment: Path) -> str:
    """An environment with the server; -> its Python."""
    uv = tool("uv")
    made = subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
    assert made.returncode == 0
    python = str(environment / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", python, PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} could not be installed: {done.stderr[-300:]}")
    return python


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    """And has made its tables, which it does for the first request that reads one."""
    give_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_at:
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            request = {"max_results": 1}
            answer = httpx.post(
                f"{address}/api/2.0/mlflow/experiments/search", json=request, timeout=PATIENCE_S
            )
            if answer.status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise AssertionError(f"the server does not answer: {log.read_text()[-3000:]}")
