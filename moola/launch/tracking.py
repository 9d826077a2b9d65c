"""Tells MLflow of runs that have ended, for people who compare runs there.

Whoever sees a run end does, as with notices; `tracked.json` of the attempt is the claim, made once
the server has answered and before the run is sent. Its address may hold a password, so it goes to
no machine, into no document and no message. What fails is said in one line, and fails nothing else.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from moola.errors import DataError, MoolaError, TryAgainError
from moola.launch.console import print_text, terminal
from moola.launch.settings import TrackingConfig
from moola.runs.groups import NO_MEMBER, Member
from moola.runs.protocol import attempt_key, canonical_json, now_text
from moola.runs.reading import RunState, run_state
from moola.runs.redaction import TRACKING, safe_text
from moola.store import Store
from moola.text import shortened

if TYPE_CHECKING:  # importing it takes seconds
    from mlflow import MlflowClient

TRACKED = "tracked.json"
REFUSES_ALL = (401, 403, 429)  # HTTP statuses: of who asks, or how often, not of what
LONGEST_REASON = 300  # characters, of what is said

# Unless the person says otherwise: its client would try for minutes, and would tell its makers.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "10",  # seconds
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
}


def require_tracking(config: TrackingConfig) -> None:
    """Raises DataError where no run could be told: for want of MLflow's client, or of an address.

    Nothing is sent.
    """
    if not config.address:
        return
    if find_spec("mlflow") is None:
        raise DataError(f"{TRACKING} needs the package mlflow-skinny: pip install 'moola[mlflow]'")
    try:
        if urlsplit(config.address).scheme in ("", "file") and config.address != "databricks":
            raise ValueError("it is none of a server")
        with _client(config):
            pass
    except Exception as error:
        raise _not_an_address(_reason(error)) from None


def _not_an_address(problem: str) -> DataError:
    return DataError(f"{TRACKING} must be the address of an MLflow server, https://...: {problem}")


def _reason(error: Exception) -> str:
    """What an error says, in one line; first without secrets, which may not be cut in two."""
    return shortened(safe_text(str(error)).strip(), LONGEST_REASON)


def _is_of_server(error: Exception) -> bool:
    """Whether the other runs would fail alike: not where the server refuses one of them."""
    status = getattr(error, "get_http_status_code", None)  # of MLflow's client: 500 for no answer
    if status is None:
        return isinstance(error, DataError | OSError)
    code = int(status())
    return code in REFUSES_ALL or not 400 <= code < 500


class Tracking:
    """Tells of runs as they end. Once the server has failed, the others are passed over."""

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self._is_down = False

    def tell_end(self, store: Store, run_id: str, member: Member = NO_MEMBER) -> None:
        """Tell of a run that has ended, unless somebody has. What fails is said, not raised."""
        if not self._config.address or self._is_down:
            return
        try:
            state = run_state(store, run_id)
            if state.attempt is None or not state.state.is_final:
                return
            claim = attempt_key(run_id, state.attempt, TRACKED)
            if not store.exists(claim):
                require_tracking(self._config)
                tell(self._config, store, run_id, state, member, claim)
        except Exception as error:  # whatever it is, the run has ended as it has
            self._is_down = _is_of_server(error)
            text = f"MLflow was not told of the end of {run_id}: {_reason(error)}"
            print_text(text, terminal())


def track(config: TrackingConfig, store: Store, run_id: str, member: Member = NO_MEMBER) -> bool:
    """Tell of a run, whether it was told of before or not; False for one that has not ended.

    Raises TryAgainError where the server does not answer, or refuses.
    """
    state = run_state(store, run_id)
    if state.attempt is None or not state.state.is_final:
        return False
    try:
        tell(config, store, run_id, state, member)
    except MoolaError:
        raise
    except Exception as error:
        raise TryAgainError(f"MLflow was not told of {run_id}: {_reason(error)}") from error
    return True


def tell(
    config: TrackingConfig,
    store: Store,
    run_id: str,
    state: RunState,
    member: Member,
    claim: str = "",
) -> None:
    """Send a run that has ended; nothing where somebody else has made the claim, if one is named.

    Raises ArtifactError for a damaged record, and what MLflow's client raises.
    """
    from moola.launch.mlflow_runs import experiment_of, send
    from moola.launch.tracked_run import tracked_run

    with _client(config) as client:
        experiment = experiment_of(client, config.experiment, run_id)
        run = tracked_run(store, run_id, state, member)
        if not claim or store.create(claim, canonical_json({"time": now_text()})):
            send(client, experiment, run)


@contextlib.contextmanager
def _client(config: TrackingConfig) -> "Iterator[MlflowClient]":
    """MLflow's client, with a bound on how long it tries."""
    unset = {name: text for name, text in CLIENT_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(unset)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL + 1)  # it names addresses
    try:
        from mlflow import MlflowClient

        yield MlflowClient(tracking_uri=config.address)
    finally:
        for name in unset:
            os.environ.pop(name, None)
