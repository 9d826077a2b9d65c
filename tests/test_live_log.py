"""What a machine's live log tells of its end, and what it does not."""

from datetime import UTC, datetime

import pytest

from moola.jobs.entry import exit_code_of_line
from moola.launch.rented.live_log import ending_in, with_last_lines
from moola.providers.base import LogLine

NAME = "ghcr.io/me/pull-error-manifest"
IMAGE = f"{NAME}@sha256:{'0' * 64}"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
END = "supervisor: the job ended with exit code {}; ending this machine"


def line(text: str, source: str = "system") -> LogLine:
    return LogLine("id", source, NOW, text)  # type: ignore[arg-type]


def state_after(*texts: str, source: str = "system") -> str | None:
    ending = ending_in([line(text, source) for text in texts], IMAGE)
    return ending.state if ending else None


@pytest.mark.parametrize(
    "text",
    [
        f"error pulling image: pull access denied for {NAME}, repository does not exist",
        f"Error response from daemon: manifest for {IMAGE} not found: manifest unknown",
        'failed to pull image: Head "https://ghcr.io/v2/x": unauthorized',
        "error pulling image: unexpected status from HEAD request: 403 Forbidden",
        "failed to resolve reference: failed to fetch manifest: 404 Not Found",
        "no matching manifest for linux/amd64 in the manifest list entries",
        "error starting container: exec format error",
        'OCI runtime create failed: exec: "python": executable file not found in $PATH',
        'OCI runtime create failed: exec: "/app/run": stat /app/run: no such file or directory',
        "failed to pull image: failed to fetch anonymous token: 401 Unauthorized",
    ],
)
def test_an_image_that_no_host_can_run_ends_the_launch_for_good(text: str) -> None:
    assert state_after(f"create container {IMAGE}", text) == "launch_failed"
    ending = ending_in([line(text)], IMAGE)
    assert ending is not None
    assert (ending.exit_code, text in ending.reason) == (6, True)


@pytest.mark.parametrize(
    "text",
    [
        "error pulling image: dial tcp: lookup ghcr.io: no such host",
        "error pulling image: toomanyrequests: you have reached your pull rate limit",
        "failed to register layer: open /var/lib/docker: permission denied",
        "failed to pull image: write /var/lib/docker/tmp: no space left on device",
        "OCI runtime create failed: nvidia-container-cli: unsatisfied condition: cuda>=13.0",
        "error creating container: nvml error: driver/library version mismatch",
        "OCI runtime create failed: nvidia-container-cli: initialization error: load library "
        "failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory",
        "error starting container: error mounting /dev/nvidia0: no such file or directory",
        "failed to pull image: lookup registry-1.docker.io: host not found",
        "failed to pull image: received unexpected HTTP status: 503 Service Unavailable: not found",
        "error pulling image: filesystem layer verification failed for digest sha256:1",
        "failed to fetch anonymous token: net/http: TLS handshake timeout",
        'Error response from daemon: Get "https://ghcr.io/v2/": net/http: request canceled',
        'Error response from daemon: Conflict. The container name "/x" is already in use',
    ],
)
def test_what_another_host_may_do_better_ends_as_a_lost_machine(text: str) -> None:
    assert state_after(f"create container {IMAGE}", text) == "infra_lost"


@pytest.mark.parametrize(
    "text",
    [
        f"create container {IMAGE}",
        f"still fetching image {IMAGE}",
        f"image pull: {NAME}: pending",
        "Pulling fs layer",
        "Status: Downloaded newer image",
        f"start container {IMAGE}: begin",
    ],
)
def test_what_hosts_say_of_a_pull_that_works_is_no_end(text: str) -> None:
    assert state_after(text) is None


def test_a_pull_that_works_in_the_end_is_no_end() -> None:
    failure = "error pulling image: i/o timeout"
    assert state_after(failure, f"start container {IMAGE}") is None
    assert state_after(f"start container {IMAGE}", failure) == "infra_lost"


def test_a_job_may_speak_of_images_as_it_likes() -> None:
    assert state_after("error pulling image: denied", source="container") is None


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (3, "failed"),
        (6, "failed"),
        (75, "failed"),
        (124, "timed_out"),
        (143, "terminated"),
        (0, None),
    ],
)
def test_the_entry_point_s_last_line_tells_how_the_job_ended(code: int, state: str | None) -> None:
    assert state_after("#1 INFO begin", END.format(code), source="container") == state
    ending = ending_in([line(END.format(code), "container")], IMAGE)
    assert ending is None or ending.exit_code == code


@pytest.mark.parametrize("text", [f"#3 INFO {END.format(3)}", f"{END.format(3)}?", "supervisor: x"])
def test_other_lines_tell_no_exit_code(text: str) -> None:
    assert exit_code_of_line(text) is None


def test_the_last_lines_are_quoted_without_what_a_terminal_would_act_on() -> None:
    lines = [line(f"line {number}") for number in range(30)] + [line("\x1b[2Jgone\r" + "x" * 999)]
    reason = with_last_lines("the machine is gone", lines)
    first, *quoted = reason.splitlines()
    assert first == "the machine is gone; the machine's last lines:"
    assert quoted[0] == "line 11"
    assert quoted[-1].startswith("gonexxx")
    assert len(quoted[-1]) == 300
    assert with_last_lines("the machine is gone", []) == "the machine is gone"
