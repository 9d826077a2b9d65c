"""What a machine's live log tells of its end, where the store tells nothing.

A host that cannot pull the image, or a job that cannot reach the store, leaves no status. What can
be known of it stands in the log alone, which goes with the machine.
"""

import re
import time
from collections.abc import Sequence

from moola.errors import EXIT_CANCELLED, EXIT_TERMINATED, EXIT_TIME_LIMIT, LaunchError
from moola.jobs.entry import exit_code_of_line
from moola.launch.rented.verdict import Ending
from moola.launch.run_log import LiveLines
from moola.providers.base import LogLine, PodApi
from moola.text import shortened

LAST_LINES = 20  # quoted as a reason
MAX_CHARACTERS = 300  # of a line that is quoted
POLL_S = 0.05

STATES = {
    EXIT_TIME_LIMIT: "timed_out",
    EXIT_CANCELLED: "cancelled",
    EXIT_TERMINATED: "terminated",
}

# Lines of the machine itself, without the image's name. Docker's words, as hosts pass them on.
STARTED = re.compile(r"\bstart container\b", re.IGNORECASE)
PULL_FAILED = re.compile(
    r"\b(error|failed|failure|unable)\b.*\b(pull(ing)?|fetch(ing)?|image|manifest|layer)\b"
    r"|\b(pull(ing)?|fetch(ing)?|image|manifest|layer)\b.*\b(error|failed|failure)\b"
    r"|\bpull access denied\b|\bmanifest unknown\b|\bno matching manifest\b|\bno such image\b"
    r"|\btoomanyrequests\b|\bunauthorized\b|\baccess to the resource is denied\b",
    re.IGNORECASE,
)
IMAGE_AT_FAULT = re.compile(
    r"\bunauthorized\b|\bauthentication required\b|(?<!permission )\bdenied\b|\b403 forbidden\b"
    r"|\bno basic auth credentials\b|\b(manifest|name) unknown\b|\bno matching manifest\b"
    r"|\b404 not found\b|\b(manifest|repository|image)\b.*\bnot found\b|\bdoes not exist\b"
    r"|\binvalid reference format\b",
    re.IGNORECASE,
)
START_FAILED = re.compile(
    r"\bOCI runtime create failed\b|\bfailed to create (shim )?task\b|\bnvidia-container-cli\b"
    r"|\bcould not select device driver\b|\bunsatisfied condition\b|\bError response from daemon\b"
    r"|\b(error|failed)\b.*\b(creating|starting|create|start) (the )?container\b",
    re.IGNORECASE,
)
PROGRAM_AT_FAULT = re.compile(  # other files that are missing are the host's, such as its driver
    r"\bexec format error\b|\bexecutable file not found\b"
    r"|\bexec:? .*\bno such file or directory\b",
    re.IGNORECASE,
)
NETWORK_AT_FAULT = re.compile(
    r"\blookup\b|\bdial tcp\b|\btime(d )?-?out\b|\bdeadline exceeded\b"
    r"|\bconnection (reset|refused)\b|\bunexpected EOF\b|\btoomanyrequests\b|\b(429|5\d\d) [A-Z]",
    re.IGNORECASE,
)


def ending_in(lines: Sequence[LogLine], image: str) -> Ending | None:
    """How an attempt has ended by its machine's log; None where that does not tell.

    What another host would do no better ends as launch_failed or failed, and is not retried.
    """
    return _end_of_job(lines) or _failure_of_host(lines, image)


def _end_of_job(lines: Sequence[LogLine]) -> Ending | None:
    """By the last line of `moola.jobs.entry`, of a job whose end could not be stored."""
    for line in reversed(lines):
        exit_code = exit_code_of_line(line.text) if line.source == "container" else None
        if exit_code:
            state = STATES.get(exit_code, "failed")
            reason = f"the job ended with exit code {exit_code} and could not record why"
            return Ending(state, reason, exit_code)
    return None


def _failure_of_host(lines: Sequence[LogLine], image: str) -> Ending | None:
    """A pull or a start of the container that failed, and was not followed by one that worked."""
    ending: Ending | None = None
    for line in lines:
        if line.source != "system":
            continue
        text = _without_image(line.text, image)
        if PULL_FAILED.search(text):
            what = "the host could not pull the image"
            is_permanent = bool(IMAGE_AT_FAULT.search(text)) and not NETWORK_AT_FAULT.search(text)
            ending = _ending_of_host(what, line, is_permanent=is_permanent)
        elif START_FAILED.search(text):
            what = "the host could not start the container"
            ending = _ending_of_host(what, line, is_permanent=bool(PROGRAM_AT_FAULT.search(text)))
        elif STARTED.search(text):
            ending = None
    return ending


def _ending_of_host(what: str, line: LogLine, *, is_permanent: bool) -> Ending:
    reason = f"{what}: {_quoted_line(line)}"
    if is_permanent:
        return Ending("launch_failed", reason, LaunchError.exit_code)
    return Ending("infra_lost", reason)


def _without_image(text: str, image: str) -> str:
    """A line without the image's name, whose words say nothing of what happened."""
    name = image.partition("@")[0]
    for part in (image, name, name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name):
        text = text.replace(part, "")
    return text


# --- the lines themselves -------------------------------------------------------------------------


def with_last_lines(reason: str, lines: Sequence[LogLine]) -> str:
    """A reason, and the last lines of the machine's log below it."""
    quoted = [_quoted_line(line) for line in lines[-LAST_LINES:]]
    return "\n".join([f"{reason}; the machine's last lines:", *quoted]) if quoted else reason


def read_last_lines(pods: PodApi, pod_id: str, within_s: float) -> tuple[LogLine, ...]:
    """The log of a machine that nobody has followed, as far as it comes within a time."""
    live_lines = LiveLines(pods, pod_id)
    give_up_at = time.monotonic() + within_s
    n_lines = -1
    try:
        while time.monotonic() < give_up_at:
            lines = live_lines.recent()
            if lines and len(lines) == n_lines:
                break
            n_lines = len(lines)
            time.sleep(POLL_S)
        return live_lines.recent()
    finally:
        live_lines.close()


def _quoted_line(line: LogLine) -> str:
    return shortened(line.text, MAX_CHARACTERS)
