"""How long `moola list` takes on a store with many runs that answers slowly.

    python -m benchmarks.list_runs                       # 1,000 runs, 50 ms a request
    python -m benchmarks.list_runs --runs 200 --delay-ms 20

A proxy before a local S3 server delays each request. Shown: seconds and requests of the listing,
of the newest run that `train` takes without --features, and of `moola list` as a process.
"""

import argparse
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from moola.runs.survey import newest_run, summarize_runs, survey_runs
from moola.store import open_store
from tests.runs import put_committed
from tests.s3_proxy import Call, Proxy, running_proxy
from tests.seaweed import BUCKET, running_seaweed
from tests.watchdog import watch

WRITERS = 8
LAST = 20  # runs that are shown, as by default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    options = parser.parse_args()

    watch()
    with running_seaweed() as server:
        os.environ.update(server.environment())
        url = f"s3://{BUCKET}/{secrets.token_hex(6)}"
        store = open_store(url)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda n: put_committed(store, n), range(options.runs)))

        with running_proxy(server.endpoint) as proxy:
            proxy.on_request = delay(options.delay_ms / 1000)
            os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
            Console().print(measure(url, proxy, options.runs, options.delay_ms))


def delay(seconds: float) -> Callable[[Call], None]:
    def wait(_: Call) -> None:
        time.sleep(seconds)

    return wait


def measure(url: str, proxy: Proxy, n_runs: int, delay_ms: float) -> Table:
    store = open_store(url)
    command = [sys.executable, "-m", "moola", "list", "--store", url]
    works: dict[str, Callable[[], object]] = {
        f"list, the newest {LAST}": lambda: summarize_runs(store, survey_runs(store), LAST),
        "the newest precompute run": lambda: newest_run(store, "precompute"),
        "moola list, a process": lambda: subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL
        ),
    }

    table = Table("", "s", "requests", title=f"{n_runs:,} runs, {delay_ms:g} ms a request")
    for name, work in works.items():
        proxy.calls.clear()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        table.add_row(name, f"{seconds:.2f}", str(len(proxy.calls)))
    return table


if __name__ == "__main__":
    main()
